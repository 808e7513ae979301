"""Read inputs in a watched child process: whether reading ends, how, how fast, and with how much memory.

An input may be accepted, or refused in a way a user can act on: `CocomixError` with one printable sentence, or the
system's own error about a path. Anything else is wrong. A child reads many inputs; if it is lost, a new child continues
with the next input.
"""

import contextlib
import faulthandler
import json
import os
import re
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.fuzz.audit_hook import AuditHook, ForbiddenAccess
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import in_words

TIMEOUT = 10.0
MAX_WAITS = 4
MAX_GROWTH = 512 << 20
"""Bytes by which a process may grow."""
MAX_ADDRESS_SPACE = 2 << 30
"""Bytes of address space a process may request, used or not; a larger request fails and is counted as `memory`."""
MAX_MESSAGE = 1000
"""Maximum length of an error message in characters."""
PER_CHILD = 500
"""Inputs per process, so that leaked memory cannot add up."""
WARM_UP_TIMEOUT = 120.0
"""Seconds until the first input is started."""
MEMORY_ERROR = re.compile(r"allocate memory|bad_alloc|not enough memory", re.IGNORECASE)


class Task(NamedTuple):
    """What the child does.

    Attributes:
        prepare: writes input number n to one of `folders` and returns its description.
        read: reads the input.
        warm: reads the valid files once before reading is watched, so that imports are not counted.
        folders: see `AuditHook`.
        anywhere: see `AuditHook`.
        seconds: time limit per input.
    """

    prepare: Callable[[int], str]
    read: Callable[[], object]
    warm: Callable[[], object]
    folders: tuple[Path, ...]
    anywhere: bool = False
    seconds: float = TIMEOUT


def read_watched(task: Task, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Read the inputs `numbers` in child processes.

    Yields:
        for each input: `number`, `input` (description), `outcome` (read, refused, crashed, hung, memory or escaped),
        `why` if there is a reason, and `seconds`.

    Raises:
        RuntimeError: if the valid files cannot be read.
    """
    waiting = list(numbers)
    while waiting:
        for result in _child(task, waiting[:PER_CHILD]):
            waiting.remove(result["number"])
            yield result


def _child(task: Task, numbers: list[int]) -> Iterator[dict[str, Any]]:
    """Yield outcomes from one forked child, up to the input at which it is lost."""
    reading, writing = os.pipe()
    stacks = os.memfd_create("stacks")
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        os.close(reading)
        _work(task, numbers, writing, stacks)
    os.close(writing)
    current: dict[str, Any] = {}
    ready, silent, since = False, False, time.monotonic()
    try:
        with os.fdopen(reading, "rb", buffering=0) as stream:
            for message in _messages(stream, pid, task.seconds):
                silent = message is None
                if silent:
                    os.kill(pid, signal.SIGUSR1)  # makes it write its stack
                    time.sleep(0.3)
                elif "outcome" in message:
                    yield current | message | {"seconds": round(time.monotonic() - since, 2)}
                    current = {}
                else:
                    ready, current, since = True, message, time.monotonic()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        stack = _written(stacks)
    if current or not ready:
        why = f"no end after {task.seconds:g} s" if silent else f"the process died of {code}"
        if not current:
            raise RuntimeError(f"the valid files were not read: {why}: {stack}")
        yield current | {"outcome": "hung" if silent else "crashed", "why": f"{why}: {stack}"}


def _messages(stream: Any, pid: int, seconds: float) -> Iterator[Any]:
    """Yield JSON lines until the end of `stream`; yield None and stop if process `pid` takes too long for the next.

    On a busy machine the process may have had little CPU time; it then gets up to `MAX_WAITS` times as long.
    """
    rest, timeout, waits, used = b"", WARM_UP_TIMEOUT, 0, 0.0
    while True:
        if not select.select([stream], [], [], timeout)[0]:
            waits += 1
            if waits < MAX_WAITS and _cpu_seconds(pid) - used < timeout / 2:
                continue
            yield None
            return
        block = stream.read(1 << 16)
        if not block:
            return
        timeout, waits, used = seconds, 0, _cpu_seconds(pid)
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            yield json.loads(line)


def _cpu_seconds(pid: int) -> float:
    """Return the CPU seconds a child has used so far."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _written(handle: int) -> str:
    os.lseek(handle, 0, os.SEEK_SET)
    lines = os.read(handle, 1 << 16).decode("utf-8", "replace").splitlines()
    os.close(handle)
    return " < ".join(line.strip() for line in lines[:10] + lines[10:][-4:])


def _work(task: Task, numbers: list[int], writing: int, stacks: int) -> None:
    """Run the child's work; never returns."""

    def send(message: dict[str, Any]) -> None:
        os.write(writing, json.dumps(message).encode() + b"\n")

    try:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        faulthandler.enable(file=stacks, all_threads=False)
        faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=False)
        task.warm()
        hook = AuditHook(*task.folders, anywhere=task.anywhere)
        memory_limit = _limit_memory()
        for number in numbers:
            send({"number": number, "input": task.prepare(number)})
            result = outcome_of(task.read, hook)
            if grown := _peak() > memory_limit:
                result = {"outcome": "memory", "why": f"the process grew by more than {MAX_GROWTH >> 20} MiB"}
            send(result)
            if grown:
                break
    except BaseException:
        os.write(stacks, traceback.format_exc()[-4000:].encode())
    finally:
        os._exit(0)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _limit_memory() -> int:
    """Limit the address space of this process; return the peak memory it may reach."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MAX_ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return _peak() + MAX_GROWTH


def outcome_of(read: Callable[[], object], hook: AuditHook) -> dict[str, Any]:
    """Call `read` with `hook` active; return the outcome and the reason."""
    hook.violations.clear()
    error: BaseException | None = None
    try:
        hook.active = True
        read()
    except BaseException as caught:  # a panic in a Rust library is not an Exception
        error = caught
    finally:
        hook.active = False
    if hook.violations or isinstance(error, ForbiddenAccess):
        return {"outcome": "escaped", "why": hook.violations[0] if hook.violations else str(error)}
    if error is None:
        return {"outcome": "read"}
    for cause in _chain(error):
        if isinstance(cause, MemoryError) or MEMORY_ERROR.search(str(cause)):
            return {"outcome": "memory", "why": _error_text(cause)}
    if isinstance(error, OSError) and error.errno and error.filename:
        sentence = in_words(error)
    elif isinstance(error, CocomixError):
        sentence = str(error)
    else:
        return {"outcome": "crashed", "why": _error_text(error)}
    if not sentence.isprintable() or not 10 < len(sentence) <= MAX_MESSAGE:
        return {"outcome": "crashed", "why": f"no sentence for a user ({len(sentence)} characters): {sentence!r:.300}"}
    return {"outcome": "refused", "why": sentence}


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _error_text(error: BaseException) -> str:
    """Describe an error: type, message, and the last frames within cocomix."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}cocomix{os.sep}" in frame.filename] or frames
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(ours[-3:]))
    return f"{type(error).__name__}: {ascii(str(error))[:300]} at {where}"

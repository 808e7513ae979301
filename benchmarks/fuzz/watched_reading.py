"""Reading in a child process that is watched: whether it ends, how, how soon, and with how much memory.

An input may be accepted, or refused as a person can bear it: `CocomixError` in one printable sentence, or the system's
own word about a path. Anything else is wrong. One child reads many inputs; where it is lost, another goes on behind.
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

from benchmarks.fuzz.audit_hook import Escaped, Fence
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import in_words

SECONDS = 10.0
WAITS = 4
GROWTH = 512 << 20
"""Bytes a process may grow by."""
ADDRESSES = 2 << 30
"""Bytes of memory it may ask for, used or not: more is refused, and the reader found to have asked."""
LONGEST = 1000
"""Characters of a sentence that a person would still read."""
PER_CHILD = 500
"""Inputs a process reads: what it may keep of each cannot add up to much."""
WARMING = 120.0
"""Seconds until the first input is begun."""
GREED = re.compile(r"allocate memory|bad_alloc|not enough memory", re.IGNORECASE)


class Task(NamedTuple):
    """What the child does.

    Attributes:
        prepare: lays out input number n in one of `folders`; returns what it is, in words.
        read: reads it.
        warm: reads what is valid, before anything is watched: what is imported and opened then is no reading.
        folders, anywhere: see `Fence`.
        seconds: an input may take.
    """

    prepare: Callable[[int], str]
    read: Callable[[], object]
    warm: Callable[[], object]
    folders: tuple[Path, ...]
    anywhere: bool = False
    seconds: float = SECONDS


def watch(task: Task, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
    """What came of each of `numbers`: `number`, `input`, `outcome` (read, refused, crashed, hung, memory or escaped),
    `why` where there is a reason, and `seconds`.

    Raises:
        RuntimeError: what is valid cannot be read.
    """
    waiting = list(numbers)
    while waiting:
        for found in _child(task, waiting[:PER_CHILD]):
            waiting.remove(found["number"])
            yield found


def _child(task: Task, numbers: list[int]) -> Iterator[dict[str, Any]]:
    """Outcomes in one forked child, up to the input it is lost at."""
    reading, writing = os.pipe()
    stacks = os.memfd_create("stacks")
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        os.close(reading)
        _work(task, numbers, writing, stacks)
    os.close(writing)
    begun: dict[str, Any] = {}
    ready, silent, since = False, False, time.monotonic()
    try:
        with os.fdopen(reading, "rb", buffering=0) as stream:
            for message in _messages(stream, pid, task.seconds):
                silent = message is None
                if silent:
                    os.kill(pid, signal.SIGUSR1)  # it writes down where it is
                    time.sleep(0.3)
                elif "outcome" in message:
                    yield begun | message | {"seconds": round(time.monotonic() - since, 2)}
                    begun = {}
                else:
                    ready, begun, since = True, message, time.monotonic()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        stack = _written(stacks)
    if begun or not ready:
        why = f"no end after {task.seconds:g} s" if silent else f"the process died of {code}"
        if not begun:
            raise RuntimeError(f"what is valid was not read: {why}: {stack}")
        yield begun | {"outcome": "hung" if silent else "crashed", "why": f"{why}: {stack}"}


def _messages(stream: Any, pid: int, seconds: float) -> Iterator[Any]:
    """JSON lines until the end of `stream`; None, and no more, where the next one takes process `pid` too long.

    On a busy machine it may have had little of that time: it then has `WAITS` times as long.
    """
    rest, patience, waits, used = b"", WARMING, 0, 0.0
    while True:
        if not select.select([stream], [], [], patience)[0]:
            waits += 1
            if waits < WAITS and _cpu_seconds(pid) - used < patience / 2:
                continue
            yield None
            return
        block = stream.read(1 << 16)
        if not block:
            return
        patience, waits, used = seconds, 0, _cpu_seconds(pid)
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            yield json.loads(line)


def _cpu_seconds(pid: int) -> float:
    """Of a child, so far."""
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
    """The child; it never returns."""

    def tell(message: dict[str, Any]) -> None:
        os.write(writing, json.dumps(message).encode() + b"\n")

    try:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        faulthandler.enable(file=stacks, all_threads=False)
        faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=False)
        task.warm()
        fence = Fence(*task.folders, anywhere=task.anywhere)
        most = _limited()
        for number in numbers:
            tell({"number": number, "input": task.prepare(number)})
            found = judged(task.read, fence)
            if grown := _peak() > most:
                found = {"outcome": "memory", "why": f"the process grew by more than {GROWTH >> 20} MiB"}
            tell(found)
            if grown:
                break
    except BaseException:
        os.write(stacks, traceback.format_exc()[-4000:].encode())
    finally:
        os._exit(0)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _limited() -> int:
    """Bound the addresses of this process; returns the peak of memory it may reach."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    return _peak() + GROWTH


def judged(read: Callable[[], object], fence: Fence) -> dict[str, Any]:
    """The outcome of a reading within `fence`, and why."""
    fence.crossings.clear()
    error: BaseException | None = None
    try:
        fence.up = True
        read()
    except BaseException as caught:  # a panic of a Rust library is none of the usual ones
        error = caught
    finally:
        fence.up = False
    if fence.crossings or isinstance(error, Escaped):
        return {"outcome": "escaped", "why": fence.crossings[0] if fence.crossings else str(error)}
    if error is None:
        return {"outcome": "read"}
    if greedy := next((one for one in _chain(error) if isinstance(one, MemoryError) or GREED.search(str(one))), None):
        return {"outcome": "memory", "why": _told(greedy)}
    if isinstance(error, OSError) and error.errno and error.filename:
        sentence = in_words(error)
    elif isinstance(error, CocomixError):
        sentence = str(error)
    else:
        return {"outcome": "crashed", "why": _told(error)}
    if not sentence.isprintable() or not 10 < len(sentence) <= LONGEST:
        return {"outcome": "crashed", "why": f"no sentence to be shown ({len(sentence)} characters): {sentence!r:.300}"}
    return {"outcome": "refused", "why": sentence}


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def _told(error: BaseException) -> str:
    """What and where, the end of the traceback within cocomix first."""
    frames = traceback.extract_tb(error.__traceback__)
    mine = [frame for frame in frames if f"{os.sep}cocomix{os.sep}" in frame.filename] or frames
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(mine[-3:]))
    return f"{type(error).__name__}: {ascii(str(error))[:300]} at {where}"

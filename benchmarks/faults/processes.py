"""Commands that are started to be killed: how they are launched, watched and struck.

A command runs in a session of its own, so that everything it starts can be found and its end awaited. Work has begun
when the stage's hidden folder exists; a report has none, and has begun when it opens the first figures it reads.
"""

import ctypes
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import psutil

POLL = 0.003
LONGEST = 300.0
"""seconds any one command may take"""


class Started(Protocol):
    """A process that was started."""

    pid: int

    @property
    def returncode(self) -> Any:
        """Its exit status once `poll` has seen its end."""
        ...

    def poll(self) -> int | None:
        """Its exit status, minus the signal's number where one ended it; None while it runs."""
        ...


def launcher(processes: int) -> list[str]:
    """What stands before `cocomix` to run it in so many processes: Python, or torchrun."""
    several = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    return [sys.executable, "-m", *(several if processes > 1 else [])]


class Command:
    """A running cocomix command.

    Args:
        arguments: what is typed after `cocomix`.
        home: working folder; the run is `run` below it.
        processes: more than one: under torchrun.
    """

    def __init__(self, arguments: list[str], home: Path, processes: int = 1) -> None:
        self.home, self.processes, self.arguments = home, processes, arguments
        self.log = self._log()
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "RAYON_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
        }
        with self.log.open("wb") as stream:
            self.started = time.monotonic()
            self.popen = self._start(stream, environment)
        self.process = psutil.Process(self.popen.pid)
        self.seen: dict[int, psutil.Process] = {self.process.pid: self.process}

    def _log(self) -> Path:
        return self.home / "log.txt"

    def _start(self, stream: BinaryIO, environment: dict[str, str]) -> "Started":
        return subprocess.Popen(
            [*launcher(self.processes), "cocomix", *self.arguments],
            cwd=self.home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.started

    def running(self) -> bool:
        """Whether the process that was started runs."""
        if self.seconds > LONGEST:
            self.strike("SIGKILL", self.everyone())
            raise SystemExit(f"cocomix {' '.join(self.arguments)} did not end within {LONGEST:.0f} s; see {self.log}")
        return self.popen.poll() is None

    def everyone(self) -> list[psutil.Process]:
        """All processes of the command, those that lost their parent included."""
        for root in list(self.seen.values()):
            try:
                self.seen |= {child.pid: child for child in root.children(recursive=True)}
            except psutil.NoSuchProcess:
                continue
        return [process for process in self.seen.values() if _alive(process)]

    def workers(self) -> list[psutil.Process]:
        """The processes that do the work: torchrun's children, or the command itself."""
        return [self.process] if self.processes == 1 else self.process.children()

    def strike(self, name: str, victims: list[psutil.Process]) -> None:
        """Send all `victims` the signal called `name`."""
        for victim in victims:
            try:
                victim.send_signal(getattr(signal, name))
            except psutil.NoSuchProcess:
                continue

    def ended(self, patience: float = 60.0) -> list[int]:
        """Wait until all of it has ended; pids of those that had to be killed because they did not."""
        while self.running():
            self.everyone()
            time.sleep(POLL)
        _, late = psutil.wait_procs(self.everyone(), timeout=patience)
        self.strike("SIGKILL", late)
        psutil.wait_procs(late, timeout=10)
        return [process.pid for process in late]

    @property
    def said(self) -> str:
        """All it printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def stopped_at(self) -> int | None:
        """The step it says it stopped and saved at."""
        found = re.search(r"stopped at step (\d+)", " ".join(self.said.split()))
        return int(found[1]) if found else None


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Blow(NamedTuple):
    """One way to end a command."""

    signal: str
    target: str
    """in words"""
    victims: Callable[[Command, random.Random], list[psutil.Process]]


BLOWS = {
    "kill the process": Blow("SIGKILL", "the process", lambda command, _: [command.process]),
    "kill all": Blow("SIGKILL", "all processes", lambda command, _: command.everyone()),
    "kill a worker": Blow("SIGKILL", "one worker", lambda command, rng: [rng.choice(command.workers())]),
    "terminate": Blow("SIGTERM", "every worker", lambda command, _: command.workers()),
    "pre-empt": Blow("SIGUSR1", "every worker", lambda command, _: command.workers()),
    "interrupt": Blow("SIGINT", "every worker", lambda command, _: command.workers()),
}


class Watch:
    """Sees when a command's work begins and when its output is in place."""

    def __init__(self, home: Path, last_output: str, first_read: str | None) -> None:
        self.home, self.output = home, home / "run" / last_output
        self._opened = None if first_read is None else _Opened(home / "run" / first_read)

    def begun(self) -> bool:
        """Whether work has begun."""
        if self._opened is not None:
            return self._opened.was()
        return any(path.is_dir() for path in (self.home / "run" / ".partial").glob("*"))

    def finished(self) -> bool:
        """Whether the output is in place."""
        return self.output.exists()

    def wait_for_work(self, command: Command) -> bool:
        """Wait until work begins; False if the command ended before."""
        while not self.begun():
            if not command.running():
                return False
            time.sleep(POLL)
        return True

    def checkpoints(self) -> list[int]:
        """Steps of the whole checkpoints, in order."""
        return sorted(int(path.name[5:]) for path in self._inside("step-*"))

    def saving(self) -> int | None:
        """Step of the checkpoint that is being written."""
        steps = [int(path.name.removesuffix(".tmp")[6:]) for path in self._inside(".step-*.tmp")]
        return max(steps, default=None)

    def _inside(self, pattern: str) -> list[Path]:
        return list((self.home / "run" / ".partial").glob(f"*/checkpoints/{pattern}"))


class _Opened:
    """Whether a file has been opened since, by inotify."""

    IN_OPEN = 0x20

    def __init__(self, path: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        queue = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if queue < 0 or libc.inotify_add_watch(queue, os.fsencode(path), self.IN_OPEN) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
        self._events = os.fdopen(queue, "rb", buffering=0)

    def was(self) -> bool:
        """Whether it has been opened."""
        return bool(self._events.read(4096))

"""Commands that are started in order to be killed: launching, watching and signalling them.

A command runs in its own session, so that all processes it starts can be found and waited for. A stage's work has
started when its hidden folder exists. The report stage has none; its work has started when it opens its first input.
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

POLL_SECONDS = 0.003
TIMEOUT = 300.0
"""seconds a command may take"""


class StartedProcess(Protocol):
    """The interface of a started process, as `subprocess.Popen` has it."""

    pid: int

    @property
    def returncode(self) -> Any:
        """Exit status, once `poll` has seen the end of the process."""
        ...

    def poll(self) -> int | None:
        """Return the exit status (minus the signal's number after a signal), or None while the process runs."""
        ...


def launcher(processes: int) -> list[str]:
    """Return the command that runs a module in `processes` processes: Python, or torchrun."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    return [sys.executable, "-m", *(torchrun if processes > 1 else [])]


class Command:
    """A running cocomix command.

    Args:
        arguments: what a user types after `cocomix`.
        home: working directory; the run is in its subfolder `run`.
        processes: number of processes; more than one means torchrun.
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

    def _start(self, stream: BinaryIO, environment: dict[str, str]) -> "StartedProcess":
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
        """Seconds since the start."""
        return time.monotonic() - self.started

    def running(self) -> bool:
        """Return whether the started process still runs; a command that exceeds `TIMEOUT` is killed."""
        if self.seconds > TIMEOUT:
            self.send_signal("SIGKILL", self.all_processes())
            raise SystemExit(f"cocomix {' '.join(self.arguments)} did not end within {TIMEOUT:.0f} s; see {self.log}")
        return self.popen.poll() is None

    def all_processes(self) -> list[psutil.Process]:
        """Return all living processes of the command, including orphans."""
        for root in list(self.seen.values()):
            try:
                self.seen |= {child.pid: child for child in root.children(recursive=True)}
            except psutil.NoSuchProcess:
                continue
        return [process for process in self.seen.values() if _alive(process)]

    def workers(self) -> list[psutil.Process]:
        """Return the processes that do the work: torchrun's children, or the command itself."""
        return [self.process] if self.processes == 1 else self.process.children()

    def send_signal(self, name: str, processes: list[psutil.Process]) -> None:
        """Send the signal called `name` to all `processes`."""
        for process in processes:
            try:
                process.send_signal(getattr(signal, name))
            except psutil.NoSuchProcess:
                continue

    def wait(self, timeout: float = 60.0) -> list[int]:
        """Wait until all processes have ended.

        Args:
            timeout: seconds the others may outlive the started process before they are killed.

        Returns:
            pids of the processes that had to be killed.
        """
        while self.running():
            self.all_processes()
            time.sleep(POLL_SECONDS)
        _, late = psutil.wait_procs(self.all_processes(), timeout=timeout)
        self.send_signal("SIGKILL", late)
        psutil.wait_procs(late, timeout=10)
        return [process.pid for process in late]

    @property
    def output(self) -> str:
        """Everything the command printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def stopped_at(self) -> int | None:
        """Return the step at which the command reports to have stopped and saved."""
        match = re.search(r"stopped at step (\d+)", " ".join(self.output.split()))
        return int(match[1]) if match else None


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class KillMethod(NamedTuple):
    """One way to kill a command: which signal goes to which processes."""

    signal: str
    target: str
    """in words"""
    processes: Callable[[Command, random.Random], list[psutil.Process]]


KILL_METHODS = {
    "kill the process": KillMethod("SIGKILL", "the process", lambda command, _: [command.process]),
    "kill all": KillMethod("SIGKILL", "all processes", lambda command, _: command.all_processes()),
    "kill a worker": KillMethod("SIGKILL", "one worker", lambda command, rng: [rng.choice(command.workers())]),
    "terminate": KillMethod("SIGTERM", "every worker", lambda command, _: command.workers()),
    "pre-empt": KillMethod("SIGUSR1", "every worker", lambda command, _: command.workers()),
    "interrupt": KillMethod("SIGINT", "every worker", lambda command, _: command.workers()),
}


class Watch:
    """Observes when a command's work starts and when its output is complete."""

    def __init__(self, home: Path, last_output: str, first_read: str | None) -> None:
        self.home, self.output = home, home / "run" / last_output
        self._opened = None if first_read is None else _OpenWatcher(home / "run" / first_read)

    def started(self) -> bool:
        """Return whether work has started."""
        if self._opened is not None:
            return self._opened.opened()
        return any(path.is_dir() for path in (self.home / "run" / ".partial").glob("*"))

    def finished(self) -> bool:
        """Return whether the output is complete."""
        return self.output.exists()

    def wait_for_work(self, command: Command) -> bool:
        """Wait until work starts; False if the command ended before."""
        while not self.started():
            if not command.running():
                return False
            time.sleep(POLL_SECONDS)
        return True

    def checkpoints(self) -> list[int]:
        """Return the steps of all complete checkpoints, in order."""
        return sorted(int(path.name[5:]) for path in self._inside("step-*"))

    def saving(self) -> int | None:
        """Return the step of the checkpoint that is being written, if any."""
        steps = [int(path.name.removesuffix(".tmp")[6:]) for path in self._inside(".step-*.tmp")]
        return max(steps, default=None)

    def _inside(self, pattern: str) -> list[Path]:
        return list((self.home / "run" / ".partial").glob(f"*/checkpoints/{pattern}"))


class _OpenWatcher:
    """Reports through inotify whether a file has been opened since this object was made."""

    IN_OPEN = 0x20

    def __init__(self, path: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        queue = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if queue < 0 or libc.inotify_add_watch(queue, os.fsencode(path), self.IN_OPEN) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
        self._events = os.fdopen(queue, "rb", buffering=0)

    def opened(self) -> bool:
        """Return whether the file has been opened."""
        return bool(self._events.read(4096))

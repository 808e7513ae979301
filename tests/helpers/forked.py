"""Programs in processes forked from one that has imported torch and cocomix.

A fresh process spends three seconds of processor time on imports before a command begins. The server of
`multiprocessing` (one for each process that runs tests, started on first use) imports once and computes nothing, so its
forks begin with no threads, with the random state of a fresh process, and with a memory of their own. What differs from
a fresh process: variables that a library reads while it is imported are the server's, as are `/proc/PID/environ` and
the seed of string hashes. Tests of those start a real one.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.helpers.preloaded"])


class Forked:
    """A program in a fork; has what tests use of `subprocess.Popen`, with output as text.

    Args:
        program: what follows `python`: `-m`, a module and its arguments, or a file and its arguments.
        cwd: its working directory; default: this process's.
        environment: variables in addition to this process's.
    """

    def __init__(self, program: Sequence[str], *, cwd: Path | None = None, **environment: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="forked-")
        self._paths = [Path(self._folder.name, name) for name in ("stdout", "stderr")]
        for path in self._paths:
            path.touch()
        arguments = ([str(word) for word in program], str(cwd or Path.cwd()), dict(os.environ) | environment)
        self._process = CONTEXT.Process(target=_run, args=(*arguments, [str(path) for path in self._paths]))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid
        self.sentinel = self._process.sentinel

    @property
    def returncode(self) -> int | None:
        """Its exit code, minus the signal that killed it, or None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; its exit code.

        Raises:
            subprocess.TimeoutExpired: it was still running; it is killed.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill()
            self._process.join()
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0, *self._texts())
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; standard output and standard error."""
        self.wait(timeout)
        return self._texts()

    def _texts(self) -> tuple[str, str]:
        output, error = (path.read_text(encoding="utf-8", errors="replace") for path in self._paths)
        return output, error


def run(program: Sequence[str], *, cwd: Path | None = None, timeout: float = 300, **environment: str):
    """As `subprocess.run`, of a program in a fork."""
    process = Forked(program, cwd=cwd, **environment)
    output, error = process.communicate(timeout)
    return subprocess.CompletedProcess([*program], process.wait(), output, error)


def wait_for_any(processes: Sequence[Forked], timeout: float) -> list[Forked]:
    """Wait until one of them has ended; those that have."""
    ended = wait([process.sentinel for process in processes], timeout)
    assert ended, f"nothing ended in {timeout} seconds"
    return [process for process in processes if process.sentinel in ended]


def _run(program: list[str], cwd: str, environment: dict[str, str], outputs: list[str]) -> None:
    """In the fork: become `python PROGRAM`."""
    for stream, path in zip((1, 2), outputs, strict=True):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, stream)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    if "OMP_NUM_THREADS" in environment:  # read when torch was imported
        import torch

        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    if program[0] == "-m":
        sys.argv = program[1:]
        sys.path.insert(0, "")
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = program
        sys.path.insert(0, str(Path(program[0]).parent))
        runpy.run_path(program[0], run_name="__main__")

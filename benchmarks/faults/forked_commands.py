"""Run commands in forks of a process that has already imported everything, so that a fault costs no import time.

The parent computes nothing, so a child starts without threads and with the random state of a fresh process.
"""

import ctypes
import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from benchmarks.faults.processes import Command
from cocomix.cli.app import main

HEAVY_IMPORTS = (
    "torch.distributed.run",
    "cocomix.pipeline.run",
    "cocomix.pipeline.concept_stages",
    "cocomix.report",
    "matplotlib.pyplot",
    "mpl_toolkits.mplot3d",
)
DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2
CAPABILITY_VERSION = 0x20080522


def preload() -> None:
    """Import the modules that commands import while they run."""
    for name in HEAVY_IMPORTS:
        importlib.import_module(name)


class ForkedProcess:
    """A forked process with the part of the `subprocess.Popen` interface that `Command` uses."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, or None while the process runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait_quietly(self) -> None:
        """Wait for its end without asking again and again, which costs the processor more than a small command."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class ForkedCommand(Command):
    """A running cocomix command in a fork of this process.

    Args:
        arguments: what a user types after `cocomix`.
        home: working directory of the command.
        preexec: called in the child before the command, e.g. to drop privileges.
    """

    def __init__(self, arguments: list[str], home: Path, preexec: Callable[[], None] | None = None) -> None:
        self.preexec = preexec
        super().__init__(arguments, home)

    def _log(self) -> Path:
        return Path(tempfile.gettempdir()) / f"{self.home.name}.log"  # the home's own disk may be full

    def _start(self, stream: BinaryIO, environment: dict[str, str]) -> ForkedProcess:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            return ForkedProcess(pid)
        status = 1
        try:
            os.setsid()
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
            os.environ.update(environment)
            os.chdir(self.home)
            if self.preexec is not None:
                self.preexec()
            sys.argv = ["cocomix", *self.arguments]
            main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


def without_privilege() -> None:
    """Drop the capabilities that let root bypass file permissions."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()  # low words of effective, permitted, inheritable, then the high words
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    for word in range(3):
        sets[word] &= ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH)
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")

"""Commands in processes forked from one that has imported everything: a fault then costs its work, not its imports.

The parent computes nothing, so a child begins with no threads and with the random state of a fresh process.
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

HEAVY = ("torch.distributed.run", "cocomix.pipeline.run", "cocomix.pipeline.concept_stages", "cocomix.report")
DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2
CAPABILITY_VERSION = 0x20080522


def preload() -> None:
    """Import what commands import while they run."""
    for name in HEAVY:
        importlib.import_module(name)


class Child:
    """A forked process, with what of `subprocess.Popen` a `Command` needs."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


class Forked(Command):
    """A running cocomix command in a fork of this process.

    Args:
        before: done in the child before the command, e.g. to give up rights.
    """

    def __init__(self, arguments: list[str], home: Path, before: Callable[[], None] | None = None) -> None:
        self.before = before
        super().__init__(arguments, home)

    def _log(self) -> Path:
        return Path(tempfile.gettempdir()) / f"{self.home.name}.log"  # the home's own disk may be full

    def _start(self, stream: BinaryIO, environment: dict[str, str]) -> Child:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            return Child(pid)
        status = 1
        try:
            os.setsid()
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
            os.environ.update(environment)
            os.chdir(self.home)
            if self.before is not None:
                self.before()
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
    """Let the permissions of files hold for this process, though it be root's."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, their low words and then their high ones
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    for word in range(3):
        sets[word] &= ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH)
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")

"""Python, disk, memory, and whether the folder of runs can be written."""

import fcntl
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cocomix.doctor_check import Check, Finding, State, Where

OLDEST_PYTHON = (3, 11)
LEAST_DISK, LEAST_MEMORY = 1.0, 2.0
"""GiB; the demo writes 0.2 and takes up to 1.5."""
GIB = 2**30


class PythonCheck(Check):
    """The interpreter's version."""

    title = "Python"

    def look(self, where: Where) -> Iterator[Finding]:
        found = platform.python_version()
        if sys.version_info[:2] >= OLDEST_PYTHON:
            yield Finding(State.FINE, self.title, found)
        else:
            oldest = ".".join(str(part) for part in OLDEST_PYTHON)
            yield Finding(State.FIX, self.title, found, f"install Python {oldest} or newer and cocomix into it")


class DiskCheck(Check):
    """Free space where runs are written."""

    title = "disk"

    def look(self, where: Where) -> Iterator[Finding]:
        free = shutil.disk_usage(nearest(where.folder)).free / GIB
        enough = free >= LEAST_DISK
        mend = "" if enough else f"free some space, {LEAST_DISK:g} GiB is the least the demo wants"
        yield Finding(State.FINE if enough else State.FIX, self.title, f"{free:.1f} GiB free", mend)


class MemoryCheck(Check):
    """Memory that programs could have now."""

    title = "memory"

    def look(self, where: Where) -> Iterator[Finding]:
        free = available_memory()
        if free is None:
            yield Finding(State.NOTE, self.title, "this system does not say")
        elif free >= LEAST_MEMORY:
            yield Finding(State.FINE, self.title, f"{free:.1f} GiB free")
        else:
            mend = f"end other programs, {LEAST_MEMORY:g} GiB is the least the demo wants"
            yield Finding(State.FIX, self.title, f"{free:.1f} GiB free", mend)


class WriteCheck(Check):
    """Files can be made and locked where runs are written."""

    title = "folder"

    def look(self, where: Where) -> Iterator[Finding]:
        place = nearest(where.folder)
        try:
            with tempfile.TemporaryFile(dir=place) as stream:
                stream.write(b"cocomix")
                stream.flush()
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            mend = "mend its permissions, or work in another folder, on a file system that has locks"
            yield Finding(State.FIX, self.title, f"{place} cannot be written ({error.strerror or error})", mend)
        else:
            yield Finding(State.FINE, self.title, f"{place} can be written")


def nearest(folder: Path) -> Path:
    """The folder, or the nearest above it that exists; may be a file."""
    return next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())


def available_memory() -> float | None:
    """GiB that programs could still have without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    kib = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if kib is None else int(kib) * 1024 / GIB

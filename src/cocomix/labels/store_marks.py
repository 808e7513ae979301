"""Marks of finished windows: each writing process appends to a file of its own, so no two touch the same page.

A mark carries a checksum of the labels it stands for, and counts only if the data files still hold them. So nothing
has to be forced to the disk in a certain order: what a power cut took is simply not done, whatever its mark says.
"""

import hashlib
import os
import secrets
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

MARKS = "marks"
_RECORD = np.dtype([("start", "<i8"), ("count", "<i8"), ("digest", "u1", (16,)), ("check", "<u4"), ("spare", "<u4")])


class Mark(NamedTuple):
    """Windows `start` to `start + count`, all of one shard, were written."""

    start: int
    count: int
    digest: bytes
    """of their labels, 16 bytes"""


def digest(parts: Iterable[bytes | memoryview]) -> bytes:
    """Checksum of labels: the ids' bytes, then the scores' if there are any."""
    made = hashlib.blake2b(digest_size=16)
    for part in parts:
        made.update(part)
    return made.digest()


class MarkWriter:
    """Appends marks to a new file in `folder`, made on the first one; every attempt of every process has its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / MARKS
        self._file: int | None = None

    def add(self, mark: Mark) -> None:
        """Append `mark` at once: a process killed right after has made it."""
        record = np.zeros((), dtype=_RECORD)
        record["start"], record["count"] = mark.start, mark.count
        record["digest"] = np.frombuffer(mark.digest, dtype=np.uint8)
        record["check"] = _check(record)
        if self._file is None:
            self._folder.mkdir(exist_ok=True)
            path = self._folder / f"{os.getpid()}-{secrets.token_hex(8)}.bin"
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
        os.write(self._file, record.tobytes())

    def close(self) -> None:
        """Put the marks on the disk and close their file."""
        if self._file is not None:
            os.fsync(self._file)
            os.close(self._file)
            self._file = None


def read_marks(folder: Path) -> list[Mark]:
    """All whole marks in `folder`, in an order that all processes agree on; half-written ones are left out."""
    marks = []
    for path in sorted((folder / MARKS).glob("*.bin")):
        content = path.read_bytes()
        whole = len(content) // _RECORD.itemsize * _RECORD.itemsize
        for record in np.frombuffer(content[:whole], dtype=_RECORD):
            if int(record["check"]) == _check(record):
                marks.append(Mark(int(record["start"]), int(record["count"]), record["digest"].tobytes()))
    return marks


def _check(record: np.ndarray) -> int:
    return zlib.crc32(record["start"].tobytes() + record["count"].tobytes() + record["digest"].tobytes())

"""Files checked against their checksums once, and remembered: reading terabytes anew in every process helps nobody.

A file that was found right is remembered beside it by inode, size, and the times of its last change (mtime and ctime,
nanoseconds), on the machine that looked. Writing to a file changes these, whoever does it and whatever mtime it sets
afterwards, so an altered file is read again and refused. Not noticed is a disk that returns other bytes than were
written to it; remove the sidecar to look again. Of several processes one looks while the others wait.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cocomix.files import sha256, write_json

SIDECAR = ".checked.json"
YOUNG_NS = 2_000_000_000
"""a file changed this recently could be changed again within the resolution of its times; it is not remembered"""


def altered(folder: Path, checksums: Mapping[str, str]) -> str | None:
    """Name of the first file in `folder` whose content does not have its checksum, None if all have.

    Args:
        checksums: sha256 by file name.

    Raises:
        FileNotFoundError: a file is not there.
    """
    known = _known(folder)
    if all(known.get(name) == _mark(folder / name, wanted) for name, wanted in checksums.items()):
        return None
    with _one_at_a_time(folder):
        known = _known(folder)  # another process may have looked meanwhile
        for name, wanted in checksums.items():
            mark = _mark(folder / name, wanted)
            if known.get(name) == mark:
                continue
            known.pop(name, None)
            if sha256(folder / name) != wanted:
                return name
            if _mark(folder / name, wanted) == mark and time.time_ns() - max(mark["mtime"], mark["ctime"]) > YOUNG_NS:
                known[name] = mark
        _remember(folder, {name: known[name] for name in checksums if name in known})
    return None


def _mark(path: Path, checksum: str) -> dict[str, Any]:
    stat = path.stat()
    return {
        "sha256": checksum,
        "bytes": stat.st_size,
        "inode": stat.st_ino,
        "mtime": stat.st_mtime_ns,
        "ctime": stat.st_ctime_ns,
    }


def _known(folder: Path) -> dict[str, Any]:
    try:
        known = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(folder: Path, marks: dict[str, Any]) -> None:
    try:
        write_json(folder / SIDECAR, marks)
    except OSError:
        return  # a folder that cannot be written is checked each time


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """A lock on the folder itself, so that none has to be made; without locks (some network disks) all look."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)

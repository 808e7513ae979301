"""Checksums compared once: a note beside the files remembers which file, as it is now, has been found whole.

Reading 80 GB of labels again each time a process opens them would cost minutes. A file is read again as soon as its
size, its inode, its times of change or the checksum it should have are others; writing to it changes these, whatever
time it is given afterwards. Not noticed is a disk that returns other bytes than were written; remove the note to look
again. Processes of one machine take turns, so that the first of them reads and the others find its note.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict

from cocomix.utils.errors import CocomixError
from cocomix.utils.files import read_json, sha256, write_json

NOTE = "verified.json"
YOUNG_NS = 2_000_000_000
"""A file changed this recently could be changed again within the resolution of its times: it is not remembered."""


class FileEntry(TypedDict):
    """One file, as a manifest lists it."""

    file: str
    """name inside the folder, or path below it"""
    bytes: int
    sha256: str


def check_files(folder: Path, files: Sequence[FileEntry], *, what: str, mend: str, verify: bool = True) -> None:
    """Refuse `folder` unless it holds all of `files`, with the sizes and, if `verify`, the checksums listed.

    Args:
        what: what such a file is called in a message, e.g. "label file".
        mend: what the user does about a bad one.

    Raises:
        CocomixError: a file is missing, truncated or altered, or its name leads out of the folder.
    """
    if not isinstance(files, list) or not all(map(_is_entry, files)):
        raise CocomixError(f"the list of files of {folder} is damaged; {mend}")
    for entry in files:
        path = folder / entry["file"]
        if not is_inside(entry["file"]):
            raise CocomixError(f"the manifest of {folder} names {entry['file']!r}, which is outside the folder; {mend}")
        size = path.stat().st_size if path.exists() else None
        if size != entry["bytes"]:
            there = "" if size is None else f" ({size} bytes instead of {entry['bytes']})"
            raise CocomixError(f"the {what} {path} is missing or truncated{there}; {mend}")
    if not verify or not _unknown(folder, files):
        return
    with _turn(folder):
        unknown = _unknown(folder, files)
        for entry in unknown:
            path = folder / entry["file"]
            if sha256(path) != entry["sha256"]:
                raise CocomixError(f"the {what} {path} was altered (its checksum differs from the manifest's); {mend}")
        if unknown:
            note_verified(folder, [entry for entry in files if not _young(folder, entry)])


def note_verified(folder: Path, files: Sequence[FileEntry]) -> None:
    """Remember that `files`, as they are now, have the checksums listed; where nobody may write, nothing is noted."""
    with contextlib.suppress(OSError):
        write_json(folder / NOTE, {entry["file"]: _seen(folder, entry) for entry in files})


def forget_verified(folder: Path) -> None:
    """Let the files of `folder`, and of all folders below, be read again when they are next opened."""
    for note in folder.rglob(NOTE):
        with contextlib.suppress(OSError):
            note.unlink()


def is_inside(name: Any) -> bool:
    """Whether `name`, out of a manifest, is that of a file in the folder or below it."""
    if not isinstance(name, str) or "\0" in name:
        return False
    pure = PurePosixPath(name)
    return not pure.is_absolute() and ".." not in pure.parts and str(pure) == name


def _is_entry(entry: Any) -> bool:
    """Whether an entry, out of a manifest, has what is read of one, in the right types."""
    kinds = FileEntry.__annotations__.items()
    return isinstance(entry, dict) and all(type(entry.get(name)) is kind for name, kind in kinds)


def _unknown(folder: Path, files: Sequence[FileEntry]) -> list[FileEntry]:
    """Those of `files` that the note does not vouch for."""
    try:
        note: dict[str, Any] = read_json(folder / NOTE)
        return [entry for entry in files if note.get(entry["file"]) != _seen(folder, entry)]
    except (OSError, ValueError, AttributeError):
        return list(files)


def _seen(folder: Path, entry: FileEntry) -> dict[str, Any]:
    found = (folder / entry["file"]).stat()
    return {
        "bytes": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "ctime_ns": found.st_ctime_ns,
        "inode": found.st_ino,
        "sha256": entry["sha256"],
    }


def _young(folder: Path, entry: FileEntry) -> bool:
    found = (folder / entry["file"]).stat()
    return time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) < YOUNG_NS


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Within: no other process of this machine verifies `folder`; without locks there, all of them do."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)

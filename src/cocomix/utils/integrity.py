"""Files compared with their checksums once: a note beside them remembers which file was verified, as it is now.

Reading 80 GB of labels each time a process opens them would cost minutes. A file is read again when its size, inode,
modification times or expected checksum differ from the note; writing to a file changes these, even if its time is put
back afterwards. Not noticed is a disk that returns other bytes than were written; delete the note to verify again.
Processes of one machine take turns, so that the first verifies and the others find its note.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict

from filelock import FileLock

from cocomix.utils.errors import CocomixError
from cocomix.utils.files import read_json, sha256, write_json

NOTE, LOCK = "verified.json", ".verified.lock"
YOUNG_NS = 2_000_000_000
"""A file changed this recently is not noted, because it could change again within the resolution of its times."""


class FileEntry(TypedDict):
    """One file, as a manifest lists it."""

    file: str
    """name inside the folder, or path below it"""
    bytes: int
    sha256: str


def check_files(folder: Path, files: Sequence[FileEntry], *, what: str, hint: str, verify: bool = True) -> None:
    """Refuse `folder` unless it holds all of `files`, with the sizes and, if `verify`, the checksums listed.

    Args:
        what: the kind of file, for the message, e.g. "label file".
        hint: how to fix a bad file, the end of the error message.

    Raises:
        CocomixError: a file is missing, truncated or altered, or its name leads out of the folder.
    """
    if not isinstance(files, list) or not all(map(_is_entry, files)):
        raise CocomixError(f"the list of files of {folder} is damaged; {hint}")
    for entry in files:
        path = folder / entry["file"]
        if not is_inside(entry["file"]):
            raise CocomixError(f"the manifest of {folder} names {entry['file']!r}, which is outside the folder; {hint}")
        size = path.stat().st_size if path.exists() else None
        if size != entry["bytes"]:
            difference = "" if size is None else f" ({size} bytes instead of {entry['bytes']})"
            raise CocomixError(f"the {what} {path} is missing or truncated{difference}; {hint}")
    if not verify or not _unverified(folder, files):
        return
    with _turn(folder):
        unverified = _unverified(folder, files)
        for entry in unverified:
            path = folder / entry["file"]
            if sha256(path) != entry["sha256"]:
                raise CocomixError(f"the {what} {path} was altered (its checksum differs from the manifest's); {hint}")
        if unverified:
            note_verified(folder, [entry for entry in files if not _young(folder, entry)])


def note_verified(folder: Path, files: Sequence[FileEntry]) -> None:
    """Remember that `files`, as they are now, have the checksums listed; nothing is noted in a read-only folder."""
    with contextlib.suppress(OSError):
        write_json(folder / NOTE, {entry["file"]: _seen(folder, entry) for entry in files})


def forget_verified(folder: Path) -> None:
    """Verify the files of `folder`, and of all folders below, again when they are next opened."""
    for note in folder.rglob(NOTE):
        with contextlib.suppress(OSError):
            note.unlink()


def is_inside(name: Any) -> bool:
    """Whether `name`, from a manifest, is a path inside the folder."""
    if not isinstance(name, str) or "\0" in name:
        return False
    pure = PurePosixPath(name)
    return not pure.is_absolute() and ".." not in pure.parts and str(pure) == name


def _is_entry(entry: Any) -> bool:
    """Whether an entry of a manifest has the keys and types of a `FileEntry`."""
    kinds = FileEntry.__annotations__.items()
    return isinstance(entry, dict) and all(type(entry.get(name)) is kind for name, kind in kinds)


def _unverified(folder: Path, files: Sequence[FileEntry]) -> list[FileEntry]:
    """Those of `files` that the note does not list as they are now."""
    try:
        note: dict[str, Any] = read_json(folder / NOTE)
        return [entry for entry in files if note.get(entry["file"]) != _seen(folder, entry)]
    except (OSError, ValueError, AttributeError):
        return list(files)


def _seen(folder: Path, entry: FileEntry) -> dict[str, Any]:
    stat = (folder / entry["file"]).stat()
    return {
        "bytes": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
        "inode": stat.st_ino,
        "sha256": entry["sha256"],
    }


def _young(folder: Path, entry: FileEntry) -> bool:
    stat = (folder / entry["file"]).stat()
    return time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) < YOUNG_NS


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Wait until no other process verifies `folder`; in a read-only folder, or without locks, all of them do at once.

    The lock file is deleted before it is released; a process that waits for it then makes a new one. A killed process
    leaves the file, but not the lock.
    """
    path = folder / LOCK
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(FileLock(path, fallback_to_soft=False))
            stack.callback(path.unlink, missing_ok=True)
        yield

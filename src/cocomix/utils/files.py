"""Files: atomic writes, JSON with a seal, checksums, and checks of a path before a library loads it.

- `write_bytes`, `write_text` and `write_json` write a file completely or not at all. `write_sealed` adds a checksum of
  the content, so that `read_sealed` notices an altered digit.
- `check_source`, `check_readable` and `check_weights` refuse a bad path or file with one clear sentence, before a
  library raises something less clear.
- `FileSeries` writes numbered files that end up with the same bytes however often the writer is killed.
- `sync`, `sync_tree` and `move` are for what must survive a power cut: a rename is on the disk only once the folder
  that holds the name is, and what it names only once it was forced there itself.
- `remove_temporaries` removes what killed writers left behind.
"""

import contextlib
import errno
import glob
import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cocomix.utils.errors import CocomixError


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """`write_bytes` of UTF-8."""
    write_bytes(path, text.encode("utf-8"), durable=durable)


def write_bytes(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Write `content` beside `path`, then rename: a reader sees the old file or the new one, never half of one.

    With `durable` this also holds after a power cut, and the new file is on the disk when this returns. What dead
    writers of this file left beside it is removed.
    """
    _remove([*path.parent.glob(f"{glob.escape(path.name)}.*.tmp")])
    temporary = path.with_name(f"{path.name}.{NODE}-{os.getpid()}.tmp")  # several processes may write the same file
    try:
        temporary.write_bytes(content)
        if durable:
            sync(temporary)
        os.replace(temporary, path)
        if durable:
            sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # a disk that failed once may fail again; the first error is the cause
            temporary.unlink(missing_ok=True)
        raise


NODE = re.sub(r"[^A-Za-z0-9]", "", platform.node())[:20] or "here"
"""This machine, in names of temporary files: process numbers of another machine on the same disk mean nothing here."""
_TEMPORARY = re.compile(r"\.(?:(?P<node>[A-Za-z0-9]+)-)?(?P<pid>\d+)\.tmp$")
_ANY_TEMPORARY = re.compile(r"\.tmp$|^\.tmp[A-Za-z0-9_]{6,}$")
"""The second kind is what safetensors writes weights to before it renames."""
STALE_SECONDS = 24 * 3600.0


def remove_temporaries(folder: Path, *, exclusive: bool = False, below: bool = True) -> None:
    """Remove temporary files in `folder` whose writers are dead; an error of the disk leaves them.

    Args:
        exclusive: nobody else writes there (the caller has a lock), so every temporary file or folder is left over.
        below: also in the folders below.
    """
    with contextlib.suppress(OSError):
        _remove([*(folder.rglob("*") if below else folder.glob("*"))], exclusive=exclusive)


def _remove(paths: Sequence[Path], *, exclusive: bool = False) -> None:
    """Remove those of `paths` that are temporary and left over; an error of the disk leaves the rest."""
    with contextlib.suppress(OSError):
        for path in paths:
            if _ANY_TEMPORARY.search(path.name) and (exclusive or _is_left_over(path)):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _is_left_over(path: Path) -> bool:
    match = _TEMPORARY.search(path.name)
    if match is None or not path.is_file():
        return False
    if match["node"] == NODE and not _alive(int(match["pid"])):
        return True
    return time.time() - path.stat().st_mtime > STALE_SECONDS


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # somebody else's
    return True


def parse_json(text: str | bytes) -> Any:
    """`json.loads`, with a ValueError for JSON that is nested too deeply, too.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is too deeply nested") from None


def read_json(path: Path) -> Any:
    """`parse_json` of a file in UTF-8.

    Raises:
        OSError: it cannot be read. ValueError: as `parse_json`.
    """
    return parse_json(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: Any, *, durable: bool = False) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(content, indent=1), durable=durable)


SEAL = "seal"


def seal(content: dict[str, Any]) -> str:
    """Checksum of JSON-able content, apart from a seal in it, 64 hex digits."""
    return sha256_of(json.dumps({key: value for key, value in content.items() if key != SEAL}, sort_keys=True))


def write_sealed(path: Path, content: dict[str, Any], *, durable: bool = False) -> None:
    """`write_json` of `content` with its seal, so that `read_sealed` notices a digit that became another."""
    write_json(path, content | {SEAL: seal(content)}, durable=durable)


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` wrote; what an earlier version wrote has no seal, and is taken as it is.

    Raises:
        OSError: it cannot be read. ValueError: it is no JSON object, or was altered.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    if content.pop(SEAL, None) not in (None, seal(content)):
        raise ValueError("it was altered")
    return content


_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}
"""What file systems answer that cannot sync a folder; any other error is one of the disk."""


def sync(path: Path) -> None:
    """Put a file, or the names in a folder, on the disk.

    Raises:
        OSError: the disk failed; the content may be lost.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path, leave_out: frozenset[str] = frozenset()) -> None:
    """Put every file in `folder` and the folders below on the disk, except those called as one in `leave_out`."""
    for path in folder.iterdir():
        if path.name in leave_out or path.is_symlink():
            continue
        if path.is_dir():
            sync_tree(path, leave_out)
        elif path.is_file():
            sync(path)
    sync(folder)


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents; those that are new survive a power cut."""
    if not folder.exists():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def move(source: Path, target: Path) -> None:
    """Rename `source` to `target` on the same disk, so that a power cut afterwards does not undo it."""
    make_folder(target.parent)
    os.replace(source, target)
    sync(target.parent)
    if source.parent != target.parent:
        sync(source.parent)


def folder_bytes(folder: Path) -> int:
    """Bytes that the files in `folder` and below take; files that vanish meanwhile count as nothing."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.lstat().st_size if path.is_file() and not path.is_symlink() else 0
    return total


def check_source(source: str | Path, what: str) -> None:
    """Refuse a local path that does not exist, before it is requested from the hub with all retries.

    `folder/name` counts as a path if `folder` exists here; otherwise it may be a hub id.

    Raises:
        CocomixError: there is no such folder.
    """
    path = Path(source)
    local = path.is_absolute() or str(source).startswith((".", "~")) or len(path.parts) > 2
    if not path.exists() and (local or (len(path.parts) == 2 and path.parent.is_dir())):
        raise CocomixError(f"{what} cannot be loaded from {source}: there is no such folder; check the path")
    check_readable(path)


def check_readable(path: Path) -> None:
    """Refuse a file, or a folder with a file, without read permission, before a library calls it missing or damaged.

    Raises:
        CocomixError: its permissions do not allow it to be read.
    """
    folder = path if path.is_dir() else path.parent
    # In a folder that may not be entered, not even the names can be listed.
    closed = folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK)
    inside = [] if closed else [*path.iterdir()] if path.is_dir() else [path] if path.exists() else []
    for file in [folder] if closed else inside:
        if not os.access(file, os.R_OK):
            raise CocomixError(f"{file} may not be read; fix its permissions")


def sha256(*paths: Path) -> str:
    """Checksum of one file, or of several in the given order, 64 hex digits."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            hashlib.file_digest(stream, lambda: digest)
    return digest.hexdigest()


def sha256_of(text: str) -> str:
    """Checksum of a text in UTF-8, 64 hex digits."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def check_weights(folder: Path, hint: str) -> None:
    """Check that every safetensors file of a model folder has a complete header and the bytes it promises.

    Raises:
        CocomixError: there is none, or a damaged one; `hint` is the fix, the end of the message.
    """
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CocomixError(f"{folder} holds no weights; {hint}")
    for path in files:
        try:
            with safe_open(path, framework="np"):
                pass
        except (OSError, SafetensorError) as error:
            raise CocomixError(f"the weights {path} are damaged ({error}); {hint}") from error


def combined(checksums: Sequence[str]) -> str:
    """Checksum of several files from their checksums, 64 hex digits; for one file, its own."""
    return checksums[0] if len(checksums) == 1 else hashlib.sha256("".join(checksums).encode()).hexdigest()


def disk_full(error: BaseException) -> bool:
    """Whether an exception means a full disk; safetensors and torch raise types of their own for it."""
    return _means(error, errno.ENOSPC, "No space left on device")


def disk_failed(error: BaseException) -> bool:
    """Whether an exception means that the disk could not read or write; libraries wrap it in types of their own."""
    return _means(error, errno.EIO, "Input/output error")


def _means(error: BaseException | None, number: int, words: str) -> bool:
    """Whether an error, or one that it was raised for, has the system's `number` or says its `words`."""
    for _ in range(20):
        if error is None:
            return False
        if (isinstance(error, OSError) and error.errno == number) or words in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def in_words(error: OSError) -> str:
    """The system's error as a message for users: cause and fix, without its number."""
    if disk_full(error):
        return "the disk is full; free some space and rerun the same command, finished stages are kept"
    cause = (error.strerror or str(error)).lower()
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{cause}; fix the path or its permissions"


PART = ".part"


class FileSeries:
    """Writes `pattern.format(0)`, `pattern.format(1)`, … in `folder`, and resumes after a kill with the same bytes.

    The open file has the ending `.part`; a full one is flushed to disk and renamed. A commit says how far the files are
    safely on disk; the caller keeps it together with the matching position in its own input. A later writer that gets
    the commit cuts off everything written after it and resumes there.

    Args:
        pattern: file name with one number, e.g. `shard-{:05d}.bin`; files whose name begins like it belong to the
            series, and are removed if the commit does not list them.
        commit: what `commit` returned, to resume from there; None starts at the beginning.
        durable: whether finished files are forced to the disk; not needed if nothing resumes after a kill.

    Attributes:
        files: entries of the finished files: `file`, `bytes`, `sha256`, and the arguments of `cut`.
        size: bytes in the open file.

    Raises:
        CocomixError: a file is not as it was committed.
    """

    def __init__(
        self, folder: Path, pattern: str, commit: dict[str, Any] | None = None, *, durable: bool = True
    ) -> None:
        self.folder, self.pattern, self._durable = folder, pattern, durable
        folder.mkdir(parents=True, exist_ok=True)
        self.files: list[dict[str, Any]] = list(commit["files"]) if commit else []
        self.size: int = commit["open_bytes"] if commit else 0
        self._hash = hashlib.sha256()
        self._drop_uncommitted()
        if self.size and not self._path().exists():
            raise self._lost()
        self._stream = self._path().open("r+b" if self.size else "wb")
        self._go_to_the_end(commit.get("open_sha256") if commit else None)

    def write(self, data: bytes | memoryview) -> None:
        """Append to the open file."""
        self._stream.write(data)
        self._hash.update(data)
        self.size += len(data)

    def fill(self, data: bytes | memoryview, limit: int) -> None:
        """Append, and begin a new file wherever the open one has `limit` bytes."""
        left = memoryview(data)
        while len(left):
            head = left[: limit - self.size]
            self.write(head)
            left = left[len(head) :]
            if self.size == limit:
                self.cut()

    def cut(self, **details: Any) -> None:
        """Finish the open file, if it is not empty, and begin the next; `details` go into its entry."""
        if not self.size:
            return
        part = self._path()
        self._flush()
        self._stream.close()
        name = part.name.removesuffix(PART)
        os.replace(part, part.with_name(name))
        if self._durable:
            sync(self.folder)
        self.files.append({"file": name, "bytes": self.size, "sha256": self._hash.hexdigest(), **details})
        self._hash, self.size = hashlib.sha256(), 0
        self._stream = self._path().open("wb")

    def commit(self) -> dict[str, Any]:
        """Flush to disk and say how far the series is, JSON-able."""
        self._flush()
        return {"files": list(self.files), "open_bytes": self.size, "open_sha256": self._hash.hexdigest()}

    def close(self) -> None:
        """Close the open file and remove it if it is empty."""
        self._stream.close()
        if not self.size:
            self._path().unlink(missing_ok=True)

    def _path(self) -> Path:
        return self.folder / (self.pattern.format(len(self.files)) + PART)

    def _flush(self) -> None:
        self._stream.flush()
        if self._durable:
            os.fsync(self._stream.fileno())

    def _drop_uncommitted(self) -> None:
        part = self._path()
        finished = part.with_name(part.name.removesuffix(PART))
        if finished.exists():  # renamed after the commit
            os.replace(finished, part)
        known = {entry["file"] for entry in self.files} | ({part.name} if self.size else set())
        for path in self.folder.glob(f"{self.pattern.partition('{')[0]}*"):
            if path.name not in known:
                path.unlink()

    def _go_to_the_end(self, committed: str | None) -> None:
        left = self.size
        while left:
            block = self._stream.read(min(left, 1 << 20))
            if not block:
                raise self._lost()
            self._hash.update(block)
            left -= len(block)
        if committed not in (None, self._hash.hexdigest()):
            raise self._lost()
        self._stream.truncate(self.size)

    def _lost(self) -> CocomixError:
        return CocomixError(
            f"{self._path()} has lost what was written to it; delete {self.folder.parent} and run the command again"
        )

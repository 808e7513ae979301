"""Numbered files written one after the other, which end up with the same bytes however often the writer is killed.

The open file has the ending `.part`; a full one is flushed to disk and renamed. A commit says how far the files
are safely on disk; its caller keeps that, together with the place in its own input it belongs to. A later writer
given the commit cuts off whatever was written after it and goes on there.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

from cocomix.utils.errors import CocomixError

PART = ".part"


class FileSeries:
    """Writes `pattern.format(0)`, `pattern.format(1)`, … in `folder`.

    Args:
        pattern: file name with one number, e.g. `shard-{:05d}.bin`; files whose name begins like it belong to the
            series, and are removed where no commit speaks of them.
        commit: what `commit` returned, to go on from there; None starts at the beginning.
        durable: whether finished files are forced to the disk; needless where nobody goes on after a kill.

    Attributes:
        files: entries of the finished files: `file`, `bytes`, `sha256`, and what `cut` was told.
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
        self._drop_what_is_not_committed()
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

    def cut(self, **about: Any) -> None:
        """Finish the open file, if it holds anything, and begin the next; `about` goes into its entry."""
        if not self.size:
            return
        part = self._path()
        self._flush()
        self._stream.close()
        name = part.name.removesuffix(PART)
        os.replace(part, part.with_name(name))
        self.files.append({"file": name, "bytes": self.size, "sha256": self._hash.hexdigest(), **about})
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

    def _drop_what_is_not_committed(self) -> None:
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

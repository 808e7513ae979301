"""Writing a label store: by many processes at once, resumable, and finished only when it is whole.

Files are allocated before the first label, so a full disk ends the work before it begins. Labels are written in
place, each run of windows followed by its mark (`store_marks`); a store killed at any moment, by whatever number of
processes it was being written, goes on from its marks. The manifest, with every file's checksum, comes last.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cocomix.labels.store_layout import MANIFEST, PENDING, StoreLayout, read_description
from cocomix.labels.store_marks import MARKS, Mark, MarkWriter, digest, read_marks
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import write_sealed
from cocomix.utils.integrity import FileEntry, note_verified

CHUNK_WINDOWS = 1024
"""Windows read at a time when a shard is summed up."""


class ShardSummary(NamedTuple):
    """What the manifest says about one shard."""

    files: list[FileEntry]
    labelled: int
    """positions with labels"""


class LabelWriter:
    """Goes on with the store in `folder`; `begin` starts one.

    Raises:
        CocomixError: nothing was begun there.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        missing = f"{self.folder} holds no labels yet; run `cocomix label`"
        path = self.folder / PENDING
        self.layout = StoreLayout.of(read_description(path, missing), path)
        self._marks = MarkWriter(self.folder)
        self._shard = -1
        self._open: dict[str, int] = {}

    @classmethod
    def begin(cls, folder: Path | str, layout: StoreLayout) -> "LabelWriter":
        """Start a store, or go on with one begun alike; one process does it, before the others open theirs.

        Raises:
            CocomixError: `folder` holds a finished store or one begun with another layout, or there is no window.
        """
        folder = Path(folder)
        if layout.n_windows < 1:
            raise CocomixError(
                f"{layout.n_tokens} tokens are less than one window of {layout.seq_len}; add text or lower seq_len"
            )
        if (folder / MANIFEST).exists():
            raise CocomixError(f"{folder} already holds labels; delete it first or choose another folder")
        if (folder / PENDING).exists() and cls(folder).layout != layout:
            raise CocomixError(f"{folder} holds labels begun with other settings; delete it first")
        folder.mkdir(parents=True, exist_ok=True)
        for shard in range(layout.n_shards):
            for name, n_bytes in layout.files(shard).items():
                _allocate(folder / name, n_bytes)
        write_sealed(folder / PENDING, layout.about())
        return cls(folder)

    def done(self, part: int = 0, parts: int = 1) -> np.ndarray:
        """Whether each window has been written, bool `[n_windows]`, by every `parts`-th mark from `part` on.

        Only marks whose labels are still in the files count.
        """
        done = np.zeros(self.layout.n_windows, dtype=bool)
        for mark in read_marks(self.folder)[part::parts]:
            if digest(self._stored(mark)) == mark.digest:
                done[mark.start : mark.start + mark.count] = True
        return done

    def write(self, start: int, ids: np.ndarray, scores: np.ndarray, valid: np.ndarray) -> None:
        """Labels of consecutive windows from `start` on.

        Args:
            ids: `[windows, seq_len, n_labels]` integers; scores: the same shape, floats, kept where the layout says.
            valid: bool `[windows, seq_len]`; False positions carry no labels.
        """
        layout = self.layout
        content = {"ids": np.where(valid[..., None], ids, layout.nothing)}
        if layout.scores:
            content["scores"] = np.where(valid[..., None], scores, 0)
        for shard, place, which in layout.pieces(start, len(ids)):
            self._turn_to(shard)
            written = []
            for kind, dtype in layout.dtypes.items():
                data = content[kind][which].astype(dtype).tobytes()
                _pwrite(self._open[kind], data, place * layout.window_bytes(kind))
                written.append(data)
            self._marks.add(Mark(start + which.start, which.stop - which.start, digest(written)))

    def close(self) -> None:
        """Put everything written on the disk."""
        self._turn_to(-1)
        self._marks.close()

    def summarise(self, shards: Iterable[int]) -> dict[int, ShardSummary]:
        """Checksums of `shards`, once every process has closed its writer."""
        return {shard: self._summary(shard) for shard in shards}

    def publish(self, summaries: Mapping[int, ShardSummary]) -> None:
        """Write the manifest of all shards, once every window is marked; the marks are then gone.

        Raises:
            CocomixError: windows are missing.
        """
        marked = np.zeros(self.layout.n_windows, dtype=bool)
        for mark in read_marks(self.folder):
            marked[mark.start : mark.start + mark.count] = True
        if not marked.all():
            raise CocomixError(
                f"{int((~marked).sum())} of {len(marked)} windows in {self.folder} have no labels yet;"
                " run `cocomix label`"
            )
        files = [entry for shard in range(self.layout.n_shards) for entry in summaries[shard].files]
        labelled = sum(summary.labelled for summary in summaries.values())
        manifest = self.layout.about() | {"files": files, "labelled": labelled}
        note_verified(self.folder, files)
        write_sealed(self.folder / MANIFEST, manifest, durable=True)
        (self.folder / PENDING).unlink()
        shutil.rmtree(self.folder / MARKS, ignore_errors=True)

    def finish(self) -> None:
        """`close`, then `publish`, for a single process."""
        self.close()
        self.publish(self.summarise(range(self.layout.n_shards)))

    def _turn_to(self, shard: int) -> None:
        """Open the files of `shard` for writing, after those of another one are safe on the disk; -1: none."""
        if shard == self._shard:
            return
        for file in self._open.values():
            os.fsync(file)
            os.close(file)
        kinds = self.layout.dtypes if shard >= 0 else ()
        self._open = {kind: os.open(self.folder / self.layout.file(kind, shard), os.O_WRONLY) for kind in kinds}
        self._shard = shard

    def _stored(self, mark: Mark) -> Iterable[bytes]:
        shard, place = divmod(mark.start, self.layout.shard_windows)
        for kind in self.layout.dtypes:
            size = self.layout.window_bytes(kind)
            with (self.folder / self.layout.file(kind, shard)).open("rb", buffering=0) as stream:
                stream.seek(place * size)
                yield stream.read(mark.count * size)

    def _summary(self, shard: int) -> ShardSummary:
        files: list[FileEntry] = []
        labelled = 0
        for kind, dtype in self.layout.dtypes.items():
            name, made = self.layout.file(kind, shard), hashlib.sha256()
            with (self.folder / name).open("rb") as stream:
                while content := stream.read(CHUNK_WINDOWS * self.layout.window_bytes(kind)):
                    made.update(content)
                    if kind == "ids":
                        first = np.frombuffer(content, dtype=dtype)[:: self.layout.n_labels]
                        labelled += int((first != self.layout.nothing).sum())
            files.append({"file": name, "bytes": self.layout.files(shard)[name], "sha256": made.hexdigest()})
        return ShardSummary(files, labelled)


def _pwrite(file: int, data: bytes, offset: int) -> None:
    """All of `data` at `offset`; a single call may write less."""
    rest = memoryview(data)
    while rest:
        count = os.pwrite(file, rest, offset)
        rest, offset = rest[count:], offset + count


def _allocate(path: Path, n_bytes: int) -> None:
    """Make a file whose blocks exist, so that a full disk fails here; one of that size already is left alone."""
    if path.exists() and path.stat().st_size == n_bytes:
        return
    with path.open("wb") as stream:
        try:
            os.posix_fallocate(stream.fileno(), 0, n_bytes)
        except (AttributeError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            for start in range(0, n_bytes, 1 << 20):
                stream.write(bytes(min(1 << 20, n_bytes - start)))

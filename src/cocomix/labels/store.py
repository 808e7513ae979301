"""Label store: concept labels on disk, memory-mapped, aligned with the token stream, with checksums of their inputs.

`LabelReader` is what training and evaluation use, whether labels come from a store (`LabelStore`) or are computed
during training (`LiveLabels` in `labels/labeller.py`). `LabelWriter` writes a store; `StoreLayout` has its shapes and
file names.

Choices:
- A store consists of shards of whole windows, like those of the tokens. Each has a file of ids and, if requested, one
  of scores. Ids take two bytes where the number of concepts allows it, so K_attr = 4 labels of C = 32768 concepts take
  8 bytes per token. Positions without labels hold the largest id.
- Several processes write a store at the same time, and a killed one resumes with any number of processes. Files are
  allocated before the first label, so a full disk stops the work before it starts. Labels are written in place, and
  each run of windows is followed by a mark. The manifest, with the checksum of every file, comes last.
- Every process appends its marks to a file of its own, so no two processes write to the same page. A mark carries a
  checksum of its labels and counts only if the data files still hold them. So nothing has to reach the disk in a
  certain order: labels lost in a power cut count as not written, whatever their mark says.
- Checksums of an opened store are compared with the manifest once (`cocomix.utils.integrity`), the lineage that the
  reader expects every time.
"""

import errno
import hashlib
import math
import os
import secrets
import shutil
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cocomix.utils.advice import delete, for_folder
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import read_sealed, write_sealed
from cocomix.utils.integrity import FileEntry, check_files, note_verified


class LabelReader(ABC):
    """Base class of label sources: labels of the windows of one token stream.

    Attributes:
        n_labels: labels per position, K_attr.
        where: name of the source in messages.
    """

    n_labels: int
    where: str
    weighted: bool = False
    """Whether its labels have weights."""

    def begin_step(self, step: int, total: int) -> None:
        """Called before a step, 0-based, of a training of `total` steps; for labels that depend on it."""
        return

    def weights(self, windows: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
        """Weights of `labels`, as read for `windows`, float32 of their shape; None: 1 each."""
        return None

    @abstractmethod
    def read(self, windows: np.ndarray, seq_len: int) -> np.ndarray:
        """Labels of `windows`, int64 `[len, seq_len, n_labels]`, best first, -100 where there are none.

        Raises:
            CocomixError: the labels are for another `seq_len`.
        """

    @abstractmethod
    def labelled(self, windows: np.ndarray) -> np.ndarray:
        """Number of labelled positions in each of `windows`, int64 `[len]`.

        All processes call it with the same windows at the same time, before each reads its share of them.
        """


FORMAT = 2
LARGEST = 1 << 48
"""Largest accepted number of tokens or windows; sizes in bytes then fit into 64 bits."""
MANIFEST, PENDING = "manifest.json", "pending.json"
BLOCK = 1 << 16
"""Bytes of the ranges of a file that only one process writes: a multiple of the page size of any machine, because two
machines that write to the same page of a shared file can overwrite each other's data."""


@dataclass(frozen=True)
class StoreLayout:
    """Shapes and file names of one store.

    Attributes:
        n_tokens: length of the token stream the labels are aligned with.
        seq_len: tokens per window; labels are computed window by window.
        n_labels: labels per position, K_attr.
        n_latents: number of possible ids; ids are below it.
        shard_windows: windows per shard; the last one may hold fewer.
        scores: whether scores (float32) are stored besides the ids.
        lineage: checksums and settings the labels were computed from.
    """

    n_tokens: int
    seq_len: int
    n_labels: int
    n_latents: int
    shard_windows: int
    scores: bool
    lineage: dict[str, Any]

    @cached_property
    def n_windows(self) -> int:
        return self.n_tokens // self.seq_len

    @cached_property
    def n_shards(self) -> int:
        return math.ceil(self.n_windows / self.shard_windows)

    @cached_property
    def dtypes(self) -> dict[str, np.dtype]:
        """Element type of each kind of file; the largest value of the id type means "no label"."""
        ids = np.dtype("<u2") if self.n_latents < 1 << 16 else np.dtype("<u4")
        return {"ids": ids} | ({"scores": np.dtype("<f4")} if self.scores else {})

    @property
    def no_label(self) -> int:
        """The id that means "no label"."""
        return int(np.iinfo(self.dtypes["ids"]).max)

    def window_bytes(self, kind: str) -> int:
        """Bytes per window in a file of `kind`."""
        return self.seq_len * self.n_labels * self.dtypes[kind].itemsize

    def windows_in(self, shard: int) -> int:
        """Number of windows in `shard`."""
        return min(self.shard_windows, self.n_windows - shard * self.shard_windows)

    def file(self, kind: str, shard: int) -> str:
        """Name of the file of `kind` for `shard`."""
        return f"{kind}-{shard:05d}.bin"

    def files(self, shard: int) -> dict[str, int]:
        """Names and sizes in bytes of the files of `shard`."""
        return {self.file(kind, shard): self.windows_in(shard) * self.window_bytes(kind) for kind in self.dtypes}

    def pieces(self, start: int, count: int) -> Iterator[tuple[int, int, slice]]:
        """Split windows `start` to `start + count` by shard: (shard, place of its first one there, slice of them)."""
        done = 0
        while done < count:
            shard, place = divmod(start + done, self.shard_windows)
            n = min(count - done, self.shard_windows - place)
            yield shard, place, slice(done, done + n)
            done += n

    def blocks(self, windows: np.ndarray) -> np.ndarray:
        """Block of each of `windows`, int64; windows of different blocks share no page of any file."""
        aligned = math.lcm(*(BLOCK // math.gcd(BLOCK, self.window_bytes(kind)) for kind in self.dtypes))
        shard, place = np.divmod(windows, self.shard_windows)
        return shard * math.ceil(self.shard_windows / aligned) + place // aligned

    def to_json(self) -> dict[str, Any]:
        """The layout as JSON-able values."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, content: dict[str, Any], path: Path) -> "StoreLayout":
        """The layout in `content`, which was read from `path`.

        Raises:
            CocomixError: it is damaged or was written by another version.
        """
        again = _redo_hint(path.parent)
        if content.get("format") != FORMAT:
            raise CocomixError(f"{path} was written by another version of cocomix; {again}")
        missing = [name for name in cls.__dataclass_fields__ if name not in content]
        if missing:
            raise CocomixError(f"{path} is damaged ({missing[0]!r} is missing); {again}")
        layout = cls(**{name: content[name] for name in cls.__dataclass_fields__})
        if invalid := layout.invalid_field():
            raise CocomixError(f"{path} is damaged ({invalid} is {getattr(layout, invalid)!r}); {again}")
        return layout

    def invalid_field(self) -> str | None:
        """Name of the first field with an impossible value or type, or None; a damaged file may hold anything."""
        counts = {"n_tokens": LARGEST, "seq_len": self.n_tokens, "n_labels": 1 << 20, "n_latents": (1 << 32) - 1}
        for name, most in (counts | {"shard_windows": LARGEST}).items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                return name
        return next(
            (name for name, kind in (("scores", bool), ("lineage", dict)) if type(getattr(self, name)) is not kind),
            None,
        )


def _redo_hint(folder: Path) -> str:
    return f"{delete(folder)} and run {for_folder('cocomix label', folder)} again"


def read_description(path: Path, missing: str) -> dict[str, Any]:
    """Read the JSON object in `path`; `missing` is the error message if there is no such file."""
    try:
        return read_sealed(path)
    except FileNotFoundError:
        raise CocomixError(missing) from None
    except PermissionError:
        raise
    except (OSError, ValueError):
        raise CocomixError(f"{path} is damaged; {_redo_hint(path.parent)}") from None


MARKS = "marks"
_RECORD = np.dtype([("start", "<i8"), ("count", "<i8"), ("digest", "u1", (16,)), ("check", "<u4"), ("spare", "<u4")])


class Mark(NamedTuple):
    """A record that windows `start` to `start + count`, all of one shard, were written."""

    start: int
    count: int
    digest: bytes
    """checksum of their labels, 16 bytes"""


def digest(parts: Iterable[bytes | memoryview]) -> bytes:
    """Checksum of labels: of the bytes of the ids, then of the scores if there are any."""
    checksum = hashlib.blake2b(digest_size=16)
    for part in parts:
        checksum.update(part)
    return checksum.digest()


class MarkWriter:
    """Appends marks to a file of its own below `folder`, created with the first mark."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / MARKS
        self._file: int | None = None

    def add(self, mark: Mark) -> None:
        """Append `mark` immediately; it stays if the process is killed right after."""
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
        """Flush the marks to disk and close their file."""
        if self._file is not None:
            os.fsync(self._file)
            os.close(self._file)
            self._file = None


def read_marks(folder: Path) -> list[Mark]:
    """All complete marks in `folder`, in the same order for every process; half-written ones are left out."""
    marks = []
    for path in sorted((folder / MARKS).glob("*.bin")):
        content = path.read_bytes()
        complete = len(content) // _RECORD.itemsize * _RECORD.itemsize
        for record in np.frombuffer(content[:complete], dtype=_RECORD):
            if int(record["check"]) == _check(record):
                marks.append(Mark(int(record["start"]), int(record["count"]), record["digest"].tobytes()))
    return marks


def remove_marks(folder: Path) -> None:
    """Remove what a finished store was resumed from.

    Raises:
        OSError: the disk failed; the store is finished all the same, and labelling it again removes the rest.
    """
    (folder / PENDING).unlink(missing_ok=True)
    if (folder / MARKS).exists():
        shutil.rmtree(folder / MARKS)


def _check(record: np.ndarray) -> int:
    return zlib.crc32(record["start"].tobytes() + record["count"].tobytes() + record["digest"].tobytes())


CHUNK_WINDOWS = 1024
"""Windows read at a time for the checksums of a shard."""


class ShardSummary(NamedTuple):
    """Entries of one shard in the manifest."""

    files: list[FileEntry]
    labelled: int
    """number of positions with labels"""


class LabelWriter:
    """Writes labels to the unfinished store in `folder`; `begin` creates one.

    Raises:
        CocomixError: `folder` holds no unfinished store.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        missing = f"{self.folder} holds no labels yet; run {for_folder('cocomix label', self.folder)}"
        path = self.folder / PENDING
        self.layout = StoreLayout.from_json(read_description(path, missing), path)
        self._marks = MarkWriter(self.folder)
        self._shard = -1
        self._open: dict[str, int] = {}

    @classmethod
    def begin(cls, folder: Path | str, layout: StoreLayout) -> "LabelWriter":
        """Create a store, or open an unfinished one of the same layout; one process calls it before the others open it.

        Raises:
            CocomixError: `folder` holds a finished store or one with another layout, or there is no window.
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
        write_sealed(folder / PENDING, layout.to_json())
        return cls(folder)

    def done(self, part: int = 0, parts: int = 1) -> np.ndarray:
        """Whether each window has been written, bool `[n_windows]`, by the marks `part`, `part + parts`, ... alone.

        Only marks whose labels are still in the files count.
        """
        done = np.zeros(self.layout.n_windows, dtype=bool)
        for mark in read_marks(self.folder)[part::parts]:
            if digest(self._stored(mark)) == mark.digest:
                done[mark.start : mark.start + mark.count] = True
        return done

    def write(self, start: int, ids: np.ndarray, scores: np.ndarray, valid: np.ndarray) -> None:
        """Write labels of consecutive windows from `start` on.

        Args:
            ids: integers `[windows, seq_len, n_labels]`.
            scores: floats of the same shape; stored if the layout has scores.
            valid: bool `[windows, seq_len]`; False where a position has no labels.
        """
        layout = self.layout
        content = {"ids": np.where(valid[..., None], ids, layout.no_label)}
        if layout.scores:
            content["scores"] = np.where(valid[..., None], scores, 0)
        for shard, place, part in layout.pieces(start, len(ids)):
            self._open_shard(shard)
            written = []
            for kind, dtype in layout.dtypes.items():
                data = content[kind][part].astype(dtype).tobytes()
                _pwrite(self._open[kind], data, place * layout.window_bytes(kind))
                written.append(data)
            self._marks.add(Mark(start + part.start, part.stop - part.start, digest(written)))

    def close(self) -> None:
        """Flush everything written to disk."""
        self._open_shard(-1)
        self._marks.close()

    def summarise(self, shards: Iterable[int]) -> dict[int, ShardSummary]:
        """Checksums and label counts of `shards`; call it after every process has closed its writer."""
        return {shard: self._summary(shard) for shard in shards}

    def publish(self, summaries: Mapping[int, ShardSummary]) -> None:
        """Write the manifest of all shards and delete the marks; call it once every window is marked.

        Raises:
            CocomixError: windows are missing.
        """
        marked = np.zeros(self.layout.n_windows, dtype=bool)
        for mark in read_marks(self.folder):
            marked[mark.start : mark.start + mark.count] = True
        if not marked.all():
            raise CocomixError(
                f"{int((~marked).sum())} of {len(marked)} windows in {self.folder} have no labels yet;"
                f" run {for_folder('cocomix label', self.folder)}"
            )
        files = [entry for shard in range(self.layout.n_shards) for entry in summaries[shard].files]
        labelled = sum(summary.labelled for summary in summaries.values())
        manifest = self.layout.to_json() | {"files": files, "labelled": labelled}
        note_verified(self.folder, files)
        write_sealed(self.folder / MANIFEST, manifest, durable=True)
        remove_marks(self.folder)

    def finish(self) -> None:
        """Close and publish a store that a single process has written."""
        self.close()
        self.publish(self.summarise(range(self.layout.n_shards)))

    def _open_shard(self, shard: int) -> None:
        """Flush and close the open files, then open those of `shard` for writing; -1: open none."""
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
            name, checksum = self.layout.file(kind, shard), hashlib.sha256()
            with (self.folder / name).open("rb") as stream:
                while content := stream.read(CHUNK_WINDOWS * self.layout.window_bytes(kind)):
                    checksum.update(content)
                    if kind == "ids":
                        first = np.frombuffer(content, dtype=dtype)[:: self.layout.n_labels]
                        labelled += int((first != self.layout.no_label).sum())
            files.append({"file": name, "bytes": self.layout.files(shard)[name], "sha256": checksum.hexdigest()})
        return ShardSummary(files, labelled)


def _pwrite(file: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`; a single `os.pwrite` may write less."""
    remaining = memoryview(data)
    while remaining:
        count = os.pwrite(file, remaining, offset)
        remaining, offset = remaining[count:], offset + count


def _allocate(path: Path, n_bytes: int) -> None:
    """Create a file with all its blocks allocated, so that a full disk fails here; keep one of that size."""
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


SHARD_TOKENS = 100_000_000
"""Default number of tokens per shard, as for the token shards."""


class LabelStore(LabelReader):
    """A finished label store.

    Attributes:
        layout: shapes, file names and lineage.
    """

    def __init__(self, folder: Path, layout: StoreLayout, labelled: int) -> None:
        self.folder, self.layout, self._labelled = folder, layout, labelled
        self.n_labels, self.where = layout.n_labels, str(folder)
        self._maps = {
            kind: [
                np.memmap(
                    folder / layout.file(kind, shard),
                    dtype=dtype,
                    mode="r",
                    shape=(layout.windows_in(shard), layout.seq_len, layout.n_labels),
                )
                for shard in range(layout.n_shards)
            ]
            for kind, dtype in layout.dtypes.items()
        }

    @staticmethod
    def create(
        folder: Path | str,
        *,
        n_tokens: int,
        seq_len: int,
        n_labels: int,
        n_latents: int,
        lineage: dict[str, Any],
        shard_tokens: int = SHARD_TOKENS,
        scores: bool = False,
    ) -> LabelWriter:
        """Create a store, or open an unfinished one of the same layout; see `LabelWriter.begin`."""
        shard_windows = max(1, shard_tokens // seq_len)
        layout = StoreLayout(n_tokens, seq_len, n_labels, n_latents, shard_windows, scores, lineage)
        return LabelWriter.begin(folder, layout)

    @staticmethod
    def finished(folder: Path | str) -> bool:
        """Whether `folder` holds a finished store; its checksums are not compared."""
        return (Path(folder) / MANIFEST).exists()

    @classmethod
    def open(cls, folder: Path | str, *, expect: dict[str, Any] | None = None, verify: bool = True) -> "LabelStore":
        """Open a finished store.

        Args:
            expect: lineage that the store must have.
            verify: compare checksums with the manifest, unless that was done before; see `cocomix.utils.integrity`.

        Raises:
            CocomixError: the store is unfinished, truncated, altered, or of another lineage.
        """
        folder = Path(folder)
        again = _redo_hint(folder)
        missing = f"the labels in {folder} are not finished; run {for_folder('cocomix label', folder)}"
        manifest = read_description(folder / MANIFEST, missing)
        layout = StoreLayout.from_json(manifest, folder / MANIFEST)
        for name, value in (expect or {}).items():
            if layout.lineage.get(name) != value:
                raise CocomixError(
                    f"the labels in {folder} were made with another {name}"
                    f" ({_short(layout.lineage.get(name))} instead of {_short(value)}); {again}"
                )
        if not _lists_all_files(manifest, layout):
            raise CocomixError(f"{folder / MANIFEST} is damaged; {again}")
        check_files(folder, manifest["files"], what="label file", hint=again, verify=verify)
        return cls(folder, layout, manifest["labelled"])

    def read(self, windows: np.ndarray, seq_len: int) -> np.ndarray:
        self._check_length(seq_len)
        stored = self._gather("ids", windows)
        ids = stored.astype(np.int64)
        ids[stored == self.layout.no_label] = -100
        return ids

    def read_scores(self, windows: np.ndarray, seq_len: int) -> np.ndarray:
        """Scores of `windows`, float32 `[len, seq_len, n_labels]`, 0 where there are no labels.

        Raises:
            CocomixError: the store has no scores, or its labels are for another `seq_len`.
        """
        self._check_length(seq_len)
        if not self.layout.scores:
            raise CocomixError(f"the labels in {self.folder} were stored without scores; label again with scores: true")
        return self._gather("scores", windows)

    def at(self, windows: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Labels of single positions, int64 `[len, n_labels]`, -100 where there are none; and scores, if stored."""
        stored = self._gather_at("ids", windows, places)
        ids = stored.astype(np.int64)
        ids[stored == self.layout.no_label] = -100
        return ids, self._gather_at("scores", windows, places) if self.layout.scores else None

    def labelled(self, windows: np.ndarray) -> np.ndarray:
        return (self._gather("ids", windows)[..., 0] != self.layout.no_label).sum(-1)

    def valid_share(self) -> float:
        """Share of positions that have labels."""
        return self._labelled / (self.layout.n_windows * self.layout.seq_len)

    def _gather_at(self, kind: str, windows: np.ndarray, places: np.ndarray) -> np.ndarray:
        shards, rows = np.divmod(np.asarray(windows, dtype=np.int64), self.layout.shard_windows)
        out = np.empty((len(shards), self.layout.n_labels), dtype=self.layout.dtypes[kind])
        for shard in np.unique(shards):
            chosen = shards == shard
            out[chosen] = self._maps[kind][shard][rows[chosen], places[chosen]]
        return out

    def _check_length(self, seq_len: int) -> None:
        if seq_len != self.layout.seq_len:
            raise CocomixError(
                f"the labels in {self.folder} are for windows of {self.layout.seq_len} tokens, not {seq_len};"
                " label again or train with that seq_len"
            )

    def _gather(self, kind: str, windows: np.ndarray) -> np.ndarray:
        shards, places = np.divmod(np.asarray(windows, dtype=np.int64), self.layout.shard_windows)
        shape = (len(shards), self.layout.seq_len, self.layout.n_labels)
        out = np.empty(shape, dtype=self.layout.dtypes[kind])
        for shard in np.unique(shards):
            chosen = shards == shard
            out[chosen] = self._maps[kind][shard][places[chosen]]
        return out


def _lists_all_files(manifest: dict[str, Any], layout: StoreLayout) -> bool:
    """Whether the manifest lists exactly the files of the layout, with their sizes; others would not be checked."""
    files, labelled = manifest.get("files"), manifest.get("labelled")
    if not isinstance(files, list) or type(labelled) is not int or len(files) != layout.n_shards * len(layout.dtypes):
        return False
    entries = [entry for entry in files if isinstance(entry, dict)]
    listed = [(entry.get("file"), entry.get("bytes"), type(entry.get("sha256"))) for entry in entries]
    expected = [(*file, str) for shard in range(layout.n_shards) for file in layout.files(shard).items()]
    return sorted(listed, key=str) == sorted(expected, key=str)


def _short(value: Any) -> str:
    return str(value)[:12]

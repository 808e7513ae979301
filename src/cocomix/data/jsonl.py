"""JSON-lines files, plain or packed."""

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, ClassVar

from cocomix.data.document import Document, Skipped
from cocomix.data.places import files_at, remaining
from cocomix.data.source import Place, TextSource
from cocomix.utils.errors import CocomixError, reason
from cocomix.utils.files import parse_json

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

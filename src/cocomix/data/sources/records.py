"""Records in JSON: one a line, or in an array."""

import re
from collections.abc import Iterator
from pathlib import Path

from cocomix.data.sources.base import Document, Place, Skipped, Tally, TextSource, check_text, text_in
from cocomix.data.sources.files import (
    UNREADABLE,
    Stream,
    files_at,
    open_file,
    remaining,
    stamp_of,
    unpacked_name,
    with_packed,
)
from cocomix.utils.errors import reason
from cocomix.utils.files import parse_json

LONGEST = 64 << 20
"""Bytes of a line or an element of JSON; longer ones are skipped."""
JSON_LINES, JSON_FILE = (".jsonl", ".ndjson"), ".json"


class JsonlSource(TextSource):
    """JSON lines or a JSON array, one object a record; `field` names the text, `meta.body` one inside another.

    A file, a folder of them, or a pattern (`texts/*.jsonl`). Files packed by gzip, bzip2 or xz are unpacked, and by
    zstd if pyarrow is installed. One record is in memory, of at most 64 MiB: longer ones are skipped. A place is an
    offset into the (unpacked) file, so resuming in a plain file is free.
    """

    name = "jsonl"

    def __init__(self, path: str | Path, field: str = "text") -> None:
        super().__init__(path)
        check_text(path=path, field=field)
        self.path, self.field = path, field

    def read(self, place: Place) -> Iterator[Document | Skipped]:
        # A resumed source's files were counted when it began.
        for number, name, path, inside in remaining(self._files(Tally() if place else self.left_out), place):
            lines, offset = inside.get("lines", 0), inside.get("offset", 0)
            try:
                split = elements if _in_an_array(path) else by_line
                with open_file(path) as stream:
                    stream.forward(offset)
                    for record, length in split(stream):
                        lines, offset = lines + 1, offset + length
                        if record.strip():
                            self._place = {"file": number, "name": name, "lines": lines, "offset": offset}
                            yield self._record(record, f"{name}:{lines}")
            except UNREADABLE as error:
                self._place = {"file": number, "name": name, "done": True}
                yield Skipped(f"{name}:{lines + 1}", f"the rest of the file cannot be read ({reason(error)})")

    def _files(self, left_out: Tally) -> list[tuple[str, Path]]:
        return files_at(self.path, with_packed(*JSON_LINES, JSON_FILE), "a .jsonl file", left_out)

    def stamp(self) -> str:
        return stamp_of(path for _, path in self._files(Tally()))

    def _record(self, line: bytes, place: str) -> Document | Skipped:
        if len(line) > LONGEST:
            return Skipped(place, f"a line of more than {LONGEST >> 20} MiB")
        try:
            row = parse_json(line)
        except ValueError as error:
            return Skipped(place, f"not JSON ({reason(error)})")
        return text_in(row, self.field, place)


def _in_an_array(path: Path) -> bool:
    """Whether a file holds an array, or objects of several lines, rather than one a line; from its first line."""
    with open_file(path) as stream:
        while (start := stream.read(1)) and BETWEEN_LINES.match(start):
            pass
        if start != b"{" or not unpacked_name(path.name).endswith(JSON_FILE):
            return start == b"["
        line = start + stream.readline(LONGEST)
    try:
        parse_json(line)
    except ValueError:
        return True
    return False


def by_line(stream: Stream) -> Iterator[tuple[bytes, int]]:
    """The lines and their lengths; a line that is too long is cut just above the limit, because a packed file of
    kilobytes can hold a line of gigabytes."""
    while line := stream.readline(LONGEST + 1):
        length = len(line)
        while len(line) > LONGEST and not line.endswith(b"\n") and (rest := stream.readline(1 << 20)):
            length += len(rest)
            if rest.endswith(b"\n"):
                break
        yield line, length


BETWEEN_LINES = re.compile(rb"[\s\xef\xbb\xbf]")
"""What stands before the first record; a byte-order mark, too."""
BETWEEN = re.compile(rb"[\s,\[\]\xef\xbb\xbf]*")
"""What stands between the objects of an array, or of several."""
SIGN = re.compile(rb'[{}"\\]')
SCALAR_ENDS = re.compile(rb"[\s,\[\]{]")


def elements(stream: Stream) -> Iterator[tuple[bytes, int]]:
    """The elements of arrays and the values beside them, with the lengths up to their ends.

    Arrays inside arrays are opened, too. An element is found by its braces and quotes alone, so that a malformed one
    is a bad record and the next is read. One that is too long is cut just above the limit.
    """
    buffer, before = b"", 0
    while buffer or (buffer := stream.read(1 << 16)):
        match = BETWEEN.match(buffer)
        start = match.end() if match else 0
        if start == len(buffer):
            buffer, before = b"", before + start
            continue
        element, length, buffer = _element(buffer[start:], stream)
        yield element, before + start + length
        before = 0


def _element(buffer: bytes, stream: Stream) -> tuple[bytes, int, bytes]:
    """The element that `buffer` begins with, its length, and what was read beyond it."""
    kept, length = bytearray(), 0  # of the blocks that hold no end
    depth, quoted, escaped = 0, False, False
    is_scalar = buffer[:1] not in b'{"'
    while True:
        end, place = None, 0
        if is_scalar:
            match = SCALAR_ENDS.search(buffer)
            end = match.start() if match else None
        else:
            if escaped:
                place, escaped = 1, False
            while match := SIGN.search(buffer, place):
                sign, place = match[0], match.end()
                if sign == b"\\":
                    escaped = quoted and place == len(buffer)
                    place += quoted
                elif sign == b'"':
                    quoted = not quoted
                elif not quoted:
                    depth += 1 if sign == b"{" else -1
                if depth <= 0 and not quoted:
                    end = place
                    break
        taken = len(buffer) if end is None else end
        length += taken
        kept += buffer[: max(0, min(taken, LONGEST + 1 - len(kept)))]
        if end is not None:
            return bytes(kept), length, buffer[end:]
        buffer = stream.read(1 << 16)
        if not buffer:
            return bytes(kept), length, b""

"""Files that sources read: which there are, whether they changed, and reading packed ones within limits.

A packed file is known by its first bytes, else by its ending. What unpacks to much more than its size is read no
further than a limit: a file of megabytes can hold terabytes.
"""

import bz2
import gzip
import hashlib
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from glob import glob
from itertools import takewhile
from pathlib import Path
from typing import IO, Any

from cocomix.data.sources.base import Place, Tally
from cocomix.utils.errors import CocomixError

LinkNote = Callable[[str, Path], None]
"""Told the reason and the path of what is left out."""
ENDINGS = (".gz", ".bz2", ".xz", ".lzma", ".zst")
"""Endings of packed files."""
UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What reading a damaged file raises, `TooMuch` among it."""


def unpacked_name(name: str) -> str:
    """A file's name without the ending of its packing."""
    return next((name.removesuffix(ending) for ending in ENDINGS if name.endswith(ending)), name)


def with_packed(*endings: str) -> tuple[str, ...]:
    """File endings, and those of the same files when packed."""
    return tuple(ending + packing for ending in endings for packing in ("", *ENDINGS))


def files_at(path: str | Path, endings: tuple[str, ...], what: str, left_out: Tally) -> list[tuple[str, Path]]:
    """(name, path) of the file at `path`, of the files below the folder there, or of those that match the glob.

    In path order. The name is used in ids and reports: a single file's own name, else the path below the folder, or
    below the part of the glob without wildcards.

    Args:
        left_out: counts the files of a folder that end otherwise, and links that are not followed.

    Raises:
        CocomixError: there is none; `what` is the kind of file, for the message.
    """
    path = Path(path)
    if path.is_file():
        return [(path.name, path)]
    if path.is_dir():
        root, matches = path, []
        for file in below(path, lambda why, where: left_out.add(why, str(where.relative_to(path)))):
            if file.name.endswith(endings):
                matches.append(file)
            else:
                left_out.add(f"its name does not end in {endings[0]} or the like", str(file.relative_to(path)))
    else:
        root = Path(*takewhile(lambda part: not any(sign in part for sign in "*?["), path.parts))
        matches = []
        for file in map(Path, glob(str(path), recursive=True)):
            if _through_a_loop(file.parent, root):
                left_out.add(BACK, str(file))
            else:
                matches.append(file)
    files = sorted(file for file in matches if file.is_file())
    if not files:
        also = f"; {left_out.count} files were left out, the first, {left_out.first()}" if left_out.count else ""
        raise CocomixError(
            f"there is no file {path}{also}; set corpus.options.path to {what}, a folder of them, or a pattern such as"
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


BACK = "a link back to a folder above it"


def below(folder: Path, left_out: LinkNote = lambda _why, _where: None) -> Iterator[Path]:
    """Files below `folder` in path order, linked folders included; in memory is one listing a level."""
    return _below(folder, frozenset(), left_out)


def _below(folder: Path, above: frozenset[Path], left_out: LinkNote) -> Iterator[Path]:
    real = folder.resolve()
    if real in above:
        left_out(BACK, folder)
        return
    try:
        with os.scandir(folder) as entries:
            listing = sorted((entry.name, entry.is_dir(), entry.is_file()) for entry in entries)
    except PermissionError:
        raise CocomixError(f"{folder} cannot be read; fix its permissions or name it in corpus.options.skip") from None
    for name, is_folder, is_file in listing:
        if is_folder:
            yield from _below(folder / name, above | {real}, left_out)
        elif is_file:
            yield folder / name
        else:
            left_out("no file, or a link that leads nowhere", folder / name)


def _through_a_loop(folder: Path, root: Path) -> bool:
    """Whether a linked folder leads back to one above it on the way from `root` to `folder`."""
    way = [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]
    return any(part.is_symlink() for part in way) and len({part.resolve() for part in way}) < len(way)


def stamp_of(files: Iterable[Path]) -> str:
    """Checksum of the files' names, sizes and times of change."""
    digest = hashlib.sha256()
    for file in files:
        try:
            status = file.stat()
            facts: Any = (status.st_size, status.st_mtime_ns)
        except OSError as error:
            facts = error.errno
        digest.update(f"{os.fsencode(file)!r} {facts}\n".encode())
    return digest.hexdigest()


# --- packed files ---

MOST_UNPACKED = 64 << 20
"""Bytes that any packed file may hold, however small it is."""
MOST_TIMES = 100
"""Times its own size that a larger one may hold. Text packs 3 to 20 times, repetitive text more."""


class TooMuch(OSError):
    """A packed file holds more than its limit."""


class Stream:
    """Reads a file, unpacked, up to `limit` bytes; None reads all.

    Raises:
        TooMuch: from `read` and `readline`, beyond the limit.
    """

    def __init__(self, stream: IO[bytes], limit: int | None) -> None:
        self._stream, self._limit, self._read = stream, limit, 0

    def read(self, size: int) -> bytes:
        """At most `size` bytes."""
        return self._counted(self._stream.read(size))

    def readline(self, size: int) -> bytes:
        """The rest of a line, at most `size` bytes of it."""
        return self._counted(self._stream.readline(size))

    def _counted(self, block: bytes) -> bytes:
        self._read += len(block)
        if self._limit is not None and self._read > self._limit:
            raise TooMuch(
                f"it unpacks to more than {self._limit >> 20} MiB, far more than its size; unpack it if that is right"
            )
        return block

    def forward(self, offset: int) -> None:
        """Go to `offset` from the start; in a packed file by reading."""
        if self._limit is None:
            self._stream.seek(offset)
            return
        while offset and (block := self.read(min(offset, 1 << 20))):
            offset -= len(block)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


def open_file(path: Path) -> Stream:
    """A file to read bytes from, unpacked if it is packed.

    Raises:
        OSError: it cannot be opened. CocomixError: a package is missing.
    """
    opener = _opener(path)
    if opener is None:
        return Stream(path.open("rb"), None)
    return Stream(opener(path), max(MOST_UNPACKED, MOST_TIMES * path.stat().st_size))


def _gzip(path: Path) -> Any:
    return gzip.open(path, "rb")


def _bz2(path: Path) -> Any:
    return bz2.open(path, "rb")


def _xz(path: Path) -> Any:
    return lzma.open(path, "rb")


def _zstd(path: Path) -> Any:
    try:
        from compression import zstd  # pyright: ignore[reportMissingImports]  # from Python 3.14 on

        return zstd.open(path, "rb")
    except ModuleNotFoundError:
        pass
    try:
        import pyarrow  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise CocomixError(f"unpacking {path} needs the extra: pip install 'cocomix[hub]'") from None
    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))  # pyright: ignore


OPENERS: dict[str, Callable[[Path], Any]] = {".gz": _gzip, ".bz2": _bz2, ".xz": _xz, ".lzma": _xz, ".zst": _zstd}
"""By file ending."""
FIRST_BYTES = {b"\x1f\x8b\x08": _gzip, b"\xfd7zXZ\x00": _xz, b"\x28\xb5\x2f\xfd": _zstd}
"""What packed files begin with and no text in UTF-8 does; bzip2's mark is looked for with the block behind it."""
BZIP2, BZIP2_BLOCK = b"BZh", b"1AY&SY"


def _opener(path: Path) -> Callable[[Path], Any] | None:
    with path.open("rb") as stream:
        head = stream.read(10)
    if head.startswith(BZIP2) and head[4:] == BZIP2_BLOCK:
        return _bz2
    known = next((opener for start, opener in FIRST_BYTES.items() if head.startswith(start)), None)
    return known or OPENERS.get(path.suffix)

"""Labels of many positions as a compressed file, and back to the last id: how a concept pack stores them.

A set has labels of one rule with up to three signs. They are kept as three lists a position, without scores:

- the labels of `signed`, and those of `helpful`, which never share a concept;
- those of `absolute` follow from these: merged, they are the best of both by |score|, so one bit a label says which of
  the two lists it comes from. Where a sign has no labels (fewer than K_attr positive scores), its list holds the few
  that `absolute` needs. Where scores tie so that the labels are no such merger, they are kept as a third list.

A concept that an earlier list of the position has, of this set or one before, is a reference to it; any other is its
rank by frequency, in planes of one byte, of which the high ones compress well. A file is a sequence of xz streams, each
of a size that follows from those before it: a table of ranks, then for each block of positions the flags, the bits of
`absolute`, the references, and the planes of ranks.
"""

import lzma
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from cocomix.utils.errors import CocomixError

NO_LABEL = -100
EMPTY = -1
LISTS = ("signed", "helpful", "absolute")
"""Signs, in the order of their bits in the flags and of their lists."""
THIRD, COVERED = 1 << 6, 1 << 7
"""Flags: `absolute` is kept as a list of its own; the position was labelled, whether or not with success."""
BLOCK = 1 << 19
"""Positions in a block."""
MOST_SLOTS = 254
"""Slots before a list that it can refer to."""
MEMORY = 1 << 26
"""Bytes that a decompressor may take beside its output."""
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 0, "lp": 0, "pb": 0, "dict_size": 1 << 22}]


class Rows(NamedTuple):
    """Labels of one set at consecutive positions."""

    flags: np.ndarray
    """uint8 `[n]`: bit i where the sign `LISTS[i]` has labels, `THIRD`, `COVERED`"""
    merged: np.ndarray
    """bool `[n, k]`: whether the label of `absolute` is from the list of `helpful`"""
    slots: np.ndarray
    """int32 `[n, 3 k]`: the three lists, `EMPTY` where they are shorter"""

    @property
    def k(self) -> int:
        """Labels a position K_attr."""
        return self.merged.shape[1]


def to_rows(labels: Mapping[str, np.ndarray], covered: np.ndarray) -> Rows:
    """Labels by sign, int64 `[n, k]` each with `NO_LABEL` where there are none, as rows.

    Args:
        covered: bool `[n]`, positions that were labelled.
    """
    n, k = next(iter(labels.values())).shape
    none = np.full((n, k), EMPTY, dtype=np.int32)
    lists = [
        np.where(labels[sign] < 0, EMPTY, labels[sign]).astype(np.int32) if sign in labels else none for sign in LISTS
    ]
    valid = [found[:, 0] >= 0 for found in lists]
    flags = np.where(covered, COVERED, 0).astype(np.uint8)
    for place, has in enumerate(valid):
        flags |= np.where(has, 1 << place, 0).astype(np.uint8)
    signed, helpful, absolute = lists
    in_signed = (absolute[..., None] == signed[:, None, :]).any(-1) & valid[0][:, None]
    in_helpful = (absolute[..., None] == helpful[:, None, :]).any(-1) & valid[1][:, None]
    merged = in_helpful | (valid[0] & ~valid[1])[:, None] & ~in_signed
    merged &= valid[2][:, None]
    slots = np.concatenate(
        [_or_prefix(signed, valid[0], absolute, valid[2][:, None] & ~merged),
         _or_prefix(helpful, valid[1], absolute, merged), none], axis=1,
    )  # fmt: skip
    rows = Rows(flags, merged, slots)
    wrong = valid[2] & (_merge(rows) != absolute).any(-1)
    flags[wrong] |= THIRD
    merged[wrong] = False
    slots[wrong, 2 * k :] = absolute[wrong]
    for place in (0, 1):  # what a sign without labels lent to a merger that is not needed
        slots[wrong & ~valid[place], place * k : (place + 1) * k] = EMPTY
    return rows


def to_labels(rows: Rows, sign: str) -> np.ndarray:
    """The labels of `sign`, int64 `[n, k]` with `NO_LABEL` where there are none."""
    place, k = LISTS.index(sign), rows.k
    found = rows.slots[:, place * k : (place + 1) * k]
    if sign == "absolute":
        found = np.where((rows.flags & THIRD)[:, None] != 0, found, _merge(rows))
    return np.where(((rows.flags >> place) & 1)[:, None] != 0, found, NO_LABEL)


def _or_prefix(own: np.ndarray, valid: np.ndarray, absolute: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The sign's own labels; where it has none, the `chosen` ones of `absolute`, in order."""
    order = np.argsort(~chosen, axis=1, kind="stable")
    front = np.take_along_axis(np.where(chosen, absolute, EMPTY), order, 1)
    return np.where(valid[:, None], own, front)


def _merge(rows: Rows) -> np.ndarray:
    """The labels of `absolute` from the other lists, `[n, k]`."""
    k = rows.k
    count = np.cumsum(rows.merged, axis=1)
    place = np.where(rows.merged, k + count - 1, np.arange(k) - count)
    return np.take_along_axis(rows.slots, place, 1)


def _lengths(flags: np.ndarray, merged: np.ndarray) -> np.ndarray:
    """How many slots of each list are filled, int64 `[n, 3]`."""
    k = merged.shape[1]
    signed, helpful, absolute = (((flags >> place) & 1) != 0 for place in range(3))
    third = (flags & THIRD) != 0
    borrowed = np.where(absolute & ~third, merged.sum(1), 0)
    lent = np.where(absolute & ~third, k - merged.sum(1), 0)
    return np.stack([np.where(signed, k, lent), np.where(helpful, k, borrowed), np.where(third, k, 0)], axis=1)


def _filled(flags: np.ndarray, merged: np.ndarray) -> np.ndarray:
    """Slots that hold a concept, bool `[n, 3 k]`."""
    k = merged.shape[1]
    return (np.arange(k) < _lengths(flags, merged)[..., None]).reshape(len(flags), 3 * k)


class SetLayout(NamedTuple):
    """What a reader must know of one set of a file."""

    positions: int
    n_latents: int
    k: int

    @property
    def planes(self) -> int:
        """Bytes of a rank."""
        return max(1, (int(self.n_latents - 1).bit_length() + 7) // 8)

    def blocks(self) -> Iterator[slice]:
        """The positions of each block."""
        for start in range(0, self.positions, BLOCK):
            yield slice(start, min(start + BLOCK, self.positions))


def write_set(path: Path, layout: SetLayout, blocks: Sequence[tuple[Rows, Sequence[np.ndarray]]]) -> None:
    """Write one set to `path`.

    Args:
        blocks: of each of `layout.blocks()` the rows, and the slots of the sets before this one, int32 `[n, any]`.
    """
    references = [_references(before, rows.slots) for rows, before in blocks]
    counts = np.zeros(layout.n_latents, dtype=np.int64)
    for (rows, _), refers in zip(blocks, references, strict=True):
        counts += np.bincount(rows.slots[(rows.slots >= 0) & (refers == 0)], minlength=layout.n_latents)
    order = np.argsort(-counts, kind="stable")
    rank = np.argsort(order)
    with path.open("wb") as stream:
        _write(stream, order.astype("<u4"))
        for (rows, _), refers in zip(blocks, references, strict=True):
            filled = _filled(rows.flags, rows.merged)
            _write(stream, rows.flags)
            _write(stream, np.packbits(rows.merged[_merges(rows.flags)], axis=1))
            _write(stream, refers.T[filled.T])
            ranks = rank[rows.slots.T[filled.T & (refers.T == 0)]]
            for plane in reversed(range(layout.planes)):
                _write(stream, ((ranks >> (8 * plane)) & 255).astype(np.uint8))


def read_set(path: Path, layout: SetLayout, before: Callable[[], Sequence[np.ndarray]]) -> Iterator[Rows]:
    """The blocks of the set that `write_set` wrote to `path`.

    Args:
        before: gives the slots of the sets before this one, of the block that is read.

    Raises:
        CocomixError: the file is cut, altered, or has ids outside the autoencoder.
    """
    k = layout.k
    with path.open("rb") as stream:
        reader = StreamReader(stream, path)
        order = reader.read(layout.n_latents, "<u4").astype(np.int64)
        if (np.sort(order) != np.arange(layout.n_latents)).any():
            raise _damaged(path, "its table of concepts is not one")
        for block in layout.blocks():
            n = block.stop - block.start
            flags = reader.read(n)
            merges = _merges(flags)
            bits = reader.read(int(merges.sum()) * -(-k // 8)).reshape(-1, -(-k // 8))
            merged = np.zeros((n, k), dtype=bool)
            merged[merges] = np.unpackbits(bits, axis=1, count=k)
            filled = _filled(flags, merged)
            refers = np.zeros((3 * k, n), dtype=np.int64)
            refers[filled.T] = reader.read(int(filled.sum()))
            new = filled.T & (refers == 0)
            ranks = np.zeros(int(new.sum()), dtype=np.int64)
            for _ in range(layout.planes):
                ranks = (ranks << 8) | reader.read(len(ranks))
            if len(ranks) and ranks.max() >= layout.n_latents:
                raise _damaged(path, f"it has the concept number {ranks.max()} of {layout.n_latents}")
            slots = np.full((3 * k, n), EMPTY, dtype=np.int32)
            slots[new] = order[ranks]
            rows = Rows(flags, merged, slots.T)
            yield rows._replace(slots=_resolved(before(), rows.slots, refers.T, filled, path))
        reader.end()


def _merges(flags: np.ndarray) -> np.ndarray:
    return ((flags & 4) != 0) & ((flags & THIRD) == 0)


def _references(before: Sequence[np.ndarray], own_slots: np.ndarray) -> np.ndarray:
    """For each slot, 1 + the first column with the same concept, of those `before` and the earlier own ones, or 0."""
    slots = np.concatenate([*before, own_slots], axis=1)
    own = slots.shape[1] - own_slots.shape[1]
    found = np.zeros((len(slots), slots.shape[1] - own), dtype=np.uint8)
    for place in range(max(1, own), slots.shape[1]):
        earlier = slots[:, : min(place, MOST_SLOTS)]
        same = (earlier == slots[:, place : place + 1]) & (earlier >= 0)
        found[:, place - own] = np.where(same.any(1), same.argmax(1) + 1, 0)
    return found


def _resolved(
    earlier: Sequence[np.ndarray], slots: np.ndarray, refers: np.ndarray, filled: np.ndarray, path: Path
) -> np.ndarray:
    everything = np.concatenate([*earlier, slots], axis=1)
    own = everything.shape[1] - slots.shape[1]
    for place in range(slots.shape[1]):
        rows = np.flatnonzero(refers[:, place])
        columns = refers[rows, place] - 1
        if len(rows) and columns.max() >= own + place:
            raise _damaged(path, "it refers to a label behind the one it stands for")
        everything[rows, own + place] = everything[rows, columns]
    if ((everything[:, own:] >= 0) != filled).any():
        raise _damaged(path, "it refers to a label that is not there")
    return everything[:, own:]


class StreamReader:
    """Reads xz streams one after the other, each of which must hold exactly the bytes that are asked for."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream, self._path, self._rest = stream, path, b""

    def read(self, count: int, dtype: str = "|u1") -> np.ndarray:
        """The next stream, `count` values of `dtype`."""
        size = count * np.dtype(dtype).itemsize
        decompressor, parts, have = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY), [], 0
        try:
            while not decompressor.eof:
                given = self._rest if decompressor.needs_input else b""
                self._rest = b"" if given else self._rest
                if decompressor.needs_input and not given and not (given := self._stream.read(1 << 16)):
                    raise _damaged(self._path, "it is cut")
                part = decompressor.decompress(given, max_length=size - have + 1)
                have += len(part)
                parts.append(part)
                if have > size:
                    break
        except (lzma.LZMAError, MemoryError) as error:
            raise _damaged(self._path, str(error)) from None
        if have != size:
            raise _damaged(self._path, f"a part of it has not the {size} bytes it must have")
        self._rest = decompressor.unused_data + self._rest
        return np.frombuffer(b"".join(parts), dtype=dtype)

    def end(self) -> None:
        """Refuse a file with more in it."""
        if self._rest or self._stream.read(1):
            raise _damaged(self._path, "it is longer than it must be")


def _write(stream: BinaryIO, values: np.ndarray) -> None:
    stream.write(compressed(values))


def compressed(values: np.ndarray) -> bytes:
    """`values` as one xz stream."""
    data = np.ascontiguousarray(values).tobytes()
    return lzma.compress(data, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=FILTERS)


def _damaged(path: Path, what: str) -> CocomixError:
    return CocomixError(f"{path} is damaged ({what}); get the pack again, or build it again")


def write_ends(path: Path, ends: np.ndarray, *, unknown: int, end: int) -> None:
    """Write the bytes that each token of a stream has read to `path`, as differences.

    Args:
        ends: int64 `[n]`, never falling inside of a document; `unknown` and `end` stand for themselves, and the first
            token behind an `end` begins a document.
    """
    with path.open("wb") as stream:
        codes = _end_codes(ends, unknown, end)
        for start in range(0, len(codes), BLOCK):
            part = codes[start : start + BLOCK]
            for plane in reversed(range(4)):
                _write(stream, ((part >> (8 * plane)) & 255).astype(np.uint8))


def read_ends(path: Path, positions: int, *, unknown: int, end: int) -> np.ndarray:
    """What `write_ends` wrote, int64 `[positions]`.

    Raises:
        CocomixError: the file is cut or altered.
    """
    codes = np.empty(positions, dtype=np.int64)
    with path.open("rb") as stream:
        reader = StreamReader(stream, path)
        for start in range(0, positions, BLOCK):
            part = np.zeros(min(BLOCK, positions - start), dtype=np.int64)
            for _ in range(4):
                part = (part << 8) | reader.read(len(part))
            codes[start : start + len(part)] = part
        reader.end()
    if positions and codes[-1] != 0:
        raise _damaged(path, "its last document has no end")
    total = np.cumsum(np.maximum(codes - 2, 0))
    before = np.concatenate([[0], total[codes == 0]])[np.cumsum(codes == 0) - (codes == 0)]
    return np.where(codes == 0, end, np.where(codes == 1, unknown, total - before))


def _end_codes(ends: np.ndarray, unknown: int, end: int) -> np.ndarray:
    """0 for an end, 1 for an unknown, else 2 + the bytes since the last known one of the document."""
    last = ends == end
    document = np.cumsum(last) - last
    known = ~last & (ends != unknown)
    places = np.where(known, np.arange(len(ends)), -1)
    latest = np.concatenate([[-1], np.maximum.accumulate(places)[:-1]]) if len(ends) else places
    same = (latest >= 0) & (document[np.maximum(latest, 0)] == document)
    since = np.where(known, ends - np.where(same, ends[np.maximum(latest, 0)], 0), 0)
    return np.where(last, 0, np.where(known, since + 2, 1))

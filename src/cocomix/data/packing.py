"""Best-fit packing: windows that hold whole documents where these fit, in place of slices of the stream.

Pieces are put into windows longest first, each into the window in which it leaves least room (Ding et al. 2024, "Fewer
truncations improve language modeling"). A document longer than a window is cut into full windows and a rest first.

Choices:
- There is no padding. Room that no piece fits is filled by cutting others: the emptiest windows are taken apart, and
  their pieces fill the fullest. Only the last partial window is dropped, as in the stream. One exception: with a
  beginning-of-text token that is not the end-of-text token, room for one token is filled by that token.
- Every piece but a window's last ends with the end-of-text token, so where documents begin can be read off the tokens.
- Every window begins with the beginning-of-text token where the policy has one. If it is not the end-of-text token, so
  does every piece in it; else the end of the piece before is that.
- `BLOCK` documents are packed at a time, and what fills no window goes to the next block; so memory does not grow with
  the corpus. The same tokens give the same windows.

Windows are numbered as those of the stream are, so everything that reads windows (the sampler, labels) is as before.
"""

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cocomix.utils.advice import delete, for_folder
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import read_sealed, sha256, write_sealed
from cocomix.utils.integrity import check_files

MANIFEST = "packing.json"
SEGMENTS, WINDOWS = "packing-segments.int64", "packing-windows.int64"
BLOCK = 1 << 20
"""Documents packed at a time; about 300 bytes each are in memory."""


class Piece(NamedTuple):
    """A part of the stream that stands in one window without a gap."""

    begin: int
    length: int
    inserted: int
    """1 if a beginning-of-text token is put before it, else 0"""

    @property
    def cost(self) -> int:
        """Tokens of a window that it takes."""
        return self.length + self.inserted


class Policy(NamedTuple):
    """What best-fit packing must know of a policy of special tokens."""

    first: bool
    """whether the beginning-of-text token is put before every window, being also the end-of-text token"""
    continued: bool
    """whether it is put before every piece that does not begin a document, being another token"""

    @classmethod
    def of(cls, bos_id: int | None, eos_id: int) -> "Policy":
        """By the ids of both tokens."""
        return cls(bos_id == eos_id, bos_id is not None and bos_id != eos_id)


class Packing:
    """The windows of one folder of token shards.

    Attributes:
        seq_len: tokens per window.
        n_windows: number of windows.
        figures: what `write_packing` returned.
        checksum: sha256 of the windows' files, 64 hex digits each.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.seq_len: int = manifest["seq_len"]
        self.figures: dict[str, Any] = manifest["figures"]
        self.n_windows: int = self.figures["windows"]
        self.checksum = "".join(entry["sha256"] for entry in manifest["files"])
        self._edges = np.memmap(folder / WINDOWS, dtype="<i8", mode="r", shape=(self.n_windows + 1,))
        self._segments = np.empty((0, 3), dtype=np.int64)
        if self.n_windows:  # an empty file cannot be mapped
            self._segments = np.memmap(folder / SEGMENTS, dtype="<i8", mode="r", shape=(int(self._edges[-1]), 3))

    @classmethod
    def open(cls, folder: Path, *, verify: bool) -> "Packing | None":
        """The packing of a folder of token shards; None if its windows are slices of the stream.

        Raises:
            CocomixError: it is damaged.
        """
        if not (folder / MANIFEST).exists():
            return None
        hint = f"{delete(folder)} and run {for_folder('cocomix tokenize', folder)} again"
        try:
            manifest = read_sealed(folder / MANIFEST)
            check_files(folder, manifest["files"], what="packing file", hint=hint, verify=verify)
            return cls(folder, manifest)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CocomixError(f"the packing of {folder} is damaged ({error}); {hint}") from error

    def places(self, indices: np.ndarray) -> np.ndarray:
        """Where in the stream each token of windows `indices` is, int64 `[len, seq_len]`; -1: a BOS put in."""
        rows = [self._segments[self._edges[index] : self._edges[index + 1]] for index in indices.tolist()]
        if not rows:
            return np.empty((0, self.seq_len), dtype=np.int64)
        begins, lengths, inserted = np.concatenate(rows).T
        costs = lengths + inserted
        ends = np.cumsum(costs)
        offsets = np.arange(ends[-1]) - np.repeat(ends - costs + inserted, costs)
        places = np.where(offsets < 0, -1, np.repeat(begins, costs) + offsets)
        return places.reshape(len(rows), self.seq_len)


def write_packing(
    folder: Path, starts: np.ndarray, n_tokens: int, seq_len: int, policy: Policy, block: int = BLOCK
) -> dict[str, Any]:
    """Pack the documents of finished token shards in `folder`; if that was done already, return its figures.

    Args:
        starts: where documents begin in the stream, int64 `[n_documents]`.

    Returns:
        `windows`; `documents`; `cut`, those that no window holds whole, and `cut_by_stream`, those that slices of the
        stream would cut; `dropped`, tokens in no window, and `padded`, tokens of windows that are no text's.
    """
    if (folder / MANIFEST).exists():
        return read_sealed(folder / MANIFEST)["figures"]
    windows = segments = whole = dropped = padded = 0
    rest: list[Piece] = []
    known: dict[int, int] = {}  # lengths of the documents that `rest` is of
    capacity = seq_len - policy.first
    with (folder / SEGMENTS).open("wb") as pieces_file, (folder / WINDOWS).open("wb") as edges_file:
        edges_file.write(np.zeros(1, dtype="<i8").tobytes())
        for first in range(0, len(starts), block):
            begins = np.asarray(starts[first : first + block])
            ends = np.append(starts[first + 1 : first + block + 1], n_tokens)[: len(begins)]
            lengths = dict(zip(begins.tolist(), (ends - begins).tolist(), strict=True))
            packed, rest = pack(rest, lengths, capacity, policy)
            known |= lengths
            for window in packed:
                padded += sum(piece.length == 0 for piece in window)
                whole += sum(known.get(piece.begin) == piece.length for piece in window)
                if policy.first:
                    window[0] = window[0]._replace(inserted=1)
            segments_of = np.array([len(window) for window in packed], dtype="<i8")
            edges_file.write((segments + np.cumsum(segments_of)).astype("<i8").tobytes())
            pieces_file.write(np.array([piece for window in packed for piece in window], dtype="<i8").tobytes())
            windows, segments = windows + len(packed), segments + int(segments_of.sum())
            known = {piece.begin: known[piece.begin] for piece in rest if piece.begin in known}
        dropped = sum(piece.length for piece in rest)
        for stream in (pieces_file, edges_file):
            stream.flush()
            os.fsync(stream.fileno())
    figures = {
        "windows": windows,
        "documents": len(starts),
        "cut": len(starts) - whole,
        "cut_by_stream": _cut_by_stream(starts, n_tokens, seq_len - (policy.first or policy.continued)),
        "dropped": dropped,
        "padded": padded,
    }
    files = [
        {"file": name, "bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
        for name in (SEGMENTS, WINDOWS)
    ]
    write_sealed(folder / MANIFEST, {"seq_len": seq_len, "figures": figures, "files": files}, durable=True)
    return figures


def pack(
    rest: list[Piece], documents: dict[int, int], capacity: int, policy: Policy
) -> tuple[list[list[Piece]], list[Piece]]:
    """Full windows of `rest`, the pieces left over by an earlier call, and of `documents`, and what is left over.

    Args:
        documents: begin in the stream and length of each.
        capacity: tokens of a window for pieces.
    """
    full: list[list[Piece]] = []
    pieces = list(rest)
    for begin, length in documents.items():
        for piece in _fitting(begin, length, capacity, policy):
            if piece.cost == capacity:
                full.append([piece])
            else:
                pieces.append(piece)
    bins = _best_fit(pieces, capacity)
    return _filled(bins, full, capacity, policy)


def _fitting(begin: int, length: int, capacity: int, policy: Policy) -> Iterator[Piece]:
    """A document cut so that each piece fits a window."""
    done = 0
    while done < length:
        inserted = int(policy.continued and done > 0)
        taken = min(length - done, capacity - inserted)
        yield Piece(begin + done, taken, inserted)
        done += taken


def _best_fit(pieces: list[Piece], capacity: int) -> list[list[Piece]]:
    """Windows of at most `capacity`: longest piece first, each where it leaves least room."""
    bins: list[list[Piece]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # bit r is set where a window has room r
    for piece in sorted(pieces, key=lambda piece: -piece.cost):
        enough = rooms >> piece.cost
        if enough:
            room = piece.cost + (enough & -enough).bit_length() - 1
            number = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
            bins[number].append(piece)
        else:
            room, number = capacity, len(bins)
            bins.append([piece])
        room -= piece.cost
        with_room[room].append(number)
        rooms |= 1 << room
    return bins


def _filled(
    bins: list[list[Piece]], full: list[list[Piece]], capacity: int, policy: Policy
) -> tuple[list[list[Piece]], list[Piece]]:
    """`full` and the fullest of `bins`, filled up with pieces of the emptiest; and the pieces that fill no window."""
    rooms = [capacity - sum(piece.cost for piece in window) for window in bins]
    order = deque(sorted(range(len(bins)), key=rooms.__getitem__))
    fillers: deque[Piece] = deque()
    while order:
        number = order.popleft()
        window, room = bins[number], rooms[number]
        while room:
            if not fillers and order:
                fillers.extend(bins[order.pop()])
            if not fillers:
                return full, window
            if policy.continued and room == 1:
                window.append(Piece(window[-1].begin + window[-1].length, 0, 1))
                break
            piece = fillers.popleft()
            if piece.cost > room:
                taken = room - piece.inserted
                fillers.appendleft(Piece(piece.begin + taken, piece.length - taken, int(policy.continued)))
                piece = piece._replace(length=taken)
            window.append(piece)
            room -= piece.cost
        full.append(window)
    return full, list(fillers)


def _cut_by_stream(starts: np.ndarray, n_tokens: int, step: int) -> int:
    """Documents that windows of `step` tokens of the stream cut."""
    cut = 0
    for first in range(0, len(starts), BLOCK):
        begins = np.asarray(starts[first : first + BLOCK])
        ends = np.append(starts[first + 1 : first + BLOCK + 1], n_tokens)[: len(begins)]
        cut += int((begins // step != (ends - 1) // step).sum())
    return cut

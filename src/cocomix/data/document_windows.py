"""Windows of a token stream that follow its documents, for a concept model that reads text in windows of its own.

No window crosses the border of a document. Windows of one document overlap: the next one begins a stride later, and is
used from the position on at which the one before ends. With a stride of half a window every used position has at least
half a window of context, or its whole document so far.

The first windows of all documents come first, then the others, both in the order of the documents: a pass over
neighbouring windows has positions to use in the same places, except for ends of documents.
"""

from typing import NamedTuple

import numpy as np

from cocomix.data.shards import TokenShards


class WindowBounds(NamedTuple):
    """What of each window is used."""

    first: np.ndarray
    """first used position, int64 `[len]`"""
    lengths: np.ndarray
    """tokens before the padding, int64 `[len]`; the last of them has no next token"""

    def used(self, seq_len: int) -> np.ndarray:
        """Used positions that have a next token, bool `[len, seq_len]`."""
        place = np.arange(seq_len)
        return (place >= self.first[:, None]) & (place < self.lengths[:, None] - 1)


class DocumentWindows:
    """Windows of `seq_len` tokens of `shards` that follow documents, padded behind the end of a document.

    Where the policy has a beginning-of-text token, every window begins with it.

    Args:
        overlapping: the next window begins half a window later; else it begins where this one ends.
    """

    def __init__(self, shards: TokenShards, seq_len: int, *, overlapping: bool) -> None:
        self.shards, self.seq_len = shards, seq_len
        self.special = shards.special
        self.fingerprint, self.folder = shards.fingerprint, shards.folder
        self.documents, self.n_tokens = shards.documents, shards.n_tokens
        self.width = seq_len - self.special.first_position
        """tokens of the document in a window"""
        self.stride = max(1, self.width // 2) if overlapping else self.width
        self.starts, ends = shards.text_bounds().T
        """place of each document's first token after BOS in the stream, int64 `[n_documents]`"""
        self.sizes = ends + 1 - self.starts
        """tokens of each document without BOS, with EOS, int64 `[n_documents]`"""
        self._later = np.cumsum(-(-np.maximum(self.sizes - self.width, 0) // self.stride))

    def n_windows(self, seq_len: int) -> int:
        """Number of windows."""
        self._check(seq_len)
        return len(self.starts) + int(self._later[-1])

    def labelled_tokens(self, seq_len: int) -> int:
        """Length of a stream whose slices are the windows, as labels are stored."""
        return self.n_windows(seq_len) * seq_len

    def windows(self, indices: np.ndarray, seq_len: int) -> np.ndarray:
        """Windows `indices`, int64 `[len, seq_len]`; EOS behind the end of a document."""
        places = self.places(indices, seq_len)
        tokens = self.shards.at(np.maximum(places, 0))
        tokens[places < 0] = self.special.eos_id
        if self.special.bos_id is not None:
            tokens[:, 0] = self.special.bos_id
        return tokens

    def places(self, indices: np.ndarray, seq_len: int) -> np.ndarray:
        """Where in the stream each token of `indices` is, int64 `[len, seq_len]`; -1 for BOS and padding."""
        self._check(seq_len)
        document, number = self._parts(indices)
        offsets = number[:, None] * self.stride + np.arange(self.width)
        places = np.where(offsets < self.sizes[document][:, None], self.starts[document][:, None] + offsets, -1)
        return np.pad(places, ((0, 0), (self.special.first_position, 0)), constant_values=-1)

    def span(self, begin: int, end: int) -> np.ndarray:
        """Tokens `begin` to `end` - 1 of the stream, as `TokenShards.span`."""
        return self.shards.span(begin, end)

    def text_bounds(self) -> np.ndarray:
        """As `TokenShards.text_bounds`."""
        return self.shards.text_bounds()

    def bounds(self, indices: np.ndarray) -> WindowBounds:
        """What of each of `indices` is used; no position of a document is used twice."""
        document, number = self._parts(indices)
        before = self.special.first_position
        lengths = np.minimum(self.sizes[document] - number * self.stride, self.width) + before
        first = np.where(number == 0, 0, max(0, self.width - self.stride - 1)) + before
        return WindowBounds(first, lengths)

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The window that uses each of the stream's `positions`, and the place in it, int64 of the same shape.

        -1 and 0 for a position that none uses: BOS and EOS.
        """
        document = np.searchsorted(self.shards.documents, positions, side="right") - 1
        offset = positions - self.starts[document]
        number = np.maximum(0, -(-(offset - (self.width - 2)) // self.stride))
        before = np.append(0, self._later)[document]
        window = np.where(number == 0, document, len(self.starts) + before + number - 1)
        used = (offset >= 0) & (offset < self.sizes[document] - 1)
        place = offset - number * self.stride + self.special.first_position
        return np.where(used, window, -1), np.where(used, place, 0)

    def n_used(self) -> int:
        """Number of positions that are used by some window: all with a next token in their document."""
        return int((self.sizes - 1).sum())

    def _parts(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Document and number within it of each of `indices`."""
        indices = np.asarray(indices, dtype=np.int64)
        n_windows = self.n_windows(self.seq_len)
        if indices.size and (indices.min() < 0 or indices.max() >= n_windows):
            raise IndexError(f"window indices must be in 0..{n_windows - 1} (seq_len {self.seq_len})")
        later = indices - len(self.starts)
        owner = np.searchsorted(self._later, later, side="right")
        document = np.where(later < 0, indices, owner)
        number = later - np.append(0, self._later)[document] + 1
        return document, np.where(later < 0, 0, number)

    def _check(self, seq_len: int) -> None:
        if seq_len != self.seq_len:
            raise ValueError(f"these are windows of {self.seq_len} tokens, not {seq_len}")

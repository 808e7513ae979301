"""Bytes of its document that each token of a stream has read, kept in a file beside the stream.

The start of a document has read nothing. Its end-of-text token has read all of it and that it ends, which is more than
the last token of the text has, so it corresponds to another end of the same document alone.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cocomix.data.byte_offsets import UNKNOWN, ByteOffsets, corresponding
from cocomix.data.shards import TokenShards
from cocomix.data.sources import Document
from cocomix.utils.errors import CocomixError

END = -2
"""Of an end-of-text token."""
ENDS = "ends"
"""Name of the folder of such files, one for each split."""
TYPE = np.dtype("<i4")


class Located(NamedTuple):
    """How many tokens of texts could be located."""

    tokens: int
    located: int

    def and_of(self, ends: np.ndarray, shards: TokenShards) -> "Located":
        """With those of one more document, of which `document_ends` says what its tokens have read."""
        text = ends[len(shards.special.before_document) : -1]
        return Located(self.tokens + len(text), self.located + int((text != UNKNOWN).sum()))


def document_ends(shards: TokenShards, documents: Iterable[Document], offsets: ByteOffsets) -> Iterator[np.ndarray]:
    """What the tokens of each document have read, int64: bytes, `UNKNOWN` or, the last one, `END`.

    Raises:
        CocomixError: the texts are not those of the tokens.
    """
    bounds, count = shards.text_bounds().tolist(), 0
    before = np.zeros(len(shards.special.before_document), dtype=np.int64)
    for document in documents:
        if count >= len(bounds):
            break
        ends = offsets.ends(document.text, shards.span(*bounds[count]))
        ends[ends > np.iinfo(TYPE).max] = UNKNOWN
        yield np.concatenate([before, ends, [END]])
        count += 1
    if count != len(bounds):
        raise CocomixError(f"the tokens in {shards.folder} are not those of the corpus; delete them and tokenize again")


def write_ends(path: Path, shards: TokenShards, documents: Iterable[Document], offsets: ByteOffsets) -> Located:
    """Write what each token of `shards` has read to `path`."""
    located = Located(0, 0)
    with path.open("wb") as stream:
        for ends in document_ends(shards, documents, offsets):
            located = located.and_of(ends, shards)
            stream.write(ends.astype(TYPE).tobytes())
    return located


def read_ends(path: Path) -> np.ndarray:
    """The file that `write_ends` wrote, mapped, `[n_tokens]`."""
    return np.memmap(path, dtype=TYPE, mode="r")


def corresponding_ends(ends: np.ndarray, other_ends: np.ndarray) -> np.ndarray:
    """`corresponding` for whole documents in a stream: the two end-of-text tokens correspond as well.

    Args:
        ends: what the tokens of a document have read, `[tokens]`, the last one `END`.
        other_ends: the same of another tokenization, `[other_tokens]`.
    """
    places = corresponding(ends[:-1].astype(np.int64), other_ends[:-1].astype(np.int64))
    return np.append(places, len(other_ends) - 1)

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


def document_ends(
    shards: TokenShards, documents: Iterable[Document], offsets: ByteOffsets
) -> Iterator[tuple[int, np.ndarray]]:
    """Place of each document in the stream, and what its tokens have read, int64: bytes, `UNKNOWN` or `END`.

    Raises:
        CocomixError: the texts are not those of the tokens.
    """
    starts = [*shards.documents.tolist(), shards.n_tokens]
    before = len(shards.special.before_document)
    count = 0
    for document in documents:
        if count + 1 >= len(starts):
            break
        begin, end = starts[count], starts[count + 1]
        ids = shards.span(begin + before, end - 1)
        ends = offsets.ends(document.text, ids)
        ends[ends > np.iinfo(TYPE).max] = UNKNOWN
        yield begin, np.concatenate([np.zeros(before, dtype=np.int64), ends, [END]])
        count += 1
    if count + 1 != len(starts):
        raise CocomixError(f"the tokens in {shards.folder} are not those of the corpus; delete them and tokenize again")


def write_ends(path: Path, shards: TokenShards, documents: Iterable[Document], offsets: ByteOffsets) -> Located:
    """Write what each token of `shards` has read to `path`."""
    tokens = located = 0
    with path.open("wb") as stream:
        for _, ends in document_ends(shards, documents, offsets):
            text = ends != END
            text[: len(shards.special.before_document)] = False
            tokens += int(text.sum())
            located += int((ends[text] != UNKNOWN).sum())
            stream.write(ends.astype(TYPE).tobytes())
    return Located(tokens, located)


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

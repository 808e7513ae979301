"""UTF-8 bytes of text that each token stands for: what losses of different vocabularies are compared by.

- The bytes of a document's tokens add up to those of its text, whatever the tokenizer: they come from `ByteOffsets`. A
  token that cannot be located stands for none, and the next one that can stands for its bytes, too.
- Special tokens that a policy puts into the stream or before a window stand for no bytes.
- With GPT-2's byte alphabet, and nothing that changes a text before it, a token always stands for the same bytes; its
  id alone says how many (`VocabularyBytes`). Otherwise the documents are read once (`DocumentBytes`).
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerBase

from cocomix.data.byte_offsets import UNKNOWN, ByteOffsets
from cocomix.data.shards import TokenShards
from cocomix.utils.errors import CocomixError


class ByteCounts(ABC):
    """Bytes that the tokens of one folder of shards stand for."""

    @abstractmethod
    def of_windows(self, indices: np.ndarray, seq_len: int) -> np.ndarray:
        """Bytes of each token of windows `indices`, int64 `[len, seq_len]`."""

    @abstractmethod
    def of_span(self, begin: int, end: int) -> np.ndarray:
        """Bytes of tokens `begin` to `end` - 1 of the stream, int64 `[end - begin]`."""


class VocabularyBytes(ByteCounts):
    """Bytes by token id.

    Args:
        lengths: bytes of each token of the vocabulary, 0 for special ones, int64 `[V]`.
    """

    def __init__(self, shards: TokenShards, lengths: np.ndarray) -> None:
        self._shards, self._lengths = shards, lengths

    def of_windows(self, indices: np.ndarray, seq_len: int) -> np.ndarray:
        return self._lengths[self._shards.windows(indices, seq_len)]

    def of_span(self, begin: int, end: int) -> np.ndarray:
        return self._lengths[self._shards.span(begin, end)]


class DocumentBytes(ByteCounts):
    """Bytes by place in the stream; four bytes a token are in memory.

    Args:
        offsets: of the tokenizer that made the tokens.
        texts: the documents, in the order of the stream.

    Raises:
        CocomixError: there are more or fewer texts than documents in the stream.
    """

    def __init__(self, shards: TokenShards, offsets: ByteOffsets, texts: Iterable[str]) -> None:
        self._shards = shards
        self._counts = np.zeros(shards.n_tokens, dtype=np.uint32)
        bounds, number = shards.text_bounds().tolist(), -1
        for number, text in enumerate(texts):
            if number >= len(bounds):
                break
            begin, end = bounds[number]
            self._counts[begin:end] = document_bytes(offsets, text, shards.span(begin, end))
        if number + 1 != len(bounds):
            raise CocomixError(
                f"{shards.folder} holds {len(bounds)} documents and its text another number, so it was made"
                " from another text"
            )

    def of_windows(self, indices: np.ndarray, seq_len: int) -> np.ndarray:
        places = self._shards.places(indices, seq_len)
        return np.where(places < 0, 0, self._counts[np.maximum(places, 0)].astype(np.int64))

    def of_span(self, begin: int, end: int) -> np.ndarray:
        return self._counts[begin:end].astype(np.int64)


def document_bytes(offsets: ByteOffsets, text: str, ids: np.ndarray) -> np.ndarray:
    """Bytes of `text` that each of its tokens stands for, int64 `[tokens]`; they add up to the whole text's."""
    if not len(ids):
        return np.zeros(0, dtype=np.int64)
    ends = offsets.ends(text, ids)
    ends = np.maximum.accumulate(np.where(ends == UNKNOWN, 0, ends))
    ends[-1] = len(text.encode(errors="surrogatepass"))
    return np.diff(ends, prepend=0)


def byte_counts(
    tokenizer: PreTrainedTokenizerBase, shards: TokenShards, texts: Callable[[], Iterable[str]] | None
) -> ByteCounts | None:
    """Bytes of the tokens of `shards`.

    Args:
        tokenizer: the one that made them.
        texts: gives the documents in the order of the stream; None: they are not at hand.

    Returns:
        None where the texts are needed and not at hand.
    """
    offsets = ByteOffsets(tokenizer)
    if _same_everywhere(tokenizer):
        lengths = offsets.lengths(max(shards.vocab_size, len(tokenizer)))
        special = [*tokenizer.all_special_ids, shards.special.eos_id, shards.special.start_id]
        lengths[special] = 0
        return VocabularyBytes(shards, lengths)
    return None if texts is None else DocumentBytes(shards, offsets, texts())


def _same_everywhere(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a token stands for the bytes of its entry in the vocabulary, in every text."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    state = json.loads(backend.to_str())
    rule = json.dumps(state["pre_tokenizer"])
    return (
        state["normalizer"] is None
        and '"ByteLevel"' in rule
        and '"add_prefix_space": true' not in rule
        and state["model"].get("type") == "BPE"
        and set(pre_tokenizers.ByteLevel.alphabet()) <= backend.get_vocab(with_added_tokens=False).keys()
        and not any(token["lstrip"] or token["rstrip"] for token in state["added_tokens"])
    )

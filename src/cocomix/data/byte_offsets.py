"""How many bytes of its document each token has read: what two tokenizers have in common.

Concept labels are made at a teacher's tokens, and a student may have another tokenizer. Two positions correspond if
both have read exactly the same bytes of the same text, so offsets are counted in bytes of UTF-8: a token may end inside
a character.

Choices:
- The bytes of a token are read from the vocabulary: GPT-2's byte alphabet, or plain text with `▁` for a space and
  `<0x0A>` for a byte, as SentencePiece writes it. Whether they are right is checked with every document: its tokens,
  joined, must give its text. A tokenizer that puts a space before each text is recognised there.
- A document that a normaliser changed is compared with its parts, changed one by one: where they give the same tokens'
  text, their borders correspond. The Tokenizers library's own offsets do not serve: under NFC, a token that has read a
  letter and its accent is located before the accent.
- A token without an offset corresponds to nothing. No offset is ever guessed.
"""

import json
import re
from collections.abc import Callable, Iterator

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

UNKNOWN = -1
"""Offset of a token that cannot be located."""
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "▁"
_WORDS = re.compile(r"\s|\S+")


class ByteOffsets:
    """Byte offsets of a tokenizer's tokens.

    Args:
        tokenizer: a tokenizer of Transformers; without a Tokenizers backend, documents that its vocabulary does not
            give back have no offsets.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._backend: Tokenizer | None = backend
        vocabulary = {int(i): str(token) for token, i in tokenizer.get_vocab().items()}
        added = {int(i): str(token) for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
        read = _from_byte_alphabet if _uses_byte_alphabet(backend, vocabulary) else _from_plain_text
        self._bytes: list[bytes] = [b""] * (max(vocabulary, default=-1) + 1)
        for i, token in vocabulary.items():
            self._bytes[i] = added[i].encode(errors="surrogatepass") if i in added else read(token)

    def ends(self, text: str, ids: np.ndarray) -> np.ndarray:
        """Bytes of `text` that have been read after each of its tokens.

        Args:
            text: a document.
            ids: its tokens without special tokens, int `[tokens]`.

        Returns:
            int64 `[tokens]`, never falling; `UNKNOWN` for a token that cannot be located.
        """
        content = text.encode(errors="surrogatepass")
        pieces = [self._bytes[i] if i < len(self._bytes) else b"" for i in ids.tolist()]
        joined = b"".join(pieces)
        ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
        if joined == content:
            return ends
        if joined == b" " + content:
            return np.maximum(ends - 1, 0)
        return self._located(text, joined, ends)

    def lengths(self, vocab_size: int) -> np.ndarray:
        """Bytes of each token as its vocabulary writes it, int64 `[vocab_size]`; 0 where there is no such token."""
        lengths = np.zeros(vocab_size, dtype=np.int64)
        known = [len(piece) for piece in self._bytes[:vocab_size]]
        lengths[: len(known)] = known
        return lengths

    def _located(self, text: str, joined: bytes, ends: np.ndarray) -> np.ndarray:
        """Offsets in `text` of `ends` in `joined`, which is `text` after the tokenizer's normaliser."""
        unknown = np.full(len(ends), UNKNOWN, dtype=np.int64)
        normalizer = None if self._backend is None else self._backend.normalizer
        if normalizer is None:
            return unknown
        parts = list(_separately_changed(text, normalizer.normalize_str))
        if "".join(changed for _, changed in parts).encode(errors="surrogatepass") != joined:
            return unknown
        before, after = (
            np.cumsum([0, *(len(part.encode(errors="surrogatepass")) for part in side)])
            for side in zip(*parts, strict=True)
        )
        place = np.searchsorted(after, ends, side="right") - 1
        rest = ends - after[place]
        same = np.array([part == changed for part, changed in parts] + [False])
        border = (rest == 0) & (np.searchsorted(after, ends) == place)  # not where a part has vanished
        return np.where(border | ((rest > 0) & same[place]), before[place] + rest, UNKNOWN)


def _separately_changed(text: str, change: Callable[[str], str]) -> Iterator[tuple[str, str]]:
    """Parts of `text` and what each becomes: characters, or a whole word where characters depend on each other."""
    for word in _WORDS.findall(text):
        characters = [(character, change(character)) for character in word]
        changed = change(word)
        if "".join(after for _, after in characters) == changed:
            yield from characters
        else:
            yield word, changed


def corresponding(ends: np.ndarray, other_ends: np.ndarray) -> np.ndarray:
    """The token of another tokenization of the same text that has read exactly the same bytes.

    Args:
        ends: see `ByteOffsets.ends`, int64 `[tokens]`.
        other_ends: the same of the other tokenization, int64 `[other_tokens]`.

    Returns:
        Places in `other_ends`, int64 `[tokens]`, the last one where several have read the same bytes; -1 where there is
        none.
    """
    located = np.flatnonzero(other_ends != UNKNOWN)
    if not len(located):
        return np.full(len(ends), -1, dtype=np.int64)
    places = np.searchsorted(other_ends[located], ends, side="right") - 1
    matches = (places >= 0) & (ends != UNKNOWN)
    matches &= other_ends[located][np.maximum(places, 0)] == ends
    return np.where(matches, located[np.maximum(places, 0)], -1)


def _uses_byte_alphabet(backend: Tokenizer | None, vocabulary: dict[int, str]) -> bool:
    """Whether tokens are written in GPT-2's byte alphabet."""
    if backend is not None:
        return '"ByteLevel"' in json.dumps(
            [json.loads(backend.to_str())[part] for part in ("pre_tokenizer", "decoder")]
        )
    return set(bytes_to_unicode().values()) <= set(vocabulary.values())


_TO_BYTE: dict[str, int] = {character: byte for byte, character in bytes_to_unicode().items()}


def _from_byte_alphabet(token: str) -> bytes:
    if all(character in _TO_BYTE for character in token):
        return bytes(_TO_BYTE[character] for character in token)
    return token.encode(errors="surrogatepass")


def _from_plain_text(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    if byte is not None:
        return bytes([int(byte[1], 16)])
    return token.replace(_SPACE, " ").encode(errors="surrogatepass")

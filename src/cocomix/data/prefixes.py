"""Bytes of a vocabulary's tokens, and for each token the longest other one that it begins with."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""A byte of its own, in vocabularies that fall back on bytes."""
SPACE = "▁"


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes | None]:
    """The bytes of each token by id; None for special tokens and for ids without a token.

    Byte-level vocabularies (GPT-2's kind) write bytes as letters; others write text, with a mark for a space and
    `<0x0A>` for a byte.
    """
    added: dict[int, Any] = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)}
    vocabulary = {token: number for token, number in tokenizer.get_vocab().items() if number not in special}
    found: list[bytes | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
    letters = _letters()
    byte_level = all(set(token) <= letters.keys() for token, number in vocabulary.items() if number not in added)
    for token, number in vocabulary.items():
        byte = BYTE.fullmatch(token)
        if number in added:
            found[number] = token.encode("utf-8", "replace")
        elif byte_level:
            found[number] = bytes(letters[letter] for letter in token)
        elif byte is not None:
            found[number] = bytes([int(byte[1], 16)])
        else:
            found[number] = token.replace(SPACE, " ").encode("utf-8", "replace")
    return found


def longest_prefixes(tokens: Sequence[bytes | None]) -> np.ndarray:
    """For each token the id of the longest shorter token that it begins with, int64 `[V]`; -100 where there is none.

    Of several tokens with the same bytes the one with the lowest id is taken.
    """
    ids: dict[bytes, int] = {}
    for number, text in enumerate(tokens):
        if text:
            ids.setdefault(text, number)
    found = np.full(len(tokens), -100, dtype=np.int64)
    for number, text in enumerate(tokens):
        lengths = range(len(text) - 1, 0, -1) if text else ()
        found[number] = next((ids[text[:length]] for length in lengths if text and text[:length] in ids), -100)
    return found


def _letters() -> dict[str, int]:
    """The byte behind each letter of a byte-level vocabulary: printable bytes are themselves, others follow at 256."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}

"""Cutting a very long document into pieces whose tokens, joined, are those of the whole.

An encoder takes about 110 bytes a character, so a text of gigabytes must be cut. With the splitting rule
of GPT-2 (a byte-level BPE, no normaliser) no pre-token holds a blank after a character that is none, and what lies
left of such a place is matched without a look beyond it: cut there, nothing changes. Other tokenizers get their
documents whole.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

_PLACE = re.compile(r"\S(?=[ \n\r\t])")


def may_cut(tokenizer: Tokenizer) -> bool:
    """Whether `pieces` leaves this tokenizer's tokens as they are."""
    state: dict[str, Any] = json.loads(tokenizer.to_str())
    rule = state["pre_tokenizer"] or {}
    return (
        state["normalizer"] is None
        and rule.get("type") == "ByteLevel"
        and rule.get("use_regex", False)
        and not rule.get("add_prefix_space", True)
        and state["model"].get("type") == "BPE"
        and not state["model"].get("dropout")
        and not any(_sees_blanks(token) for token in state["added_tokens"])
    )


def _sees_blanks(token: dict[str, Any]) -> bool:
    return token["lstrip"] or token["rstrip"] or token["single_word"] or any(map(str.isspace, token["content"]))


def pieces(text: str, at_least: int) -> Iterator[str]:
    """Parts of `text`, each but the last of `at_least` characters up to the next place to cut."""
    start = 0
    while len(text) - start > at_least and (place := _PLACE.search(text, start + at_least - 1)) is not None:
        yield text[start : place.end()]
        start = place.end()
    yield text[start:]

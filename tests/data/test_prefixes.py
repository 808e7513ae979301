"""Bytes of tokens and their longest prefixes, against the tokenizers' own words and a loop over all pairs."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from cocomix.data import train_tokenizer
from cocomix.data.prefixes import longest_prefixes, token_bytes

TEXT = "the theatre there, then: thérapie — naïve 'the' 日本語 the\n\tother"


def test_bytes_of_a_byte_level_vocabulary_are_what_it_decodes(tmp_path: Path) -> None:
    tokenizer = train_tokenizer([TEXT] * 3, 300, tmp_path)
    found = token_bytes(tokenizer)
    assert len(found) == len(tokenizer) and found[tokenizer.eos_token_id] is None
    assert {one for one in found if one and len(one) == 1} == {bytes([byte]) for byte in range(256)}
    ids = tokenizer(TEXT)["input_ids"]
    assert b"".join(found[number] or b"" for number in ids) == TEXT.encode()


def test_bytes_of_a_vocabulary_of_text() -> None:
    vocabulary = {"<s>": 0, "▁the": 1, "<0x0A>": 2, "é": 3, "▁": 4, "<|user|>": 6}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<s>")), eos_token="<s>"
    )
    assert token_bytes(tokenizer) == [None, b" the", b"\n", "é".encode(), b" ", None, b"<|user|>"]


def test_by_hand() -> None:
    tokens = [None, b"t", b"th", b"the", b" the", b" ", b"them", b"x", b"th", b""]
    expected = [-100, -100, 1, 2, 5, -100, 3, -100, 1, -100]
    assert longest_prefixes(tokens).tolist() == expected


@pytest.mark.parametrize("seed", range(3))
def test_it_equals_a_loop_over_all_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = [bytes(rng.integers(97, 99, rng.integers(1, 6)).astype(np.uint8)) for _ in range(40)]
    for one, prefix in zip(tokens, longest_prefixes(tokens), strict=True):
        shorter = [other for other in tokens if len(other) < len(one) and one.startswith(other)]
        longest = max(shorter, key=len, default=None)
        assert (longest is None and prefix == -100) or tokens.index(longest or b"") == prefix

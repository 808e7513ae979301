"""Bytes of tokens: they add up to the texts, whatever the tokenizer, and decoding says the same."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix.data import Document, SpecialTokens, tokenize_corpus
from cocomix.data.byte_counts import DocumentBytes, VocabularyBytes, byte_counts
from cocomix.data.byte_offsets import ByteOffsets
from cocomix.evaluation.perplexity import perplexity, strided_perplexity
from cocomix.utils.errors import CocomixError
from tests.data.test_byte_offsets import TOKENIZERS
from tests.helpers.tokenizer_families import FAMILIES

TEXTS = ["the road, the ship", "naïve café é 字", "the THE <eot> İ\n 🇫🇷👩\u200d👩", "x"]


def documents() -> list[Document]:
    return [Document(str(number), text, {}) for number, text in enumerate(TEXTS)]


def summed(counts: np.ndarray, starts: list[int]) -> list[int]:
    return [int(counts[begin:end].sum()) for begin, end in zip(starts, [*starts[1:], len(counts)], strict=True)]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("bos", ["auto", True])
def test_a_documents_bytes_are_its_texts(tmp_path: Path, name: str, bos: bool) -> None:
    tokenizer = TOKENIZERS[name]
    shards = tokenize_corpus(tokenizer, documents(), tmp_path, special=SpecialTokens.of_tokenizer(tokenizer, bos))
    counts = byte_counts(tokenizer, shards, lambda: iter(TEXTS))
    assert isinstance(counts, VocabularyBytes if name in ("bytes", "small", "large") else DocumentBytes)
    expected = [len(text.encode()) for text in TEXTS]
    assert summed(counts.of_span(0, shards.n_tokens), shards.documents.tolist()) == expected
    places = shards.places(np.arange(shards.n_windows(5)), 5)
    assert (places < 0).any() == (shards.special.bos_id is not None)
    by_place = np.where(places < 0, 0, counts.of_span(0, shards.n_tokens)[places])
    assert np.array_equal(counts.of_windows(np.arange(len(places)), 5), by_place)
    assert (byte_counts(tokenizer, shards, None) is None) == isinstance(counts, DocumentBytes)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(tmp_path: Path, family: str) -> None:
    tokenizer = FAMILIES[family](tmp_path / "tokenizer")
    shards = tokenize_corpus(tokenizer, documents()[:1], tmp_path / "tokens")
    counts = byte_counts(tokenizer, shards, lambda: iter(TEXTS[:1]))
    assert counts is not None
    assert int(counts.of_span(0, shards.n_tokens).sum()) == len(TEXTS[0].encode())


@pytest.mark.parametrize("name", ["bytes", "small", "large"])
def test_both_ways_agree_and_decoding_says_the_same(tmp_path: Path, name: str) -> None:
    tokenizer = TOKENIZERS[name]
    shards = tokenize_corpus(tokenizer, documents(), tmp_path)
    fast = byte_counts(tokenizer, shards, None)
    assert fast is not None
    slow = DocumentBytes(shards, ByteOffsets(tokenizer), TEXTS)
    stream = shards.span(0, shards.n_tokens)
    assert np.array_equal(fast.of_span(0, len(stream)), slow.of_span(0, len(stream)))
    for end in range(len(stream)):
        text = tokenizer.decode([i for i in stream[:end] if i != shards.special.eos_id])
        if "�" not in text:  # the tokens so far end inside a character
            assert int(fast.of_span(0, end).sum()) == len(text.encode())


def test_bits_per_byte(tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["small"]
    shards = tokenize_corpus(tokenizer, documents(), tmp_path)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=8, n_embd=8, n_layer=1, n_head=1, eos_token_id=0)
    model, bytes_of = GPT2LMHeadModel(config).double().eval(), byte_counts(tokenizer, shards, None)
    figures = perplexity(model, shards, seq_len=8, batch_size=3, bytes_of=bytes_of)
    nats, size = 0.0, 0
    for window in range(shards.n_windows(8)):
        ids = torch.from_numpy(shards.windows([window], 8))
        with torch.no_grad():
            nats += float(model(input_ids=ids, labels=ids).loss) * 7
        size += sum(len(tokenizer.convert_ids_to_tokens(i)) for i in ids[0, 1:].tolist() if i != 0)
    assert figures["bytes"] == size  # a letter of the byte alphabet is a byte
    assert figures["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-6)
    assert "bits_per_byte" not in perplexity(model, shards, seq_len=8, batch_size=3)
    strided = strided_perplexity(model, shards, seq_len=8, stride=3, batch_size=3, bytes_of=bytes_of)
    first = len(tokenizer.convert_ids_to_tokens(int(shards.span(0, 1)[0])))
    assert strided["bytes"] == sum(len(text.encode()) for text in TEXTS) - first
    assert strided["bits_per_byte"] == pytest.approx(
        strided["loss"] * strided["tokens"] / math.log(2) / strided["bytes"]
    )


def test_another_text_is_refused(tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["nfc"]
    shards = tokenize_corpus(tokenizer, documents(), tmp_path)
    for texts in (TEXTS[:-1], [*TEXTS, "more"]):
        with pytest.raises(CocomixError, match="made from another text"):
            byte_counts(tokenizer, shards, lambda texts=texts: iter(texts))

"""Token shards read as the plain list they were written from, whatever the documents, the shards and the question."""

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocomix.data import TokenShards, write_shards

EOS = 0


@pytest.fixture(autouse=True, scope="module")
def few_open() -> Iterator[None]:
    """Some shards are closed and opened again."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("cocomix.data.shards.MOST_OPEN", 3)
        yield


@st.composite
def corpora(draw: st.DrawFn) -> tuple[int, list[list[int]]]:
    """A vocabulary's size and documents of its ids, empty ones too."""
    vocab_size = draw(st.sampled_from([2, 500, 1 << 16, (1 << 16) + 1, 1 << 20]))
    ids = st.integers(0, 3) | st.integers(vocab_size - 2, vocab_size - 1) | st.integers(0, vocab_size - 1)
    ids = ids.filter(lambda one: one < vocab_size)
    return vocab_size, draw(st.lists(st.lists(ids, max_size=12), min_size=1, max_size=10))


@settings(max_examples=60)
@given(corpora(), st.integers(1, 40), st.integers(1, 9), st.data())
def test_it_reads_as_a_plain_list(
    corpus: tuple[int, list[list[int]]], shard_tokens: int, seq_len: int, data: st.DataObject
) -> None:
    vocab_size, documents = corpus
    stream = [token for document in documents for token in [*document, EOS]]
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "s"
        given_ = (np.array(one, dtype=np.int64) if data.draw(st.booleans()) else one for one in documents)
        written = write_shards(folder, given_, vocab_size=vocab_size, eos_id=EOS, shard_tokens=shard_tokens)
        opened = TokenShards.open(folder)
        size = 2 if vocab_size <= 1 << 16 else 4
        sizes = [path.stat().st_size // size for path in sorted(folder.glob("shard-*.bin"))]
        assert sizes == [len(stream[at : at + shard_tokens]) for at in range(0, len(stream), shard_tokens)]
        starts = [0, *itertools.accumulate(len(one) + 1 for one in documents)]
        assert opened.documents.tolist() == starts[:-1] and opened.n_tokens == starts[-1] == len(stream)
        assert opened.fingerprint == written.fingerprint
        count = len(stream) // seq_len
        assert opened.n_windows(seq_len) == count
        asked = data.draw(st.lists(st.integers(0, count - 1), max_size=8), label="windows") if count else []
        found = opened.windows(asked, seq_len)
        assert found.dtype == np.int64 and found.shape == (len(asked), seq_len)
        assert found.tolist() == [stream[one * seq_len : (one + 1) * seq_len] for one in asked]
        begin = data.draw(st.integers(0, len(stream)), label="begin")
        end = data.draw(st.integers(begin, len(stream)), label="end")
        assert opened.span(begin, end).tolist() == stream[begin:end]
        for wrong in ([count], [-1]):
            with pytest.raises(IndexError):
                opened.windows(wrong, seq_len)
        with pytest.raises(IndexError):
            opened.span(begin, len(stream) + 1)

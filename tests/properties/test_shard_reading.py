"""Token shards read as a plain list does, whatever the documents, the shards and the windows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocomix.tokens import TokenShards, write_shards

VOCABULARIES = [2, 256, 65_536, 65_537, 2**31]
"""On either side of what two bytes hold, and of a bit more."""


@st.composite
def written(draw: st.DrawFn) -> tuple[int, list[list[int]]]:
    """A vocabulary's size, and documents of it, empty ones among them."""
    vocab_size = draw(st.sampled_from(VOCABULARIES))
    return vocab_size, draw(st.lists(st.lists(st.integers(0, vocab_size - 1), max_size=30), min_size=1, max_size=12))


@settings(max_examples=60)
@given(written(), st.integers(1, 200), st.integers(1, 20), st.data())
def test_windows_equal_slices_of_a_plain_list(
    tmp_path_factory: pytest.TempPathFactory,
    given_: tuple[int, list[list[int]]],
    shard_tokens: int,
    seq_len: int,
    data: st.DataObject,
) -> None:
    vocab_size, documents = given_
    folder = tmp_path_factory.mktemp("shards") / "s"
    arrays = [np.array(document, dtype=np.int64) for document in documents]
    made = write_shards(folder, arrays, vocab_size=vocab_size, eos_id=1, shard_tokens=shard_tokens)
    plain = [token for document in documents for token in [*document, 1]]
    shards = TokenShards.open(folder)
    assert shards.n_tokens == made.n_tokens == len(plain) and shards.fingerprint == made.fingerprint
    width = 2 if vocab_size <= 65_536 else 4
    files = sorted(folder.glob("*.bin"))
    assert sum(file.stat().st_size for file in files) == width * len(plain) and len(files) >= -(-len(plain) // 10**6)
    starts = np.cumsum([0, *(len(document) + 1 for document in documents)])[:-1]
    assert np.array_equal(shards.documents, starts)
    count = shards.n_windows(seq_len)
    assert count == len(plain) // seq_len
    if count:
        order = data.draw(st.lists(st.integers(0, count - 1), max_size=2 * count), label="windows asked for")
        slow = np.array([plain[i * seq_len : (i + 1) * seq_len] for i in order], dtype=np.int64).reshape(-1, seq_len)
        found = shards.windows(order, seq_len)
        assert found.dtype == np.int64 and np.array_equal(found, slow)
    with pytest.raises(IndexError):
        shards.windows([count], seq_len)

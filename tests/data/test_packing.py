"""Best-fit packing against a plain search, and what every packing must keep: each token once, in whole windows."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocomix.data import SpecialTokens, TokenShards, write_shards
from cocomix.data import packing as module
from cocomix.data.packing import MANIFEST, Piece, Policy, write_packing
from cocomix.labels.store import LabelStore
from cocomix.utils.errors import CocomixError

EOS, BOS = 0, 1
POLICIES = {"none": SpecialTokens(None, EOS), "same": SpecialTokens(EOS, EOS), "own": SpecialTokens(BOS, EOS)}


def shards_of(folder: Path, lengths: list[int], special: SpecialTokens) -> TokenShards:
    numbers = itertools.count(2)
    documents = [[next(numbers) for _ in range(length)] for length in lengths]
    return write_shards(folder, documents, vocab_size=1 << 20, eos_id=EOS, special=special)


def plain_best_fit(costs: list[int], capacity: int) -> list[list[int]]:
    """Every window looked at for every piece, latest first among equals."""
    bins: list[list[int]] = []
    for cost in sorted(costs, reverse=True):
        fitting = [window for window in bins if sum(window) + cost <= capacity]
        best = min((capacity - sum(window) for window in fitting), default=None)
        if best is None:
            bins.append([cost])
        else:
            next(window for window in fitting if capacity - sum(window) == best).append(cost)
    return bins


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 12), max_size=30), st.integers(12, 20))
def test_it_is_best_fit(costs: list[int], capacity: int) -> None:
    bins = module._best_fit([Piece(place, cost, 0) for place, cost in enumerate(costs)], capacity)
    found = sorted(sorted(piece.cost for piece in window) for window in bins)
    assert sorted(itertools.chain(*found)) == sorted(costs)
    rooms = sorted(capacity - sum(window) for window in plain_best_fit(costs, capacity))
    assert sorted(capacity - sum(window) for window in found) == rooms


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=25),
    st.integers(2, 12),
    st.sampled_from(sorted(POLICIES)),
    st.integers(1, 30),
)
def test_every_token_is_in_one_window(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], seq_len: int, name: str, block: int
) -> None:
    special = POLICIES[name]
    folder = tmp_path_factory.mktemp("packed")
    plain = shards_of(folder, lengths, special)
    policy = Policy.of(special.bos_id, EOS)
    figures = write_packing(folder, plain.documents, plain.n_tokens, seq_len, policy, block)
    shards = TokenShards.open(folder)
    n = shards.n_windows(seq_len)
    assert n == figures["windows"] and shards.labelled_tokens(seq_len) == n * seq_len
    places = shards.places(np.arange(n), seq_len)
    windows = shards.windows(np.arange(n), seq_len)
    assert windows.shape == places.shape == (n, seq_len)
    used = places[places >= 0]
    assert len(used) == len(np.unique(used)) and plain.n_tokens - len(used) == figures["dropped"] < seq_len
    starts = plain.documents.tolist()
    ends = [*starts[1:], plain.n_tokens]
    whole = 0
    for row, tokens in zip(places.tolist(), windows.tolist(), strict=True):
        if special.bos_id is not None:
            assert tokens[0] == special.bos_id
        whole += sum(set(range(begin, end)) <= set(row) for begin, end in zip(starts, ends, strict=True))
        for place in range(1, seq_len):
            if row[place] == row[place - 1] + 1 >= 1:
                continue
            # A piece begins: behind an end of text, and with the beginning of text where that is another token.
            if name != "own":
                assert tokens[place - 1] == EOS or (place == 1 and row[0] < 0)
            elif row[place - 1] >= 0:
                assert tokens[place - 1] == EOS and tokens[place] == BOS
    assert figures["cut"] == len(lengths) - whole
    if name != "own":
        assert figures["padded"] == 0
    again = write_packing(folder, plain.documents, plain.n_tokens, seq_len, policy, block)
    assert again == figures


def test_it_cuts_fewer_documents_than_the_stream(tmp_path: Path) -> None:
    lengths = np.random.default_rng(0).integers(3, 120, 400).tolist()
    plain = shards_of(tmp_path, lengths, POLICIES["none"])
    before = plain.fingerprint
    packed = plain.packed(64)
    figures: Any = packed.packing and packed.packing.figures
    sizes = [length + 1 for length in lengths]
    ends = np.cumsum(sizes)
    by_stream = sum((end - size) // 64 != (end - 1) // 64 for end, size in zip(ends, sizes, strict=True))
    longer = sum(size > 64 for size in sizes)
    assert figures["cut_by_stream"] == by_stream and longer <= figures["cut"] < 0.85 * by_stream
    assert packed.fingerprint != before and TokenShards.open(tmp_path).fingerprint == packed.fingerprint
    assert np.array_equal(packed.span(0, 100), plain.span(0, 100))
    with pytest.raises(CocomixError, match="packed into windows of 64 tokens, not 32; give that length"):
        packed.n_windows(32)
    with pytest.raises(IndexError):
        packed.windows([packed.n_windows(64)], 64)
    writer = LabelStore.create(
        tmp_path / "labels", n_tokens=packed.labelled_tokens(64), seq_len=64, n_labels=1, n_latents=9, lineage={}
    )
    assert writer.layout.n_windows == packed.n_windows(64)


def test_the_same_bytes_again_after_a_kill_and_damage_is_named(tmp_path: Path) -> None:
    plain = shards_of(tmp_path, [5, 40, 3, 9, 22, 1], POLICIES["same"])
    plain.packed(8)
    files = {path.name: path.read_bytes() for path in tmp_path.glob("packing*")}
    (tmp_path / MANIFEST).unlink()
    (tmp_path / module.SEGMENTS).write_bytes(b"half")
    plain.packed(8)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("packing*")} == files
    (tmp_path / module.WINDOWS).write_bytes(files[module.WINDOWS][:-8])
    with pytest.raises(CocomixError, match="packing-windows"):
        TokenShards.open(tmp_path)

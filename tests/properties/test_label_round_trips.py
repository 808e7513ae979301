"""Labels come back as they were written: whatever their sizes, who wrote them in which order, and asked how."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocomix.concepts import LabelStore
from cocomix.concepts.store_writer import LabelWriter

IGNORED = -100
LATENTS = [1, 60, 65_535, 65_536, 100_000]
"""On either side of what two bytes hold beside the mark for no label."""


@st.composite
def stores(draw: st.DrawFn) -> dict[str, Any]:
    """Settings of `LabelStore.create`; a few tokens more than whole windows."""
    seq_len, windows = draw(st.integers(1, 9)), draw(st.integers(1, 40))
    return {
        "n_tokens": windows * seq_len + draw(st.integers(0, seq_len - 1)),
        "seq_len": seq_len,
        "n_labels": draw(st.integers(1, 5)),
        "n_latents": draw(st.sampled_from(LATENTS)),
        "shard_tokens": draw(st.integers(1, 400)),
        "scores": draw(st.booleans()),
    }


@settings(max_examples=60)
@given(stores(), st.integers(0, 2**16), st.data())
def test_labels_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, shape: dict[str, Any], seed: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("labels") / "store"
    rng, windows = np.random.default_rng(seed), shape["n_tokens"] // shape["seq_len"]
    size = (windows, shape["seq_len"], shape["n_labels"])
    ids, scores = rng.integers(0, shape["n_latents"], size), rng.random(size, dtype=np.float32)
    ids[rng.random(size) < 0.2] = shape["n_latents"] - 1  # the largest is next to the mark for no label
    valid = rng.random(size[:2]) < data.draw(st.sampled_from([0.0, 0.5, 1.0]), label="share with labels")

    LabelStore.create(folder, lineage={"tokens": "x"}, **shape)
    cuts = data.draw(st.lists(st.integers(0, windows), max_size=6), label="cuts")
    spans = list(zip(sorted({0, *cuts}), sorted({windows, *cuts} - {0}), strict=False))
    for start, end in data.draw(st.permutations(spans), label="order of writing"):
        writer = LabelWriter(folder)
        assert not writer.done()[start:end].any()
        writer.write(start, ids[start:end], scores[start:end], valid[start:end])
        writer.close()
    LabelWriter(folder).finish()

    store = LabelStore.open(folder, expect={"tokens": "x"})
    order = np.array(data.draw(st.lists(st.integers(0, windows - 1), max_size=20), label="asked for"), dtype=np.int64)
    slow = [[[*row] if ok else [IGNORED] * len(row) for row, ok in zip(ids[w], valid[w], strict=True)] for w in order]
    found = store.read(order, shape["seq_len"])
    assert found.dtype == np.int64 and np.array_equal(found, np.array(slow, dtype=np.int64).reshape(found.shape))
    assert found.shape == (len(order), *size[1:])
    if shape["scores"]:
        expected = np.where(valid[order][..., None], scores[order], 0)
        assert np.array_equal(store.read_scores(order, shape["seq_len"]), expected)
    assert store.labelled(order).tolist() == [int(valid[w].sum()) for w in order]
    assert store.valid_share() == valid.mean()
    width = 2 if shape["n_latents"] < 65_536 else 4
    assert sum(path.stat().st_size for path in folder.glob("ids-*.bin")) == width * ids.size

"""Labels read as the plain list they were written from: whatever their shapes, their writers, and the question."""

import itertools
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocomix.labels import LabelStore
from cocomix.labels.store import MARKS
from tests.helpers.strategies import seeds

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


class Labels(NamedTuple):
    """Of every window, as `LabelWriter.write` takes them."""

    ids: np.ndarray
    scores: np.ndarray
    valid: np.ndarray


@st.composite
def stores(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of `LabelStore.create`."""
    seq_len = draw(st.integers(1, 6))
    return {
        "n_tokens": draw(st.integers(seq_len, 70)),
        "seq_len": seq_len,
        "n_labels": draw(st.integers(1, 4)),
        "n_latents": draw(st.sampled_from([1, 60, (1 << 16) - 1, 1 << 16, (1 << 16) + 1, 1 << 20])),
        "shard_tokens": draw(st.integers(1, 40)),
        "scores": draw(st.booleans()),
        "lineage": {"tokens": "a"},
    }


def labels(layout: dict[str, Any], seed: int) -> Labels:
    """Random ones, the highest concept among them, with any share of positions labelled."""
    rng = np.random.default_rng(seed)
    shape = (layout["n_tokens"] // layout["seq_len"], layout["seq_len"], layout["n_labels"])
    ids = rng.integers(0, layout["n_latents"], shape)
    ids[rng.random(shape) < 0.2] = layout["n_latents"] - 1
    scores = rng.standard_normal(shape).astype(np.float32)
    return Labels(ids, scores, rng.random(shape[:2]) < rng.choice([0.0, 0.5, 1.0]))


def in_runs(windows: int, cuts: set[int]) -> list[range]:
    """Windows 0 to `windows` - 1, cut before each of `cuts`."""
    edges = [0, *sorted(one for one in cuts if 0 < one < windows), windows]
    return [range(*pair) for pair in itertools.pairwise(edges)]


@settings(max_examples=50)
@given(stores(), seeds, st.sets(st.integers(1, 70), max_size=8), st.data())
def test_they_read_as_a_plain_list(layout: dict[str, Any], seed: int, cuts: set[int], data: st.DataObject) -> None:
    """Written in runs, in any order, some of them twice, by writers of which some were killed."""
    made = labels(layout, seed)
    plain = np.where(made.valid[..., None], made.ids, -100).tolist()
    windows = len(plain)
    runs = in_runs(windows, cuts)
    order = data.draw(st.permutations(runs), label="order")
    again = data.draw(st.lists(st.sampled_from(runs), max_size=3), label="again")
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "l"
        writer, done, killed = LabelStore.create(folder, **layout), set(), []
        for run in [*order, *again]:
            part = slice(run.start, run.stop)
            writer.write(run.start, made.ids[part], made.scores[part], made.valid[part])
            done |= set(run)
            left = data.draw(st.sampled_from(["goes on", "is closed", "is killed"]), label="the writer")
            if left != "goes on":
                if left == "is closed":
                    writer.close()
                else:
                    killed.append(writer)
                writer = LabelStore.create(folder, **layout)
                parts = data.draw(st.integers(1, 3), label="processes")
                found = sum(writer.done(one, parts).astype(int) for one in range(parts)) > 0
                assert set(np.flatnonzero(found).tolist()) == done
        writer.finish()
        for writer in killed:
            writer.close()
        assert not (folder / MARKS).exists()
        store = LabelStore.open(folder, expect=layout["lineage"])
        asked = data.draw(st.lists(st.integers(0, windows - 1), max_size=8), label="windows")
        found = store.read(np.array(asked, dtype=np.int64), layout["seq_len"])
        assert found.dtype == np.int64 and found.shape == (len(asked), *made.ids.shape[1:])
        assert found.tolist() == [plain[one] for one in asked]
        labelled = [sum(position[0] >= 0 for position in plain[one]) for one in range(windows)]
        assert store.labelled(np.array(asked, dtype=np.int64)).tolist() == [labelled[one] for one in asked]
        assert store.valid_share() == sum(labelled) / (windows * layout["seq_len"])
        if layout["scores"]:
            scores = store.read_scores(np.arange(windows), layout["seq_len"])
            assert np.array_equal(scores, np.where(made.valid[..., None], made.scores, 0))
        size = 2 if layout["n_latents"] < 1 << 16 else 4
        assert sum(path.stat().st_size for path in folder.glob("ids-*.bin")) == made.ids.size * size
        a_shard = max(1, layout["shard_tokens"] // layout["seq_len"])
        assert len(list(folder.glob("ids-*.bin"))) == -(-windows // a_shard)

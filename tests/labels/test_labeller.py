"""A window's labels are the same whatever stands beside it, live or stored."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cocomix.labels import LabelStore, LiveLabels
from cocomix.labels.attribution import RULES
from cocomix.utils.errors import CocomixError
from tests.helpers.labeled_tokens import SEQ, SIGNS, K, corpus, label, labeller

GROUPS = ([5], [5, 6, 7], list(range(12)), [*range(40, 47), 5], [5] * 9, [11, 5, 3, 9, 5, 2, 30])
"""Windows asked for together; each holds window 5."""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("rule", RULES)
def test_a_windows_labels_do_not_depend_on_its_companions(tmp_path: Path, rule: str, precision: str) -> None:
    shards, make = corpus(tmp_path / "s", 50), labeller(rule=rule, precision=precision)
    seen = []
    for number, group in enumerate(GROUPS):
        ids = torch.from_numpy(shards.windows(np.array(group), SEQ))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=number % 2 == 1):  # as a trainer may have around it
            made = make(ids)
        seen += [[field[place] for sign in SIGNS for field in made[sign]] for place, w in enumerate(group) if w == 5]
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))
    assert seen[0][2].any()


def test_every_pass_has_the_same_number_of_windows(tmp_path: Path) -> None:
    shards, make = corpus(tmp_path / "s", 50), labeller(batch_size=4)
    sizes = []
    real = make.make
    make.make = lambda ids: sizes.append(len(ids)) or real(ids)
    made = make(torch.from_numpy(shards.windows(np.arange(9), SEQ)))
    assert sizes == [4, 4, 4] and len(made["helpful"].ids) == 9


def test_live_labels_are_the_stored_ones(tmp_path: Path) -> None:
    label(tmp_path, "l", windows=50)
    shards = corpus(tmp_path / "s")
    rng = np.random.default_rng(0)
    for sign in SIGNS:
        stored = LabelStore.open(tmp_path / "l" / sign)
        live = LiveLabels(shards, labeller(signs=(sign,)), seq_len=SEQ)
        assert live.n_labels == stored.n_labels == K and sign in live.where
        for size in (1, 5, 13):
            windows = rng.integers(0, 50, size)  # a window may come twice, where a batch spans two epochs
            assert np.array_equal(live.read(windows, SEQ), stored.read(windows, SEQ))
            assert np.array_equal(live.labelled(windows), stored.labelled(windows))
            assert np.array_equal(live.read(windows[::-1], SEQ), stored.read(windows[::-1], SEQ))
    with pytest.raises(CocomixError, match="windows of 32 tokens, not 16"):
        live.read(np.array([0]), 16)


def test_a_batch_is_labelled_once(tmp_path: Path) -> None:
    shards, make = corpus(tmp_path / "s", 50), labeller(signs=("absolute",), batch_size=4)
    live, passes = LiveLabels(shards, make, seq_len=SEQ), []
    real = make.make
    make.make = lambda ids: passes.append(1) or real(ids)
    batch = np.arange(8)
    live.labelled(batch)
    for part in np.split(batch, 4):
        live.read(part, SEQ)
    assert len(passes) == 2
    live.read(np.array([20]), SEQ)
    assert len(passes) == 3

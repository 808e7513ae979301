"""Shuffled labels: the same labels as often, at other places, the same for whoever asks."""

import numpy as np
import pytest

from cocomix.labels.shuffled import ShuffledLabels
from cocomix.labels.store import LabelReader
from cocomix.objectives import OBJECTIVES


class Numbered(LabelReader):
    """Labels that say where they belong; every seventh position has none."""

    n_labels, where = 2, "numbered labels"

    def read(self, windows: np.ndarray, seq_len: int) -> np.ndarray:
        places = windows[:, None] * 100 + np.arange(seq_len)
        return np.where((places % 7 == 0)[..., None], -100, np.stack((places, places + 50_000), axis=-1))

    def labelled(self, windows: np.ndarray) -> np.ndarray:
        return (self.read(windows, 20)[..., 0] >= 0).sum(-1)


def test_every_label_once_and_hardly_any_in_its_place() -> None:
    plain, shuffled = Numbered(), ShuffledLabels(Numbered(), 30)
    windows = np.arange(30)
    before, after = plain.read(windows, 20), shuffled.read(windows, 20)
    assert sorted(map(tuple, before.reshape(-1, 2))) == sorted(map(tuple, after.reshape(-1, 2)))  # pairs stay pairs
    assert (before == after).all(-1).mean() < 0.1
    order = np.random.default_rng(1).permutation(30)
    assert np.array_equal(shuffled.read(order, 20), after[order])
    assert np.array_equal(ShuffledLabels(Numbered(), 30).read(order[:3], 20), after[order[:3]])
    assert np.array_equal(shuffled.labelled(order), (after[order][..., 0] >= 0).sum(-1))
    assert shuffled.n_labels == 2 and shuffled.where == "numbered labels, shuffled"


def test_a_student_without_labels_has_nothing_to_shuffle() -> None:
    raw = {"objective": "cocomix", "shuffled": True, "concept": {"loss_weight": 0}}
    with pytest.raises(ValueError, match="there are no labels that could be `shuffled`"):
        OBJECTIVES["cocomix"].model_validate(raw)

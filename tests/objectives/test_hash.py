"""Hash labels: fixed, different, spread evenly, and the only thing in which the control differs from CoCoMix."""

import numpy as np
import pytest
import torch

from cocomix.model.build import Sizes
from cocomix.objectives import OBJECTIVES, CoCoMixObjective
from cocomix.objectives.hash import HashObjective, hash_labels
from tests.helpers.every_objective import C, mixed

IDS = torch.randint(0, 50, (2, 8), generator=torch.Generator().manual_seed(0))


def test_labels_are_always_the_same_and_different_within_a_token() -> None:
    table = hash_labels(2000, 4, 64)
    assert table[:2].tolist() == [[38, 4, 14, 25], [42, 2, 39, 59]]
    assert np.array_equal(hash_labels(5, 4, 64), table[:5])
    assert all(len(set(row)) == 4 for row in table.tolist())
    counts = np.bincount(table.ravel(), minlength=64)
    assert counts.min() > 80 and counts.max() < 180  # 125 each, if evenly
    assert sorted(hash_labels(3, 4, 4)[0]) == [0, 1, 2, 3]


@pytest.mark.parametrize("ahead", [False, True])
def test_the_loss_is_cocomix_with_labels_by_token(ahead: bool) -> None:
    model, table = mixed(), hash_labels(50, 2, C)
    labels = torch.full((2, 8, 2), -100)
    for b in range(2):
        for t in range(7):
            labels[b, t] = torch.tensor(table[IDS[b, t + 1 if ahead else t]])
    progress = torch.tensor(0.3)
    found = HashObjective(model, table, ahead=ahead, until=0.5)({"input_ids": IDS, "progress": progress})
    batch = {"input_ids": IDS, "concept_labels": labels, "progress": progress}
    assert torch.equal(found, CoCoMixObjective(model, 0.5)(batch))


def test_settings_make_it() -> None:
    raw = {"objective": "hash", "model": {"width": 16, "layers": 3, "heads": 2}, "concept": {"concept_layer": 1}}
    settings = OBJECTIVES["hash"].model_validate(raw | {"of": "next", "n_latents": 30, "k": 4})
    sizes = Sizes(50, 8, 0, 0, 0, 0)
    made = settings.make_objective(settings.build(sizes), sizes, lambda: pytest.fail("there is no teacher"))
    assert made({"input_ids": IDS, "progress": torch.tensor(0.0)}).isfinite()
    assert made.table.shape == (50, 4) and "next token" in settings.describe()
    with pytest.raises(ValueError, match="must not exceed n_latents 3"):
        OBJECTIVES["hash"].model_validate(raw | {"n_latents": 3})

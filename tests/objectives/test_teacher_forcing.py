"""Teacher forcing: labels are mixed in where predictions would be, in a share of the windows."""

from typing import Any

import pytest
import torch

from cocomix.model.predictors import ConceptPrediction
from cocomix.objectives import OBJECTIVES, CoCoMixObjective
from cocomix.utils.errors import CocomixError
from cocomix.utils.settings import validate
from tests.helpers.every_objective import C, mixed

SHAPE = {"width": 16, "layers": 3, "heads": 2}


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(6, 8, C, generator=generator).argsort(-1)[..., :2]
    labels[:, 3] = -100
    return {"input_ids": torch.randint(0, 50, (6, 8), generator=generator), "concept_labels": labels}


def next_token_loss(model: Any, rows: dict[str, torch.Tensor], forced: list[bool]) -> torch.Tensor:
    """The loss with labels in front of each forced row's own concepts, written out for every position."""

    def change(_module: Any, _inputs: Any, prediction: ConceptPrediction) -> ConceptPrediction:
        ids = prediction.ids.clone()
        order = prediction.values.sort(dim=-1, descending=True)
        for row, position in torch.cartesian_prod(torch.arange(len(ids)), torch.arange(ids.shape[1])).tolist():
            own = prediction.ids[row, position][order.indices[row, position]].tolist()
            given = [one for one in rows["concept_labels"][row, position].tolist() if one >= 0 and forced[row]]
            kept = [*given, *(one for one in own if one not in given)][: len(own)]
            ids[row, position] = torch.tensor(kept)
        return prediction._replace(ids=ids, values=order.values)

    handle = model.channel.head.register_forward_hook(change)
    loss = model(rows["input_ids"], labels=rows["input_ids"]).lm_loss
    handle.remove()
    return loss


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_windows_mixes_its_labels_in(share: float) -> None:
    model, rows = mixed().double(), batch()
    torch.manual_seed(0)
    drawn = (torch.rand(6, 1, 1) < share).flatten().tolist()
    assert share != 0.5 or 0 < sum(drawn) < 6
    expected = next_token_loss(model, rows, drawn)
    unforced = model(rows["input_ids"], labels=rows["input_ids"], concept_labels=rows["concept_labels"]).concept_loss
    torch.manual_seed(0)
    loss = CoCoMixObjective(model, teacher_forcing=share)(rows)
    torch.testing.assert_close(loss, expected + model.config.concept_loss_weight * unforced)
    loss.backward()
    gradient = model.channel.vector.weight.grad.clone()
    model.zero_grad()
    next_token_loss(model, rows, drawn).backward()
    torch.testing.assert_close(gradient, model.channel.vector.weight.grad)
    assert share == 0 or not torch.allclose(loss, CoCoMixObjective(model)(rows))


def test_what_cannot_be_forced_is_refused() -> None:
    def settings(**concept: Any) -> dict[str, Any]:
        return {
            "objective": "cocomix",
            "model": SHAPE,
            "concept": {"concept_layer": 1, "teacher_forcing": 0.5} | concept,
        }

    kind = OBJECTIVES["cocomix"]
    assert "teacher forcing in 50% of the windows" in validate(kind, settings() | {"labels": "exact"}, "x").describe()
    with pytest.raises(CocomixError, match="mixes labels in, and this student has no labels"):
        validate(kind, settings(loss_weight=0), "x")
    with pytest.raises(CocomixError, match="this student has the mixer none"):
        validate(kind, settings(mixer="none") | {"labels": "exact"}, "x")

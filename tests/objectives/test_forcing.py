"""Windows in which other concepts than the predicted ones are mixed in, one position at a time."""

from collections import Counter
from typing import Any

import pytest
import torch

from cocomix.model.forced_concepts import concepts_forced
from cocomix.model.predictors import ConceptPrediction
from cocomix.objectives import OBJECTIVES, CoCoMixObjective
from cocomix.objectives.forcing import OFTEN, STRONGEST, WEAKEST, Forcing
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
    drawn = (torch.rand(6) < share).tolist()
    assert share != 0.5 or 0 < sum(drawn) < 6
    expected = next_token_loss(model, rows, drawn)
    unforced = model(rows["input_ids"], labels=rows["input_ids"], concept_labels=rows["concept_labels"]).concept_loss
    torch.manual_seed(0)
    loss = CoCoMixObjective(model, forcing=Forcing(share))(rows)
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
    with pytest.raises(CocomixError, match="are of different windows"):
        validate(kind, settings(steered=0.6) | {"labels": "exact"}, "x")
    with pytest.raises(CocomixError, match="the objective hash makes its own"):
        validate(OBJECTIVES["hash"], settings() | {"objective": "hash"}, "x")
    steered = validate(kind, settings(teacher_forcing=0, steered=0.6) | {"labels": "exact"}, "x")
    assert "60% of the windows steered" in steered.describe()


def test_steered_windows_are_steered_toward_what_their_labels_have_often() -> None:
    labels = torch.full((400, 12, 2), -100)
    labels[:, :9] = torch.randint(0, 6, (400, 9, 2), generator=torch.Generator().manual_seed(1))
    labels[::10] = -100
    torch.manual_seed(0)
    concepts, strength = Forcing(0.3, 0.5).draw(labels)
    kinds = {"labels": 0, "steered": 0, "none": 0}
    for row in range(400):
        counts = Counter(labels[row][labels[row] >= 0].tolist())
        if torch.equal(concepts[row], labels[row].clamp_min(-1)) and strength[row] == 1:
            kinds["labels"] += 1
        elif (concepts[row] == -1).all():
            kinds["none"] += 1
        else:
            (concept,) = concepts[row, :, 0].unique().tolist()
            assert (concepts[row, :, 1:] == -1).all() and counts[concept] >= OFTEN
            assert WEAKEST <= float(strength[row]) <= STRONGEST
            kinds["steered"] += 1
    few = sum(max(Counter(row[row >= 0].tolist()).values(), default=0) < OFTEN for row in labels)
    assert 90 < kinds["labels"] < 150 and 0.35 * (400 - few) < kinds["steered"] < 0.65 * (400 - few)
    assert len({int(row[0, 0]) for row in concepts}) == 7


def test_a_concept_is_drawn_by_how_much_more_often_than_usual_it_is() -> None:
    labels = torch.tensor([0] * 10 + [1] * 20 + [2] * 5 + [3] * 3 + [-100] * 2).view(1, 20, 2).expand(4000, -1, -1)
    usual = torch.tensor([0.1, 0.5, 0.2, 0.0, 0.2])
    torch.manual_seed(0)
    drawn = Counter(Forcing(0.0, 1.0, usual).draw(labels)[0][:, 0, 0].tolist())
    excess = {0: 10 - 38 * 0.1, 1: 20 - 38 * 0.5, 2: 0, 3: 0}  # of 2 there are fewer than usual, of 3 too few
    total = sum(excess.values())
    for concept, amount in excess.items():
        assert drawn[concept] / 4000 == pytest.approx(amount / total, abs=0.02)
    assert set(drawn) == {0, 1}


@torch.no_grad()
def test_a_steered_window_mixes_the_concept_in_as_the_first_with_its_strength() -> None:
    model, rows = mixed().double(), batch()
    concepts = torch.full_like(rows["concept_labels"], -1)
    concepts[1, :, 0] = 3
    strength = torch.full((6, 1, 1), 2.5, dtype=torch.float64)
    before: list[ConceptPrediction] = []
    after: list[ConceptPrediction] = []
    head = model.channel.head
    first = head.register_forward_hook(lambda *given: before.append(given[2]))
    with concepts_forced(model, concepts, strength):
        last = head.register_forward_hook(lambda *given: after.append(given[2]))
        model(rows["input_ids"])
    first.remove()
    last.remove()
    for row in range(6):
        for position in range(8):
            own = before[0].values[row, position].sort(descending=True)
            ids, values = before[0].ids[row, position][own.indices].tolist(), own.values.tolist()
            if row == 1:
                ids = [3, *(one for one in ids if one != 3)][: len(ids)]
                values[0] *= 2.5
            assert after[0].ids[row, position].tolist() == ids
            assert after[0].values[row, position].tolist() == pytest.approx(values)

"""The weighted concept loss: fused and unfused against a loop over labels, with its gradients."""

import pytest
import torch

from cocomix.objectives import CoCoMixObjective
from tests.helpers.every_objective import C, mixed


@pytest.mark.parametrize("mixer", ["interleave", "none"])
def test_each_label_counts_by_its_weight(mixer: str) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 50, (2, 8), generator=generator)
    labels = torch.randint(0, C, (2, 8, 3), generator=generator)
    labels[0, 3], labels[1, 5, 2] = -100, -100
    weights = torch.rand(2, 8, 3, generator=generator)
    model = mixed(mixer=mixer).double()
    logits = model(ids).concept_logits
    total, count = torch.zeros((), dtype=torch.float64), 0
    for b, t, k in torch.cartesian_prod(torch.arange(2), torch.arange(8), torch.arange(3)).tolist():
        if labels[b, t, k] >= 0:
            total = total - weights[b, t, k] * logits[b, t].log_softmax(-1)[labels[b, t, k]]
            count += 1
    model.zero_grad()
    (total / count).backward()
    expected = model.channel.head.proj.weight.grad.clone()
    for skip_logits in (False, True):
        model.zero_grad()
        options = {"concept_labels": labels, "concept_label_weights": weights, "skip_logits": skip_logits}
        found = model(ids, labels=ids, **options).concept_loss
        found.backward()
        torch.testing.assert_close(found, total / count)
        torch.testing.assert_close(model.channel.head.proj.weight.grad, expected)


def test_weights_of_one_change_no_bit() -> None:
    ids = torch.arange(16).view(2, 8)
    labels = (ids[..., None] + torch.arange(2)) % C
    batch, objective = {"input_ids": ids, "concept_labels": labels}, CoCoMixObjective(mixed())
    weighted = objective(batch | {"concept_label_weights": torch.ones(2, 8, 2)})
    assert torch.equal(objective(batch), weighted)
    assert not torch.equal(objective(batch | {"concept_label_weights": torch.full((2, 8, 2), 0.5)}), weighted)

"""Directions of concepts: differences of means and mean gradients, against a loop over positions."""

from typing import Any

import torch

from cocomix.sae.contrast import LEAST, PULL, combined, concept_contrasts, concept_pulls
from tests.helpers.steering_study import LAYER, VOCAB, C, models


@torch.no_grad()
def test_directions_are_differences_of_means() -> None:
    made = models()
    teacher, sae = made["teacher"], made["sae"]
    batches = torch.randint(1, VOCAB, (3, 4, 20), generator=torch.Generator().manual_seed(0))
    found = concept_contrasts(teacher, sae, LAYER, batches, first_position=1)
    units, active = [], []
    for ids in batches:
        hidden = teacher(ids, output_hidden_states=True).hidden_states[LAYER + 1][:, 1:].flatten(0, 1)
        units += [h / h.norm() for h in hidden]
        active += [{i for i, x in enumerate(sae.encode_dense(h).tolist()) if x > 0} for h in hidden]
    rows, rare = {}, []
    for latent in range(C):
        if sum(latent in on for on in active) < LEAST:
            rare.append(latent)
        else:
            rows[latent] = difference(units, active, latent)
            torch.testing.assert_close(found[latent].double(), rows[latent], rtol=1e-4, atol=1e-5)
    assert len(rows) > 3 and rare
    length = torch.stack(list(rows.values())).norm(dim=-1).median()
    for latent in rare:
        decoder = sae.decoder_weight[latent]
        torch.testing.assert_close(found[latent].double(), decoder / decoder.norm() * length, rtol=1e-4, atol=1e-5)


def test_directions_pull_towards_text_in_which_the_concept_comes_next() -> None:
    made = models()
    teacher, sae = made["teacher"], made["sae"]
    batches = torch.randint(1, VOCAB, (3, 4, 20), generator=torch.Generator().manual_seed(0))
    found = concept_pulls(teacher, sae, LAYER, batches, first_position=1)
    units, here, pulls, after = [], [], [], []
    for window in batches.flatten(0, 1):
        hidden, gradient = moved_apart(teacher, window)
        active = [{i for i, x in enumerate(sae.encode_dense(h).tolist()) if x > 0} for h in hidden]
        units += [hidden[t] / hidden[t].norm() for t in range(1, 20)]
        here += active[1:]
        pulls += [gradient[t] * hidden[t].norm() for t in range(1, 19)]
        after += active[2:]
    fisher = sum(torch.outer(pull, pull) for pull in pulls) / len(pulls)
    compared = []
    for latent in range(C):
        count = sum(latent in on for on in after)
        if sum(latent in on for on in here) < LEAST or count == 0:
            continue
        a, b = difference(units, here, latent), difference(pulls, after, latent)
        cost_a, cost_b = ((v @ fisher @ v).sqrt() for v in (a, b))
        share = max(0.0, float(1 - fisher.trace() / (count * b @ b)))
        row = a + PULL * share * cost_a / cost_b * b
        compared.append(share)
        expected = row * cost_a / (row @ fisher @ row).sqrt()
        torch.testing.assert_close(found[latent].double(), expected, rtol=1e-4, atol=1e-5)
    assert len(compared) > 3 and 0 < min(compared) < max(compared) < 1
    assert not any(parameter.grad is not None for parameter in teacher.parameters())


def test_a_gradient_that_may_be_chance_is_left_out() -> None:
    means, noise = torch.randn(2, 3, 8, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    rows = combined(means, noise, torch.tensor([1, 1, 1000]), torch.eye(8, dtype=torch.double) * noise.square().sum())
    torch.testing.assert_close(rows[:2], means[:2])
    assert not torch.allclose(rows[2], means[2], rtol=0.1)


def moved_apart(teacher: Any, window: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states of one window, and what moving each of them does to the likelihood of the text, `[seq, d]`."""
    kept: list[torch.Tensor] = []

    def note(_module: Any, _inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        kept.append(hidden.detach().requires_grad_())
        return (kept[-1], *output[1:]) if isinstance(output, tuple) else kept[-1]

    handle = teacher.transformer.h[LAYER].register_forward_hook(note)
    log = teacher(window[None]).logits[0].log_softmax(-1)
    handle.remove()
    likelihood = torch.stack([log[t - 1, int(window[t])] for t in range(1, len(window))]).sum()
    (gradient,) = torch.autograd.grad(likelihood, kept[0])
    return kept[0].detach()[0], gradient[0]


def difference(vectors: list[torch.Tensor], sets: list[set[int]], latent: int) -> torch.Tensor:
    inside = [vector for vector, on in zip(vectors, sets, strict=True) if latent in on]
    outside = [vector for vector, on in zip(vectors, sets, strict=True) if latent not in on]
    return torch.stack(inside).mean(0) - torch.stack(outside).mean(0)

"""Directions of concepts: differences of means, against a loop over positions."""

import torch

from cocomix.sae.contrast import LEAST, concept_contrasts
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
        inside = [u for u, on in zip(units, active, strict=True) if latent in on]
        outside = [u for u, on in zip(units, active, strict=True) if latent not in on]
        if len(inside) < LEAST:
            rare.append(latent)
        else:
            rows[latent] = torch.stack(inside).mean(0) - torch.stack(outside).mean(0)
            torch.testing.assert_close(found[latent].double(), rows[latent], rtol=1e-4, atol=1e-5)
    assert len(rows) > 3 and rare
    length = torch.stack(list(rows.values())).norm(dim=-1).median()
    for latent in rare:
        decoder = sae.decoder_weight[latent]
        torch.testing.assert_close(found[latent].double(), decoder / decoder.norm() * length, rtol=1e-4, atol=1e-5)

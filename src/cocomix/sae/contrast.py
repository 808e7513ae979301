"""Directions of concepts in a model's hidden states: differences of means.

The direction of latent i is the mean of h / |h| over the positions at which it is active, less the mean over all
others. An autoencoder's decoder has what is a latent's alone, given all other latents; a difference of means also has
what comes with it, and moves generated text much further at the same length (docs/decisions.md).
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

from cocomix.model.teacher import hidden_at
from cocomix.sae.sae import TopKSAE

LEAST = 16
"""Positions from which a direction is taken; of latents that are active at fewer it is the decoder's."""


def mean_differences(text: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Difference of means of h / |h| inside and outside of sets of positions, and how many positions are inside.

    Args:
        text: hidden states h `[positions, d_model]`, and which of them are in each set, sparse `[sets, positions]`.

    Returns:
        float64 `[sets, d_model]`, 0 where a set has no position or all, and float64 `[sets]`, both on the CPU.
    """
    inside: Any = 0.0
    counts: Any = 0.0
    total: Any = 0.0
    positions = 0
    for hidden, members in text:
        unit = hidden.cpu().double()
        unit = unit / unit.norm(dim=-1, keepdim=True)
        members = members.cpu().double()
        inside, counts = inside + members @ unit, counts + torch.sparse.sum(members, 1).to_dense()
        total, positions = total + unit.sum(0), positions + len(unit)
    n = counts[:, None]
    vectors = inside / n - (total - inside) / (positions - n)
    return torch.where((n > 0) & (n < positions), vectors, 0.0), counts


@torch.no_grad()
def concept_contrasts(
    model: PreTrainedModel, sae: TopKSAE, layer: int, windows: Iterable[torch.Tensor], first_position: int = 0
) -> torch.Tensor:
    """Directions of all latents, float32 `[C, d_model]`.

    Rows of rare latents are the decoder's, at the median length of the others.

    Args:
        layer: the block (0-based) after which the autoencoder reads.
        windows: tokens int64 `[batch, seq]`.
        first_position: positions before this one are left out.
    """

    def text() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for ids in windows:
            hidden = hidden_at(model, ids.to(model.device), layer)[:, first_position:].flatten(0, 1)
            latents = sae.encode(hidden)
            on = latents.values > 0
            places = torch.stack([latents.ids[on], on.nonzero()[:, 0]]).cpu()
            shape = (sae.n_latents, len(hidden))
            yield hidden, torch.sparse_coo_tensor(places, torch.ones(places.shape[1]), shape, check_invariants=True)

    rows, counts = mean_differences(text())
    rows, found = rows.float().to(model.device), ((counts >= LEAST) & rows.any(-1)).to(model.device)[:, None]
    lengths = rows[found[:, 0]].norm(dim=-1)
    decoder = sae.decoder_weight.float() / sae.decoder_weight.float().norm(dim=-1, keepdim=True)
    return torch.where(found, rows, decoder * (lengths.median() if len(lengths) else 1.0))

"""Directions of concepts in a model's hidden states: differences of means.

The direction of latent i is the mean of h / |h| over the positions at which it is active, less the mean over all
others. An autoencoder's decoder has what is a latent's alone, given all other latents; a difference of means also has
what comes with it, and moves generated text much further at the same length (docs/decisions.md).
"""

from collections.abc import Iterable

import torch
from transformers import PreTrainedModel

from cocomix.model.teacher import hidden_at
from cocomix.sae.sae import TopKSAE

LEAST = 16
"""Positions from which a direction is taken; of latents that are active at fewer it is the decoder's."""


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
    inside = torch.zeros(sae.n_latents, sae.d_model, device=model.device)
    counts = torch.zeros(sae.n_latents, device=model.device)
    total = torch.zeros(sae.d_model, device=model.device)
    positions = 0
    for ids in windows:
        hidden = hidden_at(model, ids.to(model.device), layer)[:, first_position:].flatten(0, 1)
        latents = sae.encode(hidden)
        unit = hidden.float() / hidden.float().norm(dim=-1, keepdim=True)
        for column, values in zip(latents.ids.T, latents.values.T, strict=True):
            on = values > 0
            inside.index_add_(0, column[on], unit[on])
            counts += torch.bincount(column[on], minlength=sae.n_latents)
        total += unit.sum(0)
        positions += len(unit)
    counts = counts[:, None]
    rows = inside / counts.clamp_min(1) - (total - inside) / (positions - counts).clamp_min(1)
    found = (counts >= LEAST) & (counts < positions)
    lengths = rows[found[:, 0]].norm(dim=-1)
    decoder = sae.decoder_weight.float() / sae.decoder_weight.float().norm(dim=-1, keepdim=True)
    return torch.where(found, rows, decoder * (lengths.median() if len(lengths) else 1.0))

"""Another autoencoder as the judge, so that no concept is judged by the one that made its labels.

It may be of another layer and size. Latent j of it stands for concept i where both are active at the same positions of
held-out text: the one with the largest correlation of the two activities (phi), with N positions, n_i and n_j at which
either is active and n_ij at which both are:

    phi = (N n_ij - n_i n_j) / sqrt(n_i (N - n_i) n_j (N - n_j))
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from cocomix.data.shards import TokenShards
from cocomix.model.teacher import hidden_at_layers
from cocomix.sae.sae import SparseLatents, TopKSAE
from cocomix.steering.study.concepts import BATCH, WINDOWS, spread_windows

LEAST_CORRELATION = 0.3
"""Concepts that no latent of the judge agrees with as much are not steered: nobody could say whether they are there."""


class SaeAt(NamedTuple):
    """An autoencoder, and the block (0-based) of the concept model after which it reads."""

    sae: TopKSAE
    layer: int


class Matches(NamedTuple):
    """The latent that stands for each of some concepts."""

    latents: torch.Tensor
    """int64 `[concepts]`"""
    correlations: torch.Tensor
    """phi, float64 `[concepts]`; 0 where one of the two is never active, or always"""


class JudgingSae(NamedTuple):
    """An autoencoder that judges, and the latents by which it knows the steered concepts."""

    sae: TopKSAE
    layer: int
    latents: torch.Tensor
    """int64 `[concepts]`"""


@torch.no_grad()
def match_latents(
    teacher: PreTrainedModel,
    own: SaeAt,
    other: SaeAt,
    concepts: Sequence[int],
    shards: TokenShards,
    seq_len: int,
) -> Matches:
    """The latent of `other` that stands for each of the `concepts` of `own`, found on windows spread over the shards.

    Raises:
        CocomixError: the shards hold no whole window.
    """
    both, count = torch.zeros(len(concepts), other.sae.n_latents, dtype=torch.double), 0
    chosen = torch.tensor(concepts, device=teacher.device)
    alone = {}
    for ids in spread_windows(shards, WINDOWS, seq_len).split(BATCH):
        layers = sorted({own.layer, other.layer})
        hidden = dict(zip(layers, hidden_at_layers(teacher, ids.to(teacher.device), layers), strict=True))
        active = {}
        for name, one in (("own", own), ("other", other)):
            states = hidden[one.layer][:, shards.special.first_position :].flatten(0, 1)
            active[name] = active_latents(one.sae.encode(states), one.sae.n_latents)
        active["own"] = active["own"][:, chosen]
        both += (active["own"].T @ active["other"]).cpu().double()
        for name, on in active.items():
            alone[name] = alone.get(name, 0) + on.sum(0).cpu().double()
        count += len(active["own"])
    own_count, other_count = alone["own"][:, None], alone["other"]
    spread = own_count * (count - own_count) * other_count * (count - other_count)
    phi = torch.where(spread > 0, (count * both - own_count * other_count) / spread.clamp_min(1).sqrt(), 0.0)
    best = phi.max(-1)
    return Matches(best.indices, best.values)


def active_latents(latents: SparseLatents, n_latents: int) -> torch.Tensor:
    """1 where a latent is active, else 0, float32 `[positions, n_latents]`."""
    active = torch.zeros(len(latents.ids), n_latents, device=latents.ids.device)
    return active.scatter_reduce_(1, latents.ids, (latents.values > 0).float(), "amax")

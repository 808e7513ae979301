"""Directions of concepts in a model's hidden states h: where they are, and where the model says them.

- `concept_contrasts`: differences of means. The direction of latent i is the mean of u = h / |h| over the positions at
  which it is active, less the mean over all others. An autoencoder's decoder has what is a latent's alone, given all
  other latents; a difference of means also has what comes with it, and moves generated text much further at the same
  length.
- `concept_pulls` adds to it what raises the likelihood of text in which the concept comes next. With the gradient
  g[t] = |h[t]| d/dh[t] sum_s log p(x[s] | x[<s]), b_i is the mean of g over the positions before those at which
  latent i is active, less the mean over all others. It is nearly orthogonal to the difference of means a_i, so both
  together bring more of a concept at the same cost (docs/decisions.md).

Moving all hidden states along v costs, to second order, |h|^2 v^T F v / 2 nats, F = E[g g^T] (the empirical Fisher
information). With q(v) = (v^T F v)^(1/2) and the share s_i = max(0, 1 - tr F / (n_i |b_i|^2)) of b_i that is more than
chance in n_i positions (James and Stein), the direction is

    a_i + PULL s_i q(a_i) / q(b_i) b_i,    scaled to cost q(a_i).
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from cocomix.model.teacher import NextTokenLoss, frozen, gradient_at, hidden_at
from cocomix.sae.sae import TopKSAE
from cocomix.utils.env import as_float64

LEAST = 16
"""Positions from which a direction is taken; of latents that are active at fewer it is the decoder's."""
PULL = 2.0
"""How much more of the gradient than of the difference of means there is in a direction, by what each costs."""


class MeanDifferences:
    """Differences of the means of vectors inside and outside of sets of positions, from batches of positions."""

    def __init__(self) -> None:
        self._inside: Any = 0.0
        self._counts: Any = 0.0
        self._total: Any = 0.0
        self._positions = 0

    def add(self, vectors: torch.Tensor, members: torch.Tensor) -> None:
        """Take in vectors `[positions, d]`, and which of them are in each set, sparse `[sets, positions]`."""
        vectors, members = vectors.cpu().double(), members.cpu().double()  # an Apple GPU has no float64
        self._inside += members @ vectors
        self._counts += torch.sparse.sum(members, 1).to_dense()
        self._total += vectors.sum(0)
        self._positions += len(vectors)

    @property
    def counts(self) -> torch.Tensor:
        """Positions inside of each set, float64 `[sets]`."""
        return self._counts

    def differences(self) -> torch.Tensor:
        """Float64 `[sets, d]`, 0 where a set has no position or all."""
        n = self._counts[:, None]
        outside = self._positions - n
        vectors = self._inside / n - (self._total - self._inside) / outside
        return torch.where((n > 0) & (outside > 0), vectors, 0.0)


def unit(hidden: torch.Tensor) -> torch.Tensor:
    """h / |h|, float64."""
    hidden = as_float64(hidden)
    return hidden / hidden.norm(dim=-1, keepdim=True)


@torch.no_grad()
def concept_contrasts(
    model: PreTrainedModel, sae: TopKSAE, layer: int, windows: Iterable[torch.Tensor], first_position: int = 0
) -> torch.Tensor:
    """Differences of means of all latents, float32 `[C, d_model]`.

    Rows of rare latents are the decoder's, at the median length of the others.

    Args:
        layer: the block (0-based) after which the autoencoder reads.
        windows: tokens int64 `[batch, seq]`.
        first_position: positions before this one are left out.
    """
    means = MeanDifferences()
    for ids in windows:
        hidden = hidden_at(model, ids.to(model.device), layer)[:, first_position:]
        latents = sae.encode(hidden)
        means.add(unit(hidden.flatten(0, 1)), _sets(latents.ids, latents.values > 0, sae.n_latents))
    return _with_decoder(means.differences(), means.counts, sae)


def concept_pulls(
    model: PreTrainedModel, sae: TopKSAE, layer: int, windows: Iterable[torch.Tensor], first_position: int = 0
) -> torch.Tensor:
    """Differences of means and mean gradients of all latents together, float32 `[C, d_model]`.

    Arguments and rows of rare latents are those of `concept_contrasts`.
    """
    means, gradients = MeanDifferences(), MeanDifferences()
    fisher: Any = 0.0
    positions = 0
    with frozen(model):
        for batch in windows:
            ids = batch.to(model.device)
            loss = NextTokenLoss(model, ids)
            with torch.no_grad():
                hidden = hidden_at(model, ids, layer)
            gradient = -gradient_at(model, layer, hidden, loss.total)
            hidden, gradient = hidden[:, first_position:], gradient[:, first_position:]
            latents = sae.encode(hidden)
            ids, active = latents.ids, latents.values > 0
            means.add(unit(hidden.flatten(0, 1)), _sets(ids, active, sae.n_latents))
            pull = (as_float64(gradient) * as_float64(hidden).norm(dim=-1, keepdim=True))[:, :-1].flatten(0, 1)
            gradients.add(pull, _sets(ids[:, 1:], active[:, 1:], sae.n_latents))
            fisher, positions = fisher + (pull.T @ pull).cpu(), positions + len(pull)
    rows = combined(means.differences(), gradients.differences(), gradients.counts, fisher / positions)
    return _with_decoder(rows, means.counts, sae)


def combined(
    contrasts: torch.Tensor, gradients: torch.Tensor, counts: torch.Tensor, fisher: torch.Tensor
) -> torch.Tensor:
    """Directions a + PULL s q(a) / q(b) b that cost q(a), see the top; float64 `[C, d_model]`.

    Args:
        contrasts, gradients: a and b, `[C, d_model]`.
        counts: n, positions that b is the mean of, `[C]`.
        fisher: F, `[d_model, d_model]`.
    """

    def cost(v: torch.Tensor) -> torch.Tensor:
        return (v @ fisher * v).sum(-1, keepdim=True).clamp_min(0).sqrt()

    smallest = torch.finfo(torch.double).tiny
    squares = (counts * gradients.square().sum(-1)).clamp_min(smallest)
    share = (1 - fisher.trace() / squares).clamp_min(0)[:, None]
    rows = contrasts + PULL * share * cost(contrasts) / cost(gradients).clamp_min(smallest) * gradients
    return rows * cost(contrasts) / cost(rows).clamp_min(smallest)


def _sets(ids: torch.Tensor, active: torch.Tensor, n_latents: int) -> torch.Tensor:
    """The positions at which each latent is active, sparse `[C, positions]`.

    Args:
        ids: latents of each position, int64 `[batch, seq, K]`.
        active: which of them are active, bool of the same shape.
    """
    ids, active = ids.flatten(0, 1), active.flatten(0, 1)
    places = torch.stack([ids[active], active.nonzero()[:, 0]])
    ones = torch.ones(places.shape[1], device=places.device)
    return torch.sparse_coo_tensor(places, ones, (n_latents, len(ids)), check_invariants=True)


def _with_decoder(rows: torch.Tensor, counts: torch.Tensor, sae: TopKSAE) -> torch.Tensor:
    """`rows` `[C, d_model]`, with the decoder's in place of those of fewer than LEAST positions or of 0, float32."""
    decoder = unit(sae.decoder_weight.detach()).float().to(sae.decoder_weight.device)
    rows, found = rows.float().to(decoder.device), ((counts >= LEAST) & rows.any(-1)).to(decoder.device)[:, None]
    lengths = rows[found[:, 0]].norm(dim=-1)
    return torch.where(found, rows, decoder * (lengths.median() if len(lengths) else 1.0))


class Directions(NamedTuple):
    """A kind of directions."""

    of: Callable[[PreTrainedModel, TopKSAE, int, Iterable[torch.Tensor], int], torch.Tensor]
    windows: int
    """windows of text that they are taken from"""


DIRECTIONS = {
    "contrast": Directions(concept_contrasts, 256),
    "pull": Directions(concept_pulls, 768),  # a mean of gradients is noisier
}
"""Kinds of directions by name."""

"""Metrics of an autoencoder: how well it reconstructs hidden states, and what its error costs the model.

`sae_quality` computes explained variance, L0, the share of dead latents and how often each latent fires from hidden
states alone. `spliced_losses` replaces a layer's output by its reconstruction and compares the model's loss with the
plain one and with that of a useless autoencoder, which returns zeros or the mean hidden state.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedModel

from cocomix.model.documents import document_positions
from cocomix.model.teacher import hidden_at, model_inputs, next_token_losses, resumed_at
from cocomix.sae.positions import NOTHING, LeftOut
from cocomix.sae.sae import TopKSAE
from cocomix.utils.env import as_float64
from cocomix.utils.errors import CocomixError

LOWEST_LOG, BIN = -7.0, 0.25
"""First edge and width of the histogram's bins, in log10 of a latent's frequency; the last edge is 0."""


class Reconstruction:
    """Reconstruction metrics of an autoencoder, accumulated over batches of hidden states."""

    def __init__(self, sae: TopKSAE) -> None:
        self.sae, self.tokens = sae, 0
        self._error = self._square = self._active = self._full = 0.0
        self._total = torch.zeros(sae.d_model, dtype=torch.float64)
        self.fired = torch.zeros(sae.n_latents, dtype=torch.int64)
        """number of tokens at which each latent was active, int64 `[C]`"""

    @torch.no_grad()
    def add(self, x: torch.Tensor) -> None:
        """Add hidden states `x` `[n, d_model]`."""
        latents = self.sae.encode(x)
        active, wide = latents.values > 0, as_float64(x)
        self._error += float(as_float64(self.sae.decode(latents) - x).square().sum())
        self._active += int(active.sum())
        self._full += int(active.all(-1).sum())
        self.fired += torch.bincount(latents.ids[active], minlength=self.sae.n_latents).cpu()
        self._total += wide.sum(0).cpu()
        self._square += float(wide.square().sum())
        self.tokens += len(x)

    @property
    def mean(self) -> torch.Tensor:
        """The mean hidden state, float64 `[d_model]`."""
        return self._total / self.tokens

    def figures(self) -> dict[str, Any]:
        """The metrics that `sae_quality` returns."""
        if self.tokens == 0:
            raise CocomixError(
                "there are no hidden states to measure the autoencoder on; the validation split is too short"
            )
        deviation = self._square - float(self._total.square().sum()) / self.tokens
        return {
            "explained_variance": 1 - self._error / deviation if deviation else math.nan,
            "l0": self._active / self.tokens,
            "dead_share": float((self.fired == 0).double().mean()),
            "full_share": self._full / self.tokens,
            "mse": self._error / self.tokens / self.sae.d_model,
            "measured_tokens": self.tokens,
            "density": density(self.fired, self.tokens),
        }


def density(fired: torch.Tensor, tokens: int) -> dict[str, list[float]]:
    """Histogram of how often latents fire.

    Args:
        fired: number of tokens at which each latent was active, int64 `[C]`.
        tokens: number of all tokens.

    Returns:
        `edges`, log10 of frequencies, one more than bins; `latents`, the number of latents in each bin. Latents that
        never fired are left out; frequencies below the first edge count in the first bin.
    """
    bins = round(-LOWEST_LOG / BIN)
    logs = (fired[fired > 0].double() / tokens).log10()
    places = ((logs - LOWEST_LOG) / BIN).floor().long().clamp(0, bins - 1)
    return {
        "edges": [LOWEST_LOG + i * BIN for i in range(bins + 1)],
        "latents": torch.bincount(places, minlength=bins).tolist(),
    }


def sae_quality(sae: TopKSAE, batches: Iterable[torch.Tensor]) -> dict[str, Any]:
    """Reconstruction metrics of an autoencoder on hidden states.

    Args:
        batches: hidden states `[n, d_model]`.

    Returns:
        `explained_variance` (1 - squared error / squared deviation from the mean hidden state), `l0` (mean number
        of non-zero latents), `dead_share` (share of latents that never fired here), `full_share` (share of positions
        at which all k are active, so that one with thresholds may have been cut), `mse` (per element),
        `measured_tokens`, `density` (a histogram, see `density`).
    """
    reconstruction = Reconstruction(sae)
    for x in batches:
        reconstruction.add(x)
    return reconstruction.figures()


@torch.no_grad()
def spliced_losses(
    model: PreTrainedModel,
    sae: TopKSAE,
    batches: Iterable[torch.Tensor],
    *,
    layer: int,
    mean: torch.Tensor,
    left_out: LeftOut = NOTHING,
) -> dict[str, Any]:
    """Next-token losses of the model with the output of block `layer` replaced at every position kept.

    Args:
        batches: token ids, int64 `[batch, seq]`, on the model's device.
        mean: the mean hidden state, `[d_model]`.
        left_out: positions that keep their hidden states.

    Returns:
        `loss_plain`, `loss_sae` (reconstruction spliced in), `loss_zero`, `loss_mean` (zeros or the mean hidden state
        in its place), nats a token; `loss_recovered`, (loss_zero - loss_sae) / (loss_zero - loss_plain), and
        `loss_recovered_of_mean`, the same against `loss_mean`, None where a denominator is 0; `spliced_tokens`.
    """
    totals, tokens = {"plain": 0.0, "sae": 0.0, "zero": 0.0, "mean": 0.0}, 0
    for ids in batches:
        hidden, positions = hidden_at(model, ids, layer), document_positions(model, ids)
        spliced = {
            "plain": hidden,
            "sae": sae(hidden).to(hidden.dtype),
            "zero": torch.zeros_like(hidden),
            "mean": mean.to(hidden.dtype).to(hidden.device).expand_as(hidden),
        }
        for name, replaced in spliced.items():
            with resumed_at(model, layer, left_out.keep(hidden, replaced, positions)):
                logits = model(**model_inputs(model, ids, None)).logits
            totals[name] += float(as_float64(next_token_losses(logits, ids)).sum())
        tokens += ids.shape[0] * (ids.shape[1] - 1)
    if not tokens:
        raise CocomixError("there are no tokens to splice the autoencoder into; the validation split is too short")
    loss = {name: total / tokens for name, total in totals.items()}
    return {
        **{f"loss_{name}": value for name, value in loss.items()},
        "loss_recovered": _recovered(loss["zero"], loss),
        "loss_recovered_of_mean": _recovered(loss["mean"], loss),
        "spliced_tokens": tokens,
    }


def _recovered(worst: float, loss: dict[str, float]) -> float | None:
    return (worst - loss["sae"]) / (worst - loss["plain"]) if worst != loss["plain"] else None

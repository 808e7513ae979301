"""Predict concepts from a hidden state."""

from typing import NamedTuple

import torch
from torch import nn

from cocomix.kernels.linear_cross_entropy import LinearLosses, linear_losses, plain_linear
from cocomix.kernels.matmul import Linear
from cocomix.kernels.normalize import normalise
from cocomix.kernels.topk import largest
from cocomix.model.own_init import OwnInit


class ConceptPrediction(NamedTuple):
    """Predicted concepts, and what is needed to bring them back to the hidden states' scale."""

    logits: torch.Tensor | None
    """z, `[batch, seq, C]`; None where only its losses were asked for"""
    values: torch.Tensor
    """the K largest logits as they are, without ReLU, `[batch, seq, K]`"""
    ids: torch.Tensor
    """their concepts, int64 `[batch, seq, K]`"""
    mean: torch.Tensor
    """mean of the hidden state, `[batch, seq, 1]`"""
    std: torch.Tensor
    """unbiased standard deviation of the hidden state, `[batch, seq, 1]`"""
    pre_bias: torch.Tensor
    """the learned centre, `[d_model]`, subtracted before prediction and added back after mixing"""
    losses: LinearLosses | None = None
    """cross entropies of the labels, where logits were not kept"""


class ConceptHead(OwnInit):
    """z = M (norm(h) - pre_bias) + b, with norm(h) = (h - mean) / (std + 1e-5) as in the SAE.

    Args:
        hidden_size: d_model.
        num_concepts: C.
        top_k: K, concepts kept.
    """

    def __init__(self, hidden_size: int, num_concepts: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.pre_bias = nn.Parameter(torch.zeros(hidden_size))
        self.proj = Linear(hidden_size, num_concepts)

    def reset(self, std: float) -> None:
        nn.init.zeros_(self.pre_bias)

    def forward(self, hidden: torch.Tensor, labels: torch.Tensor | None = None) -> ConceptPrediction:
        """Prediction for `hidden` `[batch, seq, d_model]`.

        With `labels` int64 `[batch, seq, K_attr]` (-100 is ignored) their losses are computed and the logits not kept,
        unless something is hooked to the projection, which then sees all logits.
        """
        normed, mean, std = normalise(hidden)
        centred = normed - self.pre_bias
        if labels is None or not plain_linear(self.proj):
            logits = self.proj(centred)
            values, ids = largest(logits, self.top_k)
            return ConceptPrediction(logits, values, ids, mean, std, self.pre_bias)
        losses = self._losses(centred, labels, self.top_k)
        assert losses.values is not None and losses.ids is not None
        values, ids = (one.view(*hidden.shape[:-1], -1) for one in (losses.values, losses.ids))
        return ConceptPrediction(None, values, ids, mean, std, self.pre_bias, losses)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """z alone, `[batch, seq, C]`."""
        return self.proj(normalise(hidden)[0] - self.pre_bias)

    def losses(self, hidden: torch.Tensor, labels: torch.Tensor) -> LinearLosses | None:
        """Losses of the labels alone; None where something is hooked to the projection."""
        return self._losses(normalise(hidden)[0] - self.pre_bias, labels) if plain_linear(self.proj) else None

    def _losses(self, centred: torch.Tensor, labels: torch.Tensor, top_k: int = 0) -> LinearLosses:
        return linear_losses(centred.flatten(0, 1), self.proj.weight, self.proj.bias, labels.flatten(0, 1), top_k=top_k)

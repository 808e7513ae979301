"""Predict concepts from a hidden state."""

from typing import NamedTuple

import torch
from torch import nn

from cocomix.model.own_init import OwnInit
from cocomix.normalise import normalise


class ConceptPrediction(NamedTuple):
    """Predicted concepts, and what is needed to bring them back to the hidden states' scale."""

    logits: torch.Tensor
    """z, `[batch, seq, C]`"""
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
        self.proj = nn.Linear(hidden_size, num_concepts)

    def reset(self, std: float) -> None:
        nn.init.zeros_(self.pre_bias)

    def forward(self, hidden: torch.Tensor) -> ConceptPrediction:
        """Prediction for `hidden` `[batch, seq, d_model]`."""
        logits, mean, std = self._project(hidden)
        values, ids = logits.topk(self.top_k, dim=-1)
        return ConceptPrediction(logits, values, ids, mean, std, self.pre_bias)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """z alone, `[batch, seq, C]`."""
        return self._project(hidden)[0]

    def _project(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        normed, mean, std = normalise(hidden)
        return self.proj(normed - self.pre_bias), mean, std

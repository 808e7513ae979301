"""How predicted concepts join the hidden states: one small class a way, registered in `MIXERS`.

A mixer decides how many slots a token has in the upper blocks, what stands in them, and which of them feed the
head. Masks, positions and the cache follow from `slots` alone.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from cocomix.model.concept_head import ConceptPrediction


class ConceptVector(nn.Module):
    """c_hat = (W TopK(z) + b + pre_bias) * std + mean: K active concepts as one vector in the hidden states' scale.

    W is stored row by row, `[C, d_model]`, so that K active concepts are K gathered rows.
    """

    def __init__(self, hidden_size: int, num_concepts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_concepts, hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, prediction: ConceptPrediction) -> torch.Tensor:
        """The continuous concept, `[batch, seq, d_model]`."""
        k = prediction.ids.shape[-1]
        values = prediction.values.reshape(-1, k).to(self.weight.dtype)
        flat = F.embedding_bag(prediction.ids.reshape(-1, k), self.weight, per_sample_weights=values, mode="sum")
        vector = flat.view(*prediction.ids.shape[:-1], -1) + self.bias + prediction.pre_bias
        return vector * prediction.std + prediction.mean


class Mixer(nn.Module, ABC):
    """Interface of all mixings.

    Args:
        hidden_size: d_model.
        num_concepts: C.
    """

    slots: ClassVar[int] = 1
    """slots a token has in the blocks from concept_layer on"""

    def __init__(self, hidden_size: int, num_concepts: int) -> None:
        super().__init__()
        self.vector = ConceptVector(hidden_size, num_concepts)

    @abstractmethod
    def forward(self, hidden: torch.Tensor, prediction: ConceptPrediction) -> torch.Tensor:
        """Input of the upper blocks, `[batch, seq * slots, d_model]`, from `hidden` `[batch, seq, d_model]`."""

    @abstractmethod
    def readout(self, hidden: torch.Tensor) -> torch.Tensor:
        """The slots that feed the head, `[batch, seq, d_model]`, from `[batch, seq * slots, d_model]`."""


class InterleaveMixer(Mixer):
    """(h1, c_hat1, h2, c_hat2, ...): a slot for each concept vector after its token; concept slots feed the head."""

    slots = 2

    def forward(self, hidden: torch.Tensor, prediction: ConceptPrediction) -> torch.Tensor:
        concept = self.vector(prediction).to(hidden.dtype)
        return torch.stack((hidden, concept), dim=2).flatten(1, 2)

    def readout(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden[:, 1::2]


class AddMixer(Mixer):
    """h + c_hat: no extra slot, so the upper blocks cost what they cost in a plain model."""

    def forward(self, hidden: torch.Tensor, prediction: ConceptPrediction) -> torch.Tensor:
        return hidden + self.vector(prediction).to(hidden.dtype)

    def readout(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


MIXERS: dict[str, type[Mixer]] = {"interleave": InterleaveMixer, "add": AddMixer}

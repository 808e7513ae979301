"""What is predicted at concept_layer and the vector it becomes: one small class each, registered in `CHANNELS`."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cocomix.kernels.normalize import normalise
from cocomix.kernels.sparse import weighted_rows
from cocomix.model.backbones import Backbone
from cocomix.model.channel import Channel, Predicted
from cocomix.model.concept_head import ConceptHead, ConceptPrediction
from cocomix.model.mixers import BlockCost
from cocomix.model.ncp import NextConceptChannel
from cocomix.model.own_init import OwnInit
from cocomix.utils.registry import check_choice

if TYPE_CHECKING:
    from cocomix.model.configuration_cocomix import CoCoMixConfig


class ConceptVector(OwnInit):
    """c_hat = (W TopK(z) + b + pre_bias) * std + mean: K active concepts as one vector in the hidden states' scale.

    W is stored row by row, `[C, d_model]`, so that K active concepts are K gathered rows.
    """

    def __init__(self, hidden_size: int, num_concepts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_concepts, hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))

    def reset(self, std: float) -> None:
        nn.init.normal_(self.weight, std=std)
        nn.init.zeros_(self.bias)

    def forward(self, prediction: ConceptPrediction) -> torch.Tensor:
        """The continuous concept, `[batch, seq, d_model]`."""
        vector = weighted_rows(prediction.values, prediction.ids, self.weight) + self.bias + prediction.pre_bias
        return vector * prediction.std + prediction.mean


class ConceptChannel(Channel):
    """The paper's: concept logits, their TopK, and the vector these make (equations 4 and 5)."""

    def __init__(self, config: "CoCoMixConfig", backbone: Backbone, with_vector: bool) -> None:
        super().__init__(config, backbone, with_vector)
        self.head = ConceptHead(config.hidden_size, config.num_concepts, config.concept_top_k)
        self.vector = ConceptVector(config.hidden_size, config.num_concepts) if with_vector else None

    def forward(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        padding: torch.Tensor | None,
        labels: torch.Tensor | None = None,
    ) -> Predicted:
        if self.vector is None:
            losses = None if labels is None else self.head.losses(hidden, labels)
            return Predicted(None, self.head.logits(hidden) if losses is None else None, concept_losses=losses)
        prediction = self.head(hidden, labels)
        return Predicted(self.vector(prediction), prediction.logits, concept_losses=prediction.losses)

    @classmethod
    def flops(cls, config: "CoCoMixConfig", cost: BlockCost, with_vector: bool) -> float:
        rows = config.num_concepts + (config.concept_top_k if with_vector else 0)
        return 2 * rows * config.hidden_size


class PauseChannel(Channel):
    """Nothing is predicted: one learned vector stands at every place (pause tokens).

    Where positions are learned the place's own is added, as to any token: without it all pauses would ask the same
    question of the context and could not find the token before them.
    """

    def __init__(self, config: "CoCoMixConfig", backbone: Backbone, with_vector: bool) -> None:
        super().__init__(config, backbone, with_vector)
        self.vector = nn.Parameter(torch.empty(config.hidden_size))
        self._backbone = (backbone,)  # in a tuple: its weights are the model's, not this module's

    def forward(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        padding: torch.Tensor | None,
        labels: torch.Tensor | None = None,
    ) -> Predicted:
        embedded = self._backbone[0].embed(self.vector.expand(*positions.shape, -1), positions)
        return Predicted(embedded.expand_as(hidden))

    @classmethod
    def flops(cls, config: "CoCoMixConfig", cost: BlockCost, with_vector: bool) -> float:
        return 0.0

    def reset(self, std: float) -> None:
        nn.init.normal_(self.vector, std=std)


class HiddenChannel(Channel):
    """The teacher's normalised hidden state is predicted linearly and projected back: concepts without the SAE.

    y = M norm(h) + b in R^target_size; vector = (W y + c) * std + mean, with norm, mean and std as in the concept head.

    Args:
        target_size: width of the teacher's hidden states.
    """

    def __init__(self, config: "CoCoMixConfig", backbone: Backbone, with_vector: bool, *, target_size: int) -> None:
        super().__init__(config, backbone, with_vector)
        self.head = nn.Linear(config.hidden_size, target_size)
        self.back = nn.Linear(target_size, config.hidden_size) if with_vector else None

    def forward(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        padding: torch.Tensor | None,
        labels: torch.Tensor | None = None,
    ) -> Predicted:
        normed, mean, std = normalise(hidden)
        predicted = self.head(normed)
        vector = None if self.back is None else self.back(predicted) * std + mean
        return Predicted(vector, hidden=predicted)

    @classmethod
    def flops(cls, config: "CoCoMixConfig", cost: BlockCost, with_vector: bool) -> float:
        return (4 if with_vector else 2) * config.channel_options["target_size"] * config.hidden_size


CHANNELS: dict[str, type[Channel]] = {
    "concepts": ConceptChannel,
    "pause": PauseChannel,
    "hidden": HiddenChannel,
    "ncp": NextConceptChannel,
}


def check_channel(name: str, options: dict[str, Any]) -> None:
    """Refuse a channel that does not exist, or options it does not have.

    Raises:
        ConfigError: with what would do.
    """
    check_choice("channel", CHANNELS, name, options, own=("config", "backbone", "with_vector"))

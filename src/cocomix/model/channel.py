"""The interface of what is predicted at concept_layer."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch

from cocomix.kernels.linear_cross_entropy import LinearLosses
from cocomix.model.backbones import Backbone
from cocomix.model.mixers import BlockCost
from cocomix.model.own_init import OwnInit

if TYPE_CHECKING:
    from cocomix.model.configuration_cocomix import CoCoMixConfig


class Predicted(NamedTuple):
    """What a channel makes of the hidden states entering the upper blocks."""

    vector: torch.Tensor | None
    """`[batch, seq, d_model]`, for the mixer; None where the mixer uses none"""
    concept_logits: torch.Tensor | None = None
    """z, `[batch, seq, C]`"""
    hidden: torch.Tensor | None = None
    """the teacher's normalised hidden state as predicted, `[batch, seq, target_size]`"""
    loss: torch.Tensor | None = None
    """the channel's own training loss, a scalar; only while training"""
    concept_losses: LinearLosses | None = None
    """cross entropies of the concept labels, in place of the logits"""


class Channel(OwnInit, ABC):
    """Interface of all channels.

    Args:
        config: the model's; `channel_options` there are the keyword arguments of the class.
        backbone: the model's, for blocks of its family.
        with_vector: whether the mixer uses a vector; without one its weights are left out.
    """

    cacheable: ClassVar[bool] = True
    """Whether a position's vector depends on that position's hidden state alone, so that cached generation works."""

    def __init__(self, config: "CoCoMixConfig", backbone: Backbone, with_vector: bool) -> None:
        super().__init__()

    @abstractmethod
    def forward(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        padding: torch.Tensor | None,
        labels: torch.Tensor | None = None,
    ) -> Predicted:
        """What is predicted from `hidden`.

        Args:
            hidden: entering the upper blocks, `[batch, seq, d_model]`.
            positions: of its tokens, int64 `[batch or 1, seq]`.
            padding: 1 for tokens, 0 for padding, `[batch, past + seq]`; None: no padding.
            labels: concepts of each position, int64 `[batch, seq, K_attr]`, where their losses will do without logits.
        """

    @classmethod
    @abstractmethod
    def flops(cls, config: "CoCoMixConfig", cost: BlockCost, with_vector: bool) -> float:
        """Forward operations per token; `cost` is that of one block over the whole context."""

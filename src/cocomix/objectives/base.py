"""The interface between an objective and the training loop."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn


class Objective(nn.Module, ABC):
    """A model and the loss it is trained on; calling it with a batch returns the mean loss, a scalar.

    Attributes:
        holds_logits: whether a step holds the logits of all its tokens, and their gradient.
    """

    holds_logits: ClassVar[bool] = True

    @abstractmethod
    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean loss of a batch: `input_ids` int64 `[batch, seq]` and what else the objective needs.

        `progress`, a scalar, is the share of the training that lies behind.
        """

    @abstractmethod
    def trainable(self) -> nn.Module:
        """The module whose parameters are optimised and saved."""

    def evaluated(self) -> nn.Module:
        """The module whose perplexity is measured."""
        return self.trainable()

    def clipped(self) -> Sequence[nn.Module]:
        """Modules whose gradient norms are limited, each by itself."""
        return [self.trainable()]

    def sharded_units(self) -> list[nn.Module]:
        """Modules FSDP2 gathers one at a time, the innermost first: blocks, then the model, then what is left."""
        model = self.evaluated()
        stack = next((module for module in model.modules() if isinstance(module, nn.ModuleList)), ())
        outside = {id(p) for p in self.parameters()} - {id(p) for p in model.parameters()}
        return [*stack, model, *([self] if outside else [])]

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the trained module in its own format."""

    @abstractmethod
    def flops_per_token(self, seq_len: int) -> float:
        """Training cost per token, forward and backward, two operations a multiply-accumulate."""

    def before_step(self) -> None:
        """Called after the backward pass, before clipping and the optimiser."""

    def after_step(self) -> None:
        """Called after each optimiser step."""

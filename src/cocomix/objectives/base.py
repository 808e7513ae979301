"""The interface between an objective and the training loop."""

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import nn


class Objective(nn.Module, ABC):
    """A model and the loss it is trained on; calling it with a batch returns the mean loss, a scalar."""

    @abstractmethod
    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean loss of a batch: `input_ids` int64 `[batch, seq]` and what else the objective needs."""

    @abstractmethod
    def trainable(self) -> nn.Module:
        """The module whose parameters are optimised and saved."""

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

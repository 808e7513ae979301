"""Schedules of a loss's weight: constant, or falling to 0 by a share of the training, linearly or as a cosine."""

import math
from typing import Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator

from cocomix.utils.settings import Section, added

Shape = Literal["linear", "cosine"]


class WeightSchedule(NamedTuple):
    """The factor on a loss's weight over the training, from 1 at its beginning.

    With u = progress / until: linear is 1 - u, cosine is (1 + cos(pi u)) / 2; both are 0 from u = 1 on.
    """

    until: float | None = None
    """share of the training after which the factor is 0; None: it stays 1"""
    shape: Shape = "linear"

    def factor(self, progress: torch.Tensor | float) -> torch.Tensor | float:
        """The factor at `progress`, the share of the training done; of a tensor, a tensor of its dtype."""
        if self.until is None:
            return 1.0
        done = torch.as_tensor(progress / self.until)
        if self.shape == "cosine":
            return (1 + (math.pi * done.clamp_max(1)).cos()) / 2
        return (1 - done).clamp_min(0)

    def over(self, progress: torch.Tensor | float) -> bool:
        """Whether the factor is 0 from `progress` on."""
        return self.until is not None and bool(progress >= self.until)

    def share(self, progress: float = 1.0) -> float:
        """Share of the training up to `progress` in which the factor is not 0."""
        return 1.0 if self.until is None or not progress else min(1.0, self.until / progress)

    def describe(self) -> str:
        """As the end of a sentence on the weight; empty: it is constant."""
        if self.until is None:
            return ""
        return f" falling to 0 by {self.until:.0%}" + (" (cosine)" if self.shape == "cosine" else "")


class FallingWeight(Section):
    """Settings of a weight that may fall to 0."""

    loss_until: float | None = Field(
        default=None, gt=0, le=1, description="share of the training over which the weight falls to 0; empty: it stays"
    )
    loss_shape: Shape = added(default="linear", description="how it falls: linear or cosine")

    @model_validator(mode="after")
    def _shape_of_something(self) -> Self:
        if self.loss_until is None and self.loss_shape != "linear":
            raise ValueError(f"loss_shape {self.loss_shape} says how a weight falls to 0; say by when with loss_until")
        return self

    @property
    def schedule(self) -> WeightSchedule:
        """The schedule that they describe."""
        return WeightSchedule(self.loss_until, self.loss_shape)

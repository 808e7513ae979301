"""Next implicit token prediction (NITP, Zhang et al., arXiv 2605.24956): the next token's shallow state is predicted.

Loss: 1 - cos(P(h[t]), sg z[t+1]), a mean over the `seq - 1` positions; h is the student's last hidden state, z the
output of a shallow block in the same pass, and sg stops the gradient.

The formula is the authors' (github.com/aHapBean/NITP; their code is not out). Projection P (SwiGLU, inner width four
times d_model), the depth (a fifth of the blocks) and the weight 1 are as summarised by readers of the paper, which
could not be read here. Chosen here: h is taken after the final norm and z as it leaves its block; P has no biases.
"""

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn
from transformers import PreTrainedModel

from cocomix.model.build import Sizes
from cocomix.objectives.auxiliary import AuxiliaryObjective, AuxiliaryStudent
from cocomix.objectives.base import Objective
from cocomix.objectives.heads import initialise
from cocomix.objectives.schedule import WeightSchedule

INNER = 4
"""Inner width of the projection, in widths of the student."""


class NitpStudent(AuxiliaryStudent):
    """Next implicit token prediction: the last hidden state predicts a shallow block's output at the next token."""

    name = "nitp"

    target_layer: int | None = Field(
        default=None, ge=0, description="block (0-based) whose output is predicted; empty: the one at a fifth of all"
    )

    @model_validator(mode="after")
    def _layer_exists(self) -> Self:
        if self.model.layers < 2:
            raise ValueError("a nitp student needs a block below its last one; give it 2 layers or more")
        if self.target_layer is not None and self.target_layer >= self.model.layers - 1:
            raise ValueError(
                f"target_layer {self.target_layer} is not below the last of {self.model.layers} blocks;"
                f" choose 0 to {self.model.layers - 2}"
            )
        return self

    @property
    def layer(self) -> int:
        """Block whose output is predicted."""
        return max(1, round(self.model.layers / 5)) - 1 if self.target_layer is None else self.target_layer

    def make_objective(self, model: Any, sizes: Sizes, teacher: Callable[[], PreTrainedModel]) -> Objective:
        return NitpObjective(model, self.loss_weight, self.layer, self.schedule)

    def summary(self) -> str:
        return f"block {self.layer}'s output at the next token predicted, {self.describe_weight()}"


class Projection(nn.Module):
    """SwiGLU: down(silu(gate h) * up h)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(width, INNER * width, bias=False) for _ in range(2))
        self.down = nn.Linear(INNER * width, width, bias=False)
        initialise(self)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[batch, n, d_model]`."""
        return self.down(F.silu(self.gate(hidden)) * self.up(hidden))


class NitpObjective(AuxiliaryObjective):
    """Next-token loss + weight * (1 - cos(P(h[t]), sg z[t+1])).

    Args:
        model: the student.
        weight: weight of the cosine loss.
        layer: block (0-based) whose output is z.
        schedule: of the weight.
    """

    def __init__(
        self, model: PreTrainedModel, weight: float, layer: int, schedule: WeightSchedule | None = None
    ) -> None:
        config: Any = model.config
        super().__init__(model, Projection(config.hidden_size), weight, schedule)
        self.layer = layer

    def second(self, ids: torch.Tensor, states: tuple[torch.Tensor, ...]) -> torch.Tensor:
        target = states[self.layer + 1][:, 1:].detach()
        wide = torch.promote_types(target.dtype, torch.float32)
        predicted = self.all.heads(states[-1][:, :-1])
        return (1 - F.cosine_similarity(predicted.to(wide), target.to(wide), dim=-1)).mean()

    def second_flops(self, config: Any, seq_len: int) -> float:
        return 2 * 3 * INNER * config.hidden_size**2

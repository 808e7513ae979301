"""Next-latent prediction (NextLat, Teoh et al., arXiv 2511.05963): the student's next hidden state is predicted.

A small dynamics model p takes the last hidden state h[t] and the embedding e of the next token, and is rolled out over
`horizon` tokens: g[0] = h[t], g[i] = g[i-1] + MLP(LayerNorm([g[i-1], e(x[t+i])])). The loss is

    1/horizon sum_i SmoothL1(sg h[t+i], g[i]) + kl_weight/horizon sum_i KL(q(. | sg h[t+i]) || q(. | g[i])),

where sg stops the gradient, q is the student's next-token distribution, and the LM head in the second term gets no
gradient. It is meant to make h a belief state: a summary of the past that is enough to predict the future.

Formula, MLP (three layers, GELU, as wide as the student) and both weights 1 are as quoted from the paper's version 4 in
public notes on it; the paper itself could not be read here. The paper says that `horizon` 1 is enough in theory, and
that there Smooth L1 alone (`kl_weight: 0`) did best in its probes. Chosen here: Smooth L1 is a mean over the elements
with threshold 1, a position counts in step i if it has i further tokens, and gradients reach the student through h[t]
and the embedding.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from cocomix.kernels.divergence import linear_divergence
from cocomix.model.build import Sizes
from cocomix.model.flops import model_parts
from cocomix.objectives.auxiliary import AuxiliaryObjective, AuxiliaryStudent
from cocomix.objectives.base import Objective
from cocomix.objectives.heads import initialise
from cocomix.objectives.schedule import WeightSchedule
from cocomix.utils.errors import ConfigError


class NextLatStudent(AuxiliaryStudent):
    """Next-latent prediction: the student's next hidden state is predicted from the one before and the next token."""

    name = "nextlat"

    horizon: int = Field(default=1, ge=1, description="tokens that the dynamics model is rolled out over")
    kl_weight: float = Field(
        default=1.0, ge=0, description="weight of the divergence of next-token distributions, relative to Smooth L1"
    )

    def make_objective(self, model: Any, sizes: Sizes, teacher: Callable[[], PreTrainedModel]) -> Objective:
        if self.horizon >= sizes.seq_len:
            raise ConfigError(f"horizon {self.horizon} must be fewer tokens than seq_len {sizes.seq_len}")
        return NextLatObjective(model, self.loss_weight, self.kl_weight, self.horizon, self.schedule)

    def summary(self) -> str:
        return (
            f"the next hidden state predicted over {self.horizon} tokens, KL {self.kl_weight:g},"
            f" {self.describe_weight()}"
        )


class Dynamics(nn.Module):
    """g + MLP(LayerNorm([g, e])): the next hidden state from the present one and the next token's embedding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * width)
        self.mlp = nn.Sequential(
            nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
        )
        initialise(self)

    def forward(self, state: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        """`[batch, n, d_model]`, both."""
        return state + self.mlp(self.norm(torch.cat((state, embedded), dim=-1)))


class NextLatObjective(AuxiliaryObjective):
    """Next-token loss + weight * (Smooth L1 of the next hidden states + kl_weight * KL of what they predict).

    Args:
        model: the student.
        weight: weight of the second loss.
        kl_weight: weight of the divergence in it; 0: it is not computed.
        horizon: number of tokens the dynamics model is rolled out over.
        schedule: of the weight.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        weight: float,
        kl_weight: float,
        horizon: int,
        schedule: WeightSchedule | None = None,
    ) -> None:
        config: Any = model.config
        super().__init__(model, Dynamics(config.hidden_size), weight, schedule)
        self.kl_weight, self.horizon = kl_weight, horizon

    def second(self, ids: torch.Tensor, states: tuple[torch.Tensor, ...]) -> torch.Tensor:
        hidden, head = states[-1], self.lm_head()
        embedded = self.all.student.get_input_embeddings()(ids)
        rolled, loss = hidden, hidden.new_zeros(())
        for i in range(1, self.horizon + 1):
            rolled = self.all.heads(rolled[:, :-1], embedded[:, i:])
            target = hidden[:, i:].detach()
            loss = loss + F.smooth_l1_loss(rolled, target)
            if self.kl_weight:
                parts = (rolled.flatten(0, 1), target.flatten(0, 1), head.weight.detach())
                divergence = linear_divergence(*parts, None if head.bias is None else head.bias.detach())
                loss = loss + self.kl_weight * divergence / (rolled.shape[0] * rolled.shape[1])
        return loss / self.horizon

    def second_flops(self, config: Any, seq_len: int) -> float:
        """The MLP, and an LM head for each divergence: two forward passes and one gradient, as training counts one."""
        head = model_parts(config, seq_len).head if self.kl_weight else 0.0
        return self.horizon * (2 * 4 * config.hidden_size**2 + head)

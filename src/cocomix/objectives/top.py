"""Token order prediction (TOP, Zuhri et al., arXiv 2508.19228): upcoming tokens are ranked by how soon they come.

A second unembedding over the student's last hidden state scores every token of the vocabulary. The target gives a token
that comes first at x[t + 1 + j], j = 0 .. window - 1, the score window - j, and every other token none; the loss is
ListNet's, the cross entropy between the softmax of these scores and the softmax of the predicted ones.

Read from the authors' abstract and code (github.com/zaydzuhri/token-order-prediction), not from the paper. Their two
target functions differ by one at the window's end; this is the fused one's, a window of exactly `window` tokens.
Chosen here: the weight 1 and the window, of which neither says anything. Positions near the end of a text have a
shorter window, and the last one, which has none, does not count.

The target softmax falls by a factor e with each token, so that after `REACH` of them it is below the rounding error of
double precision. It is stored as that many weights a position, not as a row of the vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from cocomix.kernels.linear_cross_entropy import linear_losses
from cocomix.model.build import Sizes
from cocomix.model.flops import model_parts
from cocomix.objectives.auxiliary import AuxiliaryObjective, AuxiliaryStudent
from cocomix.objectives.base import Objective
from cocomix.objectives.heads import initialise
from cocomix.objectives.schedule import WeightSchedule

REACH = 40
"""Upcoming tokens that are looked at, at most: e^-40 is less than the rounding error of float64."""


class TopStudent(AuxiliaryStudent):
    """Token order prediction: upcoming tokens are ranked by how soon they come, by a head that only training uses."""

    name = "top"

    window: int = Field(default=32, ge=1, description="upcoming tokens that are ranked")

    def make_objective(self, model: Any, sizes: Sizes, teacher: Callable[[], PreTrainedModel]) -> Objective:
        return TopObjective(model, self.loss_weight, self.window, self.schedule)

    def summary(self) -> str:
        return f"the order of the next {self.window} tokens predicted, {self.describe_weight()}"


class TopObjective(AuxiliaryObjective):
    """Next-token loss + weight * ListNet(scores of a second unembedding, order of the upcoming tokens).

    Args:
        model: the student.
        weight: weight of the ranking loss.
        window: number of upcoming tokens that are ranked.
        schedule: of the weight.
    """

    def __init__(
        self, model: PreTrainedModel, weight: float, window: int, schedule: WeightSchedule | None = None
    ) -> None:
        config: Any = model.config
        head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        initialise(head)
        super().__init__(model, head, weight, schedule)
        self.window = window

    def second(self, ids: torch.Tensor, states: tuple[torch.Tensor, ...]) -> torch.Tensor:
        targets, weights = order_targets(ids, self.window, states[-1].dtype)
        hidden = states[-1][:, :-1].flatten(0, 1)
        head: Any = self.all.heads
        losses = linear_losses(hidden, head.weight, None, targets.flatten(0, 1), weights=weights.flatten(0, 1))
        return losses.total / max(1, len(hidden))

    def second_flops(self, config: Any, seq_len: int) -> float:
        return model_parts(config, seq_len).head


@torch.no_grad()
def order_targets(ids: torch.Tensor, window: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The target distribution over upcoming tokens at each position but the last.

    x[t + 1 + j] is there first after t if the same token was last seen at t or before.

    Args:
        ids: int64 `[batch, seq]`.

    Returns:
        Tokens, int64 `[batch, seq - 1, J]` with J = min(window, seq - 1, `REACH`), nearest first, -100 where the token
        came nearer already or the window of text ends; and their probabilities, which add up to 1.
    """
    seq = ids.shape[1]
    reach = min(window, seq - 1, REACH)
    places = torch.arange(seq, device=ids.device)
    order = ids.argsort(dim=1, stable=True)
    in_order = ids.gather(1, order)
    same = in_order[:, 1:] == in_order[:, :-1]
    seen = nn.functional.pad(order[:, :-1].masked_fill(~same, -1), (1, 0), value=-1)
    last_seen = torch.empty_like(ids).scatter_(1, order, seen)  # place of the same token before, or -1
    ahead = places[:-1, None] + 1 + torch.arange(reach, device=ids.device)  # [seq - 1, J]
    inside = ahead < seq
    ahead = ahead.clamp_max(seq - 1)
    first = inside & (last_seen[:, ahead] <= places[:-1, None])
    scores = -torch.arange(reach, device=ids.device, dtype=torch.promote_types(dtype, torch.float32))
    weights = scores.expand(first.shape).masked_fill(~first, -torch.inf).softmax(-1)
    return ids[:, ahead].masked_fill(~first, -100), weights

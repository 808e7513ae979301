"""Multi-token prediction (Gloeckle et al., arXiv 2404.19737): further tokens are predicted at every position, too.

Loss: CE(x[t+1]) + weight * sum over i = 2 .. n of decay^(i-2) CE(x[t+i]), each a mean over the positions that have a
token so far ahead.

- `head: block` is the paper's architecture: a trunk, n parallel blocks on it, one for each token, and one LM head for
  all. The student's own last block is the first of them, so the student keeps its shape. The paper adds the n losses
  without weights: `{tokens: 4, loss_weight: 1, decay: 1}`.
- `head: linear` is one linear layer instead of a block, of which the paper says that it was tried, too.
- `head: shared` has no parameters: the student's own logits predict all n tokens. That is how the modded-nanogpt
  speedrun does it (its pull request 178), where the weights 1, 0.5, 0.25 are lowered to 1, 0, 0 by two thirds of the
  training: about `{head: shared, tokens: 3, loss_weight: 0.5, decay: 0.5, loss_until: 0.67}`.

Chosen here, where these sources differ or are silent: the norm of a block head is its own, a linear head is residual,
and all further tokens' weights fall together.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from cocomix.model.build import Sizes
from cocomix.objectives.auxiliary import AuxiliaryObjective, AuxiliaryStudent
from cocomix.objectives.base import Objective
from cocomix.objectives.heads import HEADS, Head
from cocomix.objectives.schedule import WeightSchedule
from cocomix.utils.errors import ConfigError


class MtpStudent(AuxiliaryStudent):
    """Multi-token prediction: the tokens after the next one are predicted, too, by heads that only training uses."""

    name = "mtp"

    tokens: int = Field(default=3, ge=2, description="tokens predicted at each position, the next one included")
    head: Literal["block", "linear", "shared"] = Field(
        default="block",
        description="what predicts each further token: a block beside the last one, a linear layer, or the student's"
        " own logits",
    )
    loss_weight: float = Field(default=0.5, ge=0, description="weight of the second token's loss")
    decay: float = Field(default=0.5, gt=0, le=1, description="weight of each further token, as a share of the last's")
    loss_until: float | None = Field(
        default=0.67, gt=0, le=1, description="share of the training over which the weights fall to 0; empty: they stay"
    )

    def make_objective(self, model: Any, sizes: Sizes, teacher: Callable[[], PreTrainedModel]) -> Objective:
        if self.tokens >= sizes.seq_len:
            raise ConfigError(f"tokens {self.tokens} must be fewer than the window's seq_len {sizes.seq_len}")
        heads = [HEADS[self.head](model, self.model.backbone) for _ in range(self.tokens - 1)]
        return MtpObjective(model, heads, self.loss_weight, self.decay, self.schedule)

    def summary(self) -> str:
        return f"the next {self.tokens} tokens predicted, {self.head} heads, {self.describe_weight()}"


class MtpObjective(AuxiliaryObjective):
    """Next-token loss + weight * sum_i decay^(i-2) CE(x[t+i]), i = 2 .. n.

    Args:
        model: the student.
        heads: one for each further token, all of one kind.
        weight: weight of the second token's loss.
        decay: weight of each further one, as a share of the one before.
        schedule: of these weights.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        heads: list[Head],
        weight: float,
        decay: float = 1.0,
        schedule: WeightSchedule | None = None,
    ) -> None:
        super().__init__(model, nn.ModuleList(heads), weight, schedule)
        self.heads, self.decay = heads, decay

    def total(self, ids: torch.Tensor, states: tuple[torch.Tensor, ...], weight: torch.Tensor | float) -> torch.Tensor:
        if self.heads[0].own:
            return super().total(ids, states, weight)
        return several_targets(self, states[-1], [(ids[:, 1:], 1.0), *self._ahead(ids, weight)])

    def _ahead(self, ids: torch.Tensor, weight: torch.Tensor | float) -> list[tuple[torch.Tensor, Any]]:
        """Further tokens, `[batch, seq - i]`, and the weights of their losses."""
        return [(ids[:, i:], weight * self.decay ** (i - 2)) for i in range(2, len(self.heads) + 2)]

    def second(self, ids: torch.Tensor, states: tuple[torch.Tensor, ...]) -> torch.Tensor:
        loss = states[-1].new_zeros(())
        for head, (targets, weight) in zip(self.heads, self._ahead(ids, 1.0), strict=True):
            hidden = head(states, ids)[:, : targets.shape[1]]
            loss = loss + weight * self.unembedded(hidden, targets[..., None]).mean
        return loss

    def second_flops(self, config: Any, seq_len: int) -> float:
        return sum(head.flops(config, seq_len) for head in self.heads)


def several_targets(
    objective: AuxiliaryObjective, hidden: torch.Tensor, targets: list[tuple[torch.Tensor, torch.Tensor | float]]
) -> torch.Tensor:
    """Weighted sum of cross entropies of several targets of the same logits, in one pass; a scalar.

    Args:
        hidden: `[batch, seq, d_model]`.
        targets: each int64 `[batch, at most seq]`, of the first positions, and the weight of its mean over these; one
            of -100 adds nothing to it.
    """
    seq = max(one.shape[1] for one, _ in targets)
    padded = [nn.functional.pad(one, (0, seq - one.shape[1]), value=-100) for one, _ in targets]
    stacked = torch.stack(padded, dim=-1)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    shares = torch.stack(
        [torch.as_tensor(weight, dtype=wide, device=hidden.device) / max(1, one.numel()) for one, weight in targets]
    )
    shares = shares.expand(stacked.shape)
    # Their common z-loss counts with the weights of all targets.
    return objective.unembedded(hidden[:, :seq], stacked, shares, objective.z_loss).total

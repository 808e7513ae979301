"""Prefix token prediction: the longest token that the next token begins with is a second, coarser target.

Loss: CE(x[t+1]) + weight * CE(prefix of x[t+1]); the prefix of a token is the longest shorter token of the vocabulary
whose bytes it begins with. The second loss is a mean over all targets; one without a prefix adds nothing to it.

This is the form that the modded-nanogpt speedrun took up (its pull request 337, July 2026); there is no paper. Its
description says that the prefix token is an auxiliary target of the cross entropy, "like MTP", whose logits there are
the student's own: `head: shared`. Chosen here: its weight and schedule, which the description does not give, and that
single bytes and special tokens have no prefix.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from transformers import PreTrainedModel

from cocomix.model.build import Sizes
from cocomix.objectives.auxiliary import AuxiliaryObjective, AuxiliaryStudent
from cocomix.objectives.base import Objective
from cocomix.objectives.heads import HEADS, Head
from cocomix.objectives.mtp import several_targets
from cocomix.objectives.schedule import WeightSchedule
from cocomix.utils.errors import CocomixError


class PrefixStudent(AuxiliaryStudent):
    """Prefix token prediction: the longest token that the next token begins with is a second, coarser target."""

    name = "prefix"

    head: Literal["block", "linear", "shared"] = Field(
        default="shared",
        description="what predicts it: a block beside the last one, a linear layer, or the student's own logits",
    )
    loss_weight: float = Field(default=0.5, ge=0, description="weight of the prefix's loss")
    loss_until: float | None = Field(
        default=0.67, gt=0, le=1, description="share of the training over which the weight falls to 0; empty: it stays"
    )

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"prefixes"})

    def make_objective(self, model: Any, sizes: Sizes, teacher: Callable[[], PreTrainedModel]) -> Objective:
        head = HEADS[self.head](model, self.model.backbone)
        return PrefixObjective(model, head, sizes.prefixes, self.loss_weight, self.schedule)

    def summary(self) -> str:
        return f"the next token's longest prefix predicted, too, {self.head} head, {self.describe_weight()}"


class PrefixObjective(AuxiliaryObjective):
    """Next-token loss + weight * CE(prefix of the next token).

    Args:
        model: the student.
        head: what predicts the prefix.
        prefixes: for each token its prefix, int64 `[V]`, -100 where there is none; None only on the meta device.
        weight: weight of the second loss.
        schedule: of the weight.

    Raises:
        CocomixError: no token of the vocabulary has a prefix in it.
    """

    prefixes: torch.Tensor

    def __init__(
        self,
        model: PreTrainedModel,
        head: Head,
        prefixes: Sequence[int] | np.ndarray | None,
        weight: float,
        schedule: WeightSchedule | None = None,
    ) -> None:
        super().__init__(model, head, weight, schedule)
        self.head = (head,)
        config: Any = model.config
        table = torch.full((config.vocab_size,), -100, device=model.device)
        if prefixes is not None:
            known = torch.as_tensor(prefixes, device=model.device)
            table[: len(known)] = known
        if model.device.type != "meta" and not bool((table >= 0).any()):
            raise CocomixError("no token of this vocabulary begins with another one, so that there are no prefixes")
        self.register_buffer("prefixes", table, persistent=False)

    def total(self, ids: torch.Tensor, states: tuple[torch.Tensor, ...], weight: torch.Tensor | float) -> torch.Tensor:
        if self.head[0].own:
            return super().total(ids, states, weight)
        return several_targets(self, states[-1], [(ids[:, 1:], 1.0), (self.prefixes[ids[:, 1:]], weight)])

    def second(self, ids: torch.Tensor, states: tuple[torch.Tensor, ...]) -> torch.Tensor:
        losses = self.unembedded(self.head[0](states, ids)[:, :-1], self.prefixes[ids[:, 1:, None]])
        return losses.total / max(1, ids[:, 1:].numel())

    def second_flops(self, config: Any, seq_len: int) -> float:
        return self.head[0].flops(config, seq_len)

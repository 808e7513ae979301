"""CoCoMix with labels that need no teacher: fixed hashes of the current token, or of the next one.

A control. Such labels hold no concept: those of the current token bring back what the input was, those of the next
token are a coarser form of the target. What concept labels gain beyond them is theirs.

Labels are part of the vocabulary alone: K_attr different numbers below C for each token, from a hash of its id
(`labels/controls.py`, which also has them as a label set of a run).
"""

from collections.abc import Callable
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from transformers import PreTrainedModel

from cocomix.labels.controls import hash_labels
from cocomix.model.build import Sizes
from cocomix.model.modeling_cocomix import CoCoMixForCausalLM
from cocomix.objectives.base import Objective, describe_mixing
from cocomix.objectives.cocomix import CoCoMixObjective, OwnConceptsStudent
from cocomix.objectives.schedule import Shape


class HashStudent(OwnConceptsStudent):
    """A control without a teacher: CoCoMix with fixed hashes of the current or the next token as its labels."""

    name = "hash"

    of: Literal["current", "next"] = Field(default="current", description="token that is hashed")
    k: int = Field(default=16, ge=1, description="concepts kept of the prediction, if concept.top_k is empty")
    labels_per_position: int = Field(default=4, ge=1, description="labels a position K_attr")

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if max(self.k, self.labels_per_position) > self.n_latents:
            raise ValueError(
                f"k {self.k} and labels_per_position {self.labels_per_position} must not exceed n_latents"
                f" {self.n_latents}; change one of them"
            )
        return self

    def make_objective(self, model: Any, sizes: Sizes, teacher: Callable[[], PreTrainedModel]) -> Objective:
        table = hash_labels(sizes.vocab_size, self.labels_per_position, self.n_latents)
        until, shape = self.concept.schedule
        return HashObjective(model, table, ahead=self.of == "next", until=until, shape=shape)

    def summary(self) -> str:
        return (
            f"no teacher: {self.labels_per_position} hashes of the {self.of} token as labels,"
            f" lambda {self.concept.loss_weight:g}{self.concept.schedule.describe()},"
            f" mixing {describe_mixing(self.concept)}"
        )


class HashObjective(CoCoMixObjective):
    """CoCoMix's loss with labels looked up by token; the last position, which has no next token, has none.

    Args:
        model: the student.
        table: labels of each token, int64 `[V, K_attr]`.
        ahead: whether a position's labels are the next token's.
        until, shape: of lambda.
    """

    table: torch.Tensor

    def __init__(
        self,
        model: CoCoMixForCausalLM,
        table: np.ndarray,
        *,
        ahead: bool,
        until: float | None = None,
        shape: Shape = "linear",
    ) -> None:
        super().__init__(model, until, shape=shape)
        self.ahead = ahead
        self.register_buffer("table", torch.as_tensor(table, device=model.device), persistent=False)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        ids = batch["input_ids"]
        labels = self.table[ids[:, 1:] if self.ahead else ids[:, :-1]]
        labels = torch.nn.functional.pad(labels, (0, 0, 0, 1), value=-100)
        return super().forward({**batch, "concept_labels": labels, "concept_weight": torch.ones((), device=ids.device)})

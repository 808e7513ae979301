"""What an objective is: a student's settings, which build its model and its loss, and the loss the trainer calls.

An objective is one file with two classes. `StudentSettings` holds what a user can set and makes the model and the loss
from it; `Objective` is the loss, a module the trainer calls with a batch. The list of all objectives is in
`objectives/registry.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import nn
from transformers import PreTrainedModel

from cocomix.model.build import MixConfig, ModelShape, Sizes
from cocomix.utils.registry import Registry
from cocomix.utils.settings import Section


class Objective(nn.Module, ABC):
    """A model and the loss it is trained on; calling it with a batch returns the mean loss, a scalar.

    Attributes:
        holds_logits: whether a step holds the logits of all its tokens, and their gradient.
        holds_teacher_logits: whether it holds the teacher's logits beside them.
    """

    holds_logits: ClassVar[bool] = True
    holds_teacher_logits: ClassVar[bool] = False

    @abstractmethod
    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean loss of a batch: `input_ids` int64 `[batch, seq]` and what else the objective needs.

        `progress`, a scalar, is the share of training done.
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
        """Modules that FSDP2 gathers one at a time, innermost first: blocks, then the model, then the rest."""
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


class StudentSettings(Section, ABC):
    """A student in a run's configuration: its shape, and the settings, model and loss of one objective.

    A subclass is one objective. Its fields are its settings; the properties tell the run what it reads.
    """

    name: ClassVar[str]
    """what `objective` calls it"""
    uses_sae_concepts: ClassVar[bool] = False
    """whether it predicts the concepts of the run's SAE, so that labels, names and the explorer apply to it"""

    objective: str = Field(description="what it is trained on")
    model: ModelShape = Field(default_factory=ModelShape)
    length: float = Field(
        default=1.0, gt=0, description="training length, as a multiple of students_train's; its schedule follows"
    )

    @model_validator(mode="after")
    def _objective_is_its_own(self) -> Self:
        if self.objective != self.name:
            raise ValueError(f"these are settings of the objective {self.name}, not of {self.objective!r}")
        return self

    @classmethod
    def section_for(cls, raw: Any) -> type[Section]:
        return OBJECTIVES.get(str(raw.get("objective")), cls) if isinstance(raw, Mapping) else cls

    @property
    def reads(self) -> frozenset[str]:
        """What training needs besides tokens: `sae`, `labels`, `teacher` (live), `logits` (its stored ones)."""
        return frozenset()

    @property
    def label_set(self) -> str | None:
        """Name of the label set it learns from."""
        return None

    @property
    def label_sign(self) -> str | None:
        """Sign of those labels; None: the first one the set has."""
        return None

    @property
    def stored_teacher_tokens(self) -> int | None:
        """How many of the teacher's likeliest tokens it reads from a store."""
        return None

    @property
    def same_size_as(self) -> str | None:
        """Name of the student whose parameter count it is widened to."""
        return None

    @property
    def mixing(self) -> MixConfig | None:
        """Where and how a vector is mixed in; None for a plain model."""
        return None

    @property
    def own_latents(self) -> int | None:
        """Number of concepts C of an autoencoder of its own; None: the run's."""
        return None

    @abstractmethod
    def build(self, sizes: Sizes) -> PreTrainedModel:
        """The student, freshly initialised from torch's global generator."""

    @abstractmethod
    def make_objective(self, model: Any, sizes: Sizes, teacher: Callable[[], PreTrainedModel]) -> Objective:
        """The loss `model` is trained on; `teacher` loads the concept model, for those that run it in every step."""

    @abstractmethod
    def summary(self) -> str:
        """What sets its training apart, in a few words."""

    def describe(self) -> str:
        """`summary`, and its length where that is not the other students'."""
        return self.summary() + ("" if self.length == 1 else f", {self.length:g} times the steps")


OBJECTIVES: Registry[type[StudentSettings]] = Registry("objective")
"""By the name in a student's `objective`; the list is in `objectives/registry.py`."""


def describe_mixing(mix: MixConfig) -> str:
    """The mixer and its options, in a few words."""
    options = ", ".join(f"{name} {value}" for name, value in mix.mixer_options.items())
    return f"{mix.mixer} ({options})" if options else mix.mixer

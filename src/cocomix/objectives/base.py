"""Base classes of objectives.

An objective is one file with two classes. A `StudentSettings` has the user's settings and builds the model and the loss
from them. An `Objective` is the loss, a module that the trainer calls with a batch. All objectives are listed in
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

from cocomix.labels.schedule import LabelPart
from cocomix.model.build import MixConfig, ModelShape, Sizes, match_width
from cocomix.objectives.schedule import WeightSchedule
from cocomix.utils.registry import Registry
from cocomix.utils.settings import Section, added


class Objective(nn.Module, ABC):
    """A model with its training loss; calling it with a batch returns the mean loss, a scalar.

    Attributes:
        holds_logits: whether a step holds the logits of all its tokens and their gradient; for memory estimates.
        holds_teacher_logits: whether it also holds the teacher's logits.
        schedule: of the weight of its second loss; constant if there is none.
        z_loss: weight of the squared logarithm of the softmax's normaliser, in the next-token loss; set by the trainer.
    """

    schedule: WeightSchedule = WeightSchedule()
    z_loss: float = 0.0
    holds_logits: ClassVar[bool] = True
    holds_teacher_logits: ClassVar[bool] = False

    @property
    def uses_progress(self) -> bool:
        """Whether its loss depends on the share of training done; a longer training then differs from the start."""
        return self.schedule.until is not None

    @abstractmethod
    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean loss of a batch, a scalar.

        Args:
            batch: `input_ids` int64 `[batch, seq]`, `progress` (a scalar, the share of training done), and the other
                inputs of the objective, see `BatchSource`.
        """

    @abstractmethod
    def trainable(self) -> nn.Module:
        """The module whose parameters are optimised and saved."""

    def evaluated(self) -> nn.Module:
        """The module whose perplexity is measured."""
        return self.trainable()

    def clipped(self) -> Sequence[nn.Module]:
        """Modules whose gradient norms are clipped, each separately."""
        return [self.trainable()]

    def sharded_units(self) -> list[nn.Module]:
        """Modules that FSDP2 gathers one at a time, innermost first: blocks, then the model, then the rest."""
        model = self.evaluated()
        stack = next((module for module in model.modules() if isinstance(module, nn.ModuleList)), ())
        outside = {id(p) for p in self.parameters()} - {id(p) for p in model.parameters()}
        return [*stack, model, *([self] if outside else [])]

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Save the trained module to `folder` in its own format."""

    @abstractmethod
    def flops_per_token(self, seq_len: int) -> float:
        """Training FLOPs per token, forward and backward; a multiply-accumulate counts as two."""

    def flops_so_far(self, seq_len: int, progress: float) -> float:
        """Training FLOPs per token, as a mean up to `progress` of the training; differs where a part ends early."""
        return self.flops_per_token(seq_len)

    def initialise_heads(self, shape: ModelShape) -> None:
        """Draw the weights of modules that only training uses as `shape` says."""
        return

    def at(self, progress: float) -> None:
        """Called with the share of training done, after each step and where a training is resumed."""

    def before_step(self) -> None:
        """Called after the backward pass, before gradient clipping and the optimiser."""

    def after_step(self) -> None:
        """Called after each optimiser step."""


def with_zero_gradients(loss: torch.Tensor, *unused: nn.Module) -> torch.Tensor:
    """`loss`, on which all parameters of `unused` now have a gradient, zero: DDP waits for one of every parameter."""
    parameters = (parameter.sum() for module in unused for parameter in module.parameters())
    return loss + 0.0 * sum(parameters, loss.new_zeros(()))


class StudentSettings(Section, ABC):
    """Settings of a student: its shape, and the settings of one objective, from which model and loss are built.

    A subclass is one objective. Its fields are its settings; its properties tell the run which inputs it needs.
    """

    name: ClassVar[str]
    """value of `objective` in settings"""
    uses_sae_concepts: ClassVar[bool] = False
    """whether it predicts the concepts of the run's SAE, so that labels, names and the explorer apply to it"""

    objective: str = Field(description="what it is trained on")
    model: ModelShape = Field(default_factory=ModelShape)
    length: float = Field(
        default=1.0, gt=0, description="training length, as a multiple of students_train's; its schedule follows"
    )
    learning_rate: float | None = added(
        default=None, gt=0, allow_inf_nan=False, description="maximum learning rate; empty: students_train's"
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
        """What it needs besides tokens: `sae`, `labels`, `teacher` (live), `logits` (the teacher's, stored), `prefixes`
        (of the tokenizer's tokens)."""
        return frozenset()

    @property
    def reads_outputs(self) -> bool:
        """Whether it learns from what the concept model computes at each token."""
        return bool(self.reads & {"teacher", "logits"})

    @property
    def ends_plain(self) -> bool:
        """Whether the trained student is a plain transformer, without predictor and mixing."""
        return self.mixing is None

    @property
    def label_set(self) -> str | None:
        """Name of the label set it is trained on."""
        return None

    @property
    def label_sign(self) -> str | None:
        """Sign of those labels; None: the first one of the set."""
        return None

    @property
    def label_parts(self) -> tuple[LabelPart, ...]:
        """The label sets it is trained on, where it has several; the run reads these alone."""
        return () if self.label_set is None else (LabelPart(set=self.label_set, sign=self.label_sign),)

    @property
    def mixes_labels_by_position(self) -> bool:
        """Whether label sets that are read at the same time are drawn for each position, not for each window."""
        return False

    @property
    def weighs_labels(self) -> bool:
        """Whether its labels count by how predictable their concepts are."""
        return False

    @property
    def shuffles_labels(self) -> bool:
        """Whether it is trained on those labels at other positions, as a control."""
        return False

    @property
    def stored_teacher_tokens(self) -> int | None:
        """Number of the teacher's most likely tokens that it reads from a store."""
        return None

    @property
    def same_size_as(self) -> str | None:
        """Name of the student whose parameter count it is to have."""
        return None

    def resized(self, parameters: int, sizes: Sizes) -> Self:
        """These settings with as many parameters as can be had: here by the model's width."""
        shape: Any = self.model  # frozen, and so hashable
        shape = match_width(shape, parameters, vocab_size=sizes.vocab_size, seq_len=sizes.seq_len)
        return self.model_copy(update={"model": shape})

    @property
    def mixing(self) -> MixConfig | None:
        """Where and how the predicted vector is mixed in; None for a plain model."""
        return None

    @property
    def depth(self) -> int | None:
        """Number of blocks; None: it is that of a model that is yet to be loaded."""
        return self.model.layers

    @property
    def starts_from(self) -> str | None:
        """A finished model from outside the run that it starts as."""
        return None

    @property
    def own_latents(self) -> int | None:
        """Number of concepts C of the student's own autoencoder; None: it uses the run's."""
        return None

    @abstractmethod
    def build(self, sizes: Sizes) -> PreTrainedModel:
        """Build the student's model, initialised from torch's global generator."""

    @abstractmethod
    def make_objective(self, model: Any, sizes: Sizes, teacher: Callable[[], PreTrainedModel]) -> Objective:
        """Build the loss of `model`; `teacher` loads the concept model, for objectives that run it in every step."""

    @abstractmethod
    def summary(self) -> str:
        """Short description of what distinguishes its training."""

    def describe(self) -> str:
        """`summary`, with the training length if it differs from the other students'."""
        return self.summary() + ("" if self.length == 1 else f", {self.length:g} times the steps")


OBJECTIVES: Registry[type[StudentSettings]] = Registry("objective")
"""Objectives by name; the list is in `objectives/registry.py`."""


def describe_mixing(mix: MixConfig) -> str:
    """Short description of the mixer, its options and the vector's scale."""
    options = dict(mix.mixer_options)
    if mix.vector_scale is not None:
        options["vector scale"] = f"{mix.vector_scale:g}"
    listed = ", ".join(f"{name} {value}" for name, value in options.items())
    return f"{mix.mixer} ({listed})" if listed else mix.mixer

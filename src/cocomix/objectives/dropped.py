"""CoCoMix whose channel is dropped before the training ends: the finished student is a plain transformer.

Up to `drop_at` it is trained as any CoCoMix student. From then on neither head nor mixing runs: steps cost what a plain
student's do, and the blocks above learn to do without the vector. What is saved has no channel, so inference is free.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from transformers import PreTrainedModel

from cocomix.model.build import Sizes
from cocomix.model.flops import model_flops
from cocomix.model.modeling_cocomix import CoCoMixForCausalLM, CoCoMixModel
from cocomix.objectives.base import Objective, with_zero_gradients
from cocomix.objectives.cocomix import CoCoMixObjective, CoCoMixStudent
from cocomix.objectives.ntp import NtpObjective
from cocomix.objectives.schedule import WeightSchedule


class DroppedStudent(CoCoMixStudent):
    """Next-token loss plus the weighted concept loss, and at the end of the training next-token loss alone, without the
    channel."""

    name = "dropped"
    uses_sae_concepts = False

    drop_at: float = Field(default=0.8, gt=0, lt=1, description="share of the training at which the channel is dropped")

    @property
    def ends_plain(self) -> bool:
        return True

    def make_objective(self, model: Any, sizes: Sizes, teacher: Callable[[], PreTrainedModel]) -> Objective:
        until, shape = self.concept.schedule
        forcing = self.concept.forcing(sizes)
        return DroppedObjective(model, self.drop_at, until, shape=shape, label_flops=sizes.label_flops, forcing=forcing)

    def summary(self) -> str:
        return f"{super().summary()}, dropped at {self.drop_at:.0%} of the training"


class DroppedObjective(CoCoMixObjective):
    """The loss of `CoCoMixObjective` up to a share of the training, then next-token loss of the model without channel.

    Args:
        model: the student.
        drop_at: share of the training at which the channel is dropped.
        options: see `CoCoMixObjective`.
    """

    def __init__(self, model: CoCoMixForCausalLM, drop_at: float, until: float | None = None, **options: Any) -> None:
        super().__init__(model, until, **options)
        self.mixing = WeightSchedule(drop_at)

    @property
    def uses_progress(self) -> bool:
        return True

    def at(self, progress: float) -> None:
        self.model.model.mixes = not self.mixing.over(progress)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self.at(float(batch["progress"]))
        base: CoCoMixModel = self.model.model
        if base.mixes:
            return super().forward(batch) if "concept_labels" in batch else NtpObjective.forward(self, batch)
        return with_zero_gradients(NtpObjective.forward(self, batch), base.channel, base.mixer)

    def save(self, folder: Path) -> None:
        model: Any = self.model
        if model.model.mixes:  # a snapshot from before
            super().save(folder)
        else:
            model.without_channel().save_pretrained(folder)

    def flops_per_token(self, seq_len: int) -> float:
        return self.flops_so_far(seq_len, 1.0)

    def flops_so_far(self, seq_len: int, progress: float) -> float:
        mixed = self.mixing.share(progress)
        plain = model_flops(self.model.config.without_channel(), seq_len).training
        return mixed * super().flops_per_token(seq_len) + (1 - mixed) * plain

"""Pause tokens: a learned vector in the slots that concepts would have (the paper's claim 3)."""

from collections.abc import Callable
from typing import Any

from pydantic import Field
from transformers import PreTrainedModel

from cocomix.model.build import MixConfig, Sizes, build_mixed
from cocomix.objectives.base import Objective, StudentSettings, describe_mixing
from cocomix.objectives.ntp import NtpObjective


class PauseStudent(StudentSettings):
    """A learned vector in place of concepts, trained by the next-token loss only."""

    name = "pause"

    mix: MixConfig = Field(default_factory=MixConfig)

    @property
    def mixing(self) -> MixConfig:
        return self.mix

    def build(self, sizes: Sizes) -> PreTrainedModel:
        return build_mixed(self.model, self.mix, sizes, channel="pause")

    def make_objective(self, model: Any, sizes: Sizes, teacher: Callable[[], PreTrainedModel]) -> Objective:
        return NtpObjective(model)

    def summary(self) -> str:
        return f"a learned vector before block {self.mix.concept_layer}, mixing {describe_mixing(self.mix)}"

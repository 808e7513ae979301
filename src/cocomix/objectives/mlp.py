"""An MLP where concepts would be, a control: the concept channel's parameters, no labels and no concept loss."""

from collections.abc import Callable
from typing import Any

from pydantic import Field
from transformers import PreTrainedModel

from cocomix.model.build import MixConfig, Sizes, build_mixed
from cocomix.objectives.base import Objective, StudentSettings, describe_mixing
from cocomix.objectives.ntp import NtpObjective


class MlpStudent(StudentSettings):
    """A control of CoCoMix's size: an MLP in place of concepts, trained by the next-token loss only."""

    name = "mlp"

    mix: MixConfig = Field(default_factory=MixConfig)
    units: int = Field(default=1024, ge=1, description="inner units; as many parameters as that number of concepts C")

    @property
    def mixing(self) -> MixConfig:
        return self.mix

    def build(self, sizes: Sizes) -> PreTrainedModel:
        return build_mixed(self.model, self.mix, sizes, channel="mlp", num_concepts=self.units)

    def make_objective(self, model: Any, sizes: Sizes, teacher: Callable[[], PreTrainedModel]) -> Objective:
        return NtpObjective(model)

    def summary(self) -> str:
        return f"an MLP of {self.units} units before block {self.mix.concept_layer}, mixing {describe_mixing(self.mix)}"

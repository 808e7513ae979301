"""An MLP where concepts would be, a control: the concept channel's parameters, no labels and no concept loss."""

from collections.abc import Callable
from typing import Any, Self

from pydantic import Field
from transformers import PreTrainedModel

from cocomix.model.build import MixConfig, Sizes, build_mixed, parameter_count
from cocomix.objectives.base import Objective, StudentSettings, describe_mixing
from cocomix.objectives.ntp import NtpObjective
from cocomix.utils.errors import CocomixError
from cocomix.utils.settings import added


class MlpStudent(StudentSettings):
    """A control of CoCoMix's size: an MLP in place of concepts, trained by the next-token loss only."""

    name = "mlp"

    mix: MixConfig = Field(default_factory=MixConfig)
    units: int = Field(default=1024, ge=1, description="inner units; as many parameters as that number of concepts C")
    match_parameters: str | None = added(
        default=None, description="in place of units: as many as bring its parameters closest to the named student's"
    )

    @property
    def same_size_as(self) -> str | None:
        return self.match_parameters

    def resized(self, parameters: int, sizes: Sizes) -> Self:
        """These settings with the units that bring it closest to that many parameters, which grow by as many each.

        Raises:
            CocomixError: even one unit is too many.
        """
        one, two = (parameter_count(self.model_copy(update={"units": n}).builder(sizes)) for n in (1, 2))
        units = 1 if two == one else 1 + round((parameters - one) / (two - one))
        if units < 1 or two == one:
            raise CocomixError(
                f"no MLP gives this student as few as {parameters} parameters; give it a smaller model"
                if two > one
                else f"the mixer {self.mix.mixer} uses no vector, so there is no MLP to match; use another"
            )
        return self.model_copy(update={"units": units})

    def builder(self, sizes: Sizes) -> Callable[[], PreTrainedModel]:
        """Builds the model when called."""
        return lambda: self.build(sizes)

    @property
    def mixing(self) -> MixConfig:
        return self.mix

    def build(self, sizes: Sizes) -> PreTrainedModel:
        return build_mixed(self.model, self.mix, sizes, channel="mlp", num_concepts=self.units)

    def make_objective(self, model: Any, sizes: Sizes, teacher: Callable[[], PreTrainedModel]) -> Objective:
        return NtpObjective(model)

    def summary(self) -> str:
        size = f"{self.units} units" if self.match_parameters is None else f"the size of {self.match_parameters}"
        return f"an MLP of {size} before block {self.mix.concept_layer}, mixing {describe_mixing(self.mix)}"

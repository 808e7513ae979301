"""Regression of the teacher's hidden state, which the paper compares concepts with (claim 5)."""

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from transformers import PreTrainedModel

from cocomix.kernels.normalise import normalise
from cocomix.model.build import MixConfig, Sizes, build_mixed
from cocomix.model.flops import hidden_flops
from cocomix.model.modeling_cocomix import CoCoMixForCausalLM
from cocomix.model.teacher import hidden_at
from cocomix.objectives.base import Objective, StudentSettings, describe_mixing
from cocomix.objectives.ntp import NtpObjective


def _cosine(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (1 - F.cosine_similarity(predicted, target, dim=-1)).mean()


DISTANCES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "l1": F.l1_loss,
    "l2": F.mse_loss,
    "cosine": _cosine,
}
"""Mean over positions (and, for l1 and l2, over the hidden state's elements)."""


class HiddenStudent(StudentSettings):
    """The student predicts the teacher's hidden state instead of concepts, and mixes it in."""

    name = "hidden"

    distance: str = Field(default="l2", description=f"between prediction and hidden state: {', '.join(DISTANCES)}")
    loss_weight: float = Field(default=0.1, ge=0, description="weight of that distance")
    mix: MixConfig = Field(default_factory=MixConfig)

    @model_validator(mode="after")
    def _distance_exists(self) -> Self:
        if self.distance not in DISTANCES:
            raise ValueError(f"there is no distance {self.distance!r}; choose one of {', '.join(DISTANCES)}")
        return self

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"teacher"})

    @property
    def mixing(self) -> MixConfig:
        return self.mix

    def build(self, sizes: Sizes) -> PreTrainedModel:
        options = {"target_size": sizes.teacher_width}
        return build_mixed(self.model, self.mix, sizes, channel="hidden", channel_options=options)

    def make_objective(self, model: Any, sizes: Sizes, teacher: Callable[[], PreTrainedModel]) -> Objective:
        return HiddenObjective(
            model,
            teacher(),
            layer=sizes.sae_layer,
            distance=self.distance,
            weight=self.loss_weight,
            first_position=sizes.first_position,
        )

    def summary(self) -> str:
        return (
            f"the teacher's hidden state predicted, {self.distance} loss times {self.loss_weight:g},"
            f" mixing {describe_mixing(self.mix)}"
        )


class HiddenObjective(NtpObjective):
    """Next-token loss + weight * distance(predicted, norm(h_con)), norm as the SAE's: (x - mean) / (std + 1e-5).

    Args:
        model: a CoCoMix model with the predictor `hidden`.
        teacher: the concept model; its weights get no gradients, and it is not part of this module's state.
        layer: the teacher's block (0-based) whose output is predicted.
        distance: a key of `DISTANCES`.
        weight: weight of the distance.
        first_position: positions of a window before it have no distance: that of a beginning-of-text token.
    """

    def __init__(
        self,
        model: CoCoMixForCausalLM,
        teacher: PreTrainedModel,
        *,
        layer: int,
        distance: str,
        weight: float,
        first_position: int = 0,
    ) -> None:
        super().__init__(model)
        self._teacher, self.layer, self.weight, self.first_position = (teacher,), layer, weight, first_position
        self.distance = DISTANCES[distance]

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        ids = batch["input_ids"]
        with torch.no_grad():
            target = hidden_at(self._teacher[0], ids, self.layer)
            target, _, _ = normalise(target.to(torch.promote_types(target.dtype, torch.float32)))
        output = self.model(input_ids=ids, labels=ids, use_cache=False, skip_logits=True, z_loss=self.z_loss)
        predicted = output.predicted_hidden.to(target.dtype)
        distance = self.distance(predicted[:, self.first_position :], target[:, self.first_position :])
        return output.lm_loss + self.weight * distance

    def flops_per_token(self, seq_len: int) -> float:
        teacher = hidden_flops(self._teacher[0].config, seq_len, self.layer + 1)
        return super().flops_per_token(seq_len) + teacher

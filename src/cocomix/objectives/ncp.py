"""Next-concept prediction as in ConceptLM (arXiv 2602.08984): no teacher, concepts are learned codes.

The predictor of the model (`NextConceptPredictor` in `model/predictors.py`) has losses of its own, which the forward
pass adds to the next-token loss. So the objective is next-token prediction with that model.
"""

from collections.abc import Callable
from typing import Any

from pydantic import Field
from transformers import PreTrainedModel

from cocomix.model.build import MixConfig, Sizes, build_mixed
from cocomix.objectives.base import Objective, StudentSettings, describe_mixing
from cocomix.objectives.ntp import NtpObjective


class NcpStudent(StudentSettings):
    """Next-concept prediction as in ConceptLM (arXiv 2602.08984): no teacher, concepts are learned codes of chunks."""

    name = "ncp"

    mix: MixConfig = Field(default_factory=lambda: MixConfig(mixer="add"))
    chunk: int = Field(default=4, ge=2, description="tokens a chunk")
    segments: int = Field(default=4, ge=1, description="parts a pooled hidden state is quantised in")
    codes: int = Field(default=64, ge=2, description="codes a part")
    layers: int = Field(default=1, ge=1, description="blocks of the module that predicts the next chunk's codes")
    ncp_weight: float = Field(default=0.1, ge=0, description="weight of the next-concept loss")
    vq_weight: float = Field(default=0.1, ge=0, description="weight of the quantisation loss")

    @property
    def mixing(self) -> MixConfig:
        return self.mix

    def build(self, sizes: Sizes) -> PreTrainedModel:
        options = {
            "chunk": self.chunk,
            "segments": self.segments,
            "codes": self.codes,
            "layers": self.layers,
            "ncp_weight": self.ncp_weight,
            "vq_weight": self.vq_weight,
        }
        return build_mixed(self.model, self.mix, sizes, channel="ncp", channel_options=options)

    def make_objective(self, model: Any, sizes: Sizes, teacher: Callable[[], PreTrainedModel]) -> Objective:
        return NtpObjective(model)

    def summary(self) -> str:
        return (
            f"next-concept prediction (ConceptLM's manner), chunks of {self.chunk} tokens,"
            f" {self.segments} x {self.codes} codes, mixing {describe_mixing(self.mix)}"
        )

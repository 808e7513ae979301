"""Regression of the teacher's hidden state: what concepts are compared with in the paper's claim 5."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from transformers import PretrainedConfig, PreTrainedModel

from cocomix.kernels.normalise import normalise
from cocomix.model.flops import hidden_flops, model_flops
from cocomix.model.modeling_cocomix import CoCoMixForCausalLM
from cocomix.model.teacher import hidden_at
from cocomix.objectives.ntp import NtpObjective


def _cosine(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (1 - F.cosine_similarity(predicted, target, dim=-1)).mean()


DISTANCES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "l1": F.l1_loss,
    "l2": F.mse_loss,
    "cosine": _cosine,
}
"""Mean over positions (and, for l1 and l2, over the hidden state's elements)."""


class HiddenObjective(NtpObjective):
    """Next-token loss + weight * distance(predicted, norm(h_con)), norm as the SAE's: (x - mean) / (std + 1e-5).

    Args:
        model: a CoCoMix model whose channel is `hidden`.
        teacher: the concept model; it takes no gradients and is not part of this module's state.
        layer: its block (0-based) whose output is predicted.
        distance: a key of `DISTANCES`.
        weight: of the distance.
    """

    def __init__(
        self, model: CoCoMixForCausalLM, teacher: PreTrainedModel, *, layer: int, distance: str, weight: float
    ) -> None:
        super().__init__(model)
        self._teacher, self.layer, self.weight = (teacher,), layer, weight
        self.distance = DISTANCES[distance]

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        ids = batch["input_ids"]
        with torch.no_grad():
            target = hidden_at(self._teacher[0], ids, self.layer)
            target, _, _ = normalise(target.to(torch.promote_types(target.dtype, torch.float32)))
        output = self.model(input_ids=ids, labels=ids, use_cache=False, skip_logits=True)
        return output.lm_loss + self.weight * self.distance(output.predicted_hidden.to(target.dtype), target)

    def flops_per_token(self, seq_len: int) -> float:
        return regression_flops(self.model.config, self._teacher[0].config, self.layer, seq_len)


def regression_flops(student: PretrainedConfig, teacher: PretrainedConfig, layer: int, seq_len: int) -> float:
    """Training operations per token: the student's, and the teacher's blocks 0 to `layer` forward."""
    return model_flops(student, seq_len).training + hidden_flops(teacher, seq_len, layer + 1)

"""CoCoMix: next-token loss plus the weighted concept loss (`config.concept_loss_weight`, lambda in the paper)."""

import torch

from cocomix.model.modeling_cocomix import CoCoMixForCausalLM
from cocomix.objectives.ntp import NtpObjective


class CoCoMixObjective(NtpObjective):
    """Total loss of a `CoCoMixForCausalLM`.

    The batch also carries `concept_labels` `[batch, seq, k]` and, if it is a part of one, `concept_weight`, which
    makes the losses of all parts add up to the mean over all labelled positions.

    Args:
        model: the student.
        until: share of the training over which lambda falls linearly to 0; None: it stays.
        label_flops: operations a token takes to be labelled, where labels are made live.
    """

    def __init__(self, model: CoCoMixForCausalLM, until: float | None = None, *, label_flops: float = 0.0) -> None:
        super().__init__(model)
        self.until, self.label_flops = until, label_flops

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        output = self.model(
            input_ids=batch["input_ids"],
            labels=batch["input_ids"],
            concept_labels=batch["concept_labels"],
            use_cache=False,
            skip_logits=True,
        )
        weight = self.model.config.concept_loss_weight * batch.get("concept_weight", 1.0)
        if self.until is not None:
            weight = weight * (1 - batch["progress"] / self.until).clamp_min(0)
        return output.lm_loss + weight * output.concept_loss

    def flops_per_token(self, seq_len: int) -> float:
        return super().flops_per_token(seq_len) + self.label_flops

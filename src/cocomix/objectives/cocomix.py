"""CoCoMix: next-token loss plus the weighted concept loss (`config.concept_loss_weight`, lambda in the paper)."""

import torch

from cocomix.objectives.ntp import NtpObjective


class CoCoMixObjective(NtpObjective):
    """Total loss of a `CoCoMixForCausalLM`; the batch also carries `concept_labels` `[batch, seq, k]`."""

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.model(
            input_ids=batch["input_ids"],
            labels=batch["input_ids"],
            concept_labels=batch["concept_labels"],
            use_cache=False,
        ).loss

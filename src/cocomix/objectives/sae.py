"""Training of the TopK autoencoder on hidden states that the concept model computes in each step.

With bf16 the concept model runs under autocast. The autoencoder stays in float32, because small latents and the
gradients of dead ones would lose precision.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from cocomix.model.flops import sae_training_flops
from cocomix.model.teacher import hidden_at
from cocomix.objectives.base import Objective
from cocomix.sae.sae import TopKSAE
from cocomix.sae.training import SaeTraining


class SaeObjective(Objective):
    """Normalised reconstruction error plus the auxiliary loss of dead latents.

    Args:
        sae: the autoencoder.
        teacher: the concept model; it gets no gradients and is not part of this module's state.
        layer: block (0-based) whose output is reconstructed.
        aux_k, aux_coefficient, dead_after_tokens: see `SaeTraining`.
        first_position: positions of a window before it are left out: that of a beginning-of-text token.
        about: saved with the autoencoder.
    """

    def __init__(
        self,
        sae: TopKSAE,
        teacher: PreTrainedModel,
        *,
        layer: int,
        aux_k: int = 64,
        aux_coefficient: float = 1 / 32,
        dead_after_tokens: int = 100_000,
        first_position: int = 0,
        about: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.training_module = SaeTraining(
            sae, aux_k=aux_k, aux_coefficient=aux_coefficient, dead_after_tokens=dead_after_tokens
        )
        self.layer, self.first_position, self.about = layer, first_position, about or {}
        # In a tuple nn.Module does not see the teacher: DDP must not broadcast it, checkpoints must not contain it.
        self._teacher = (teacher,)

    def initialise(self, input_ids: torch.Tensor, padding: torch.Tensor | None = None) -> None:
        """Initialise pre_bias from the hidden states of `input_ids` int64 `[batch, seq]`, without padding."""
        with torch.no_grad():
            self.training_module.sae.init_from_data(self._hidden(input_ids, padding))

    def _hidden(self, input_ids: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
        """Hidden states that are reconstructed, `[n, d_model]`."""
        hidden = hidden_at(self._teacher[0], input_ids, self.layer)[:, self.first_position :]
        return hidden.flatten(0, 1) if padding is None else hidden[~padding[:, self.first_position :]]

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            hidden = self._hidden(batch["input_ids"], batch.get("padding"))
        with torch.autocast(hidden.device.type, enabled=False):
            return self.training_module(hidden.float())

    def trainable(self) -> nn.Module:
        return self.training_module

    def save(self, folder: Path) -> None:
        self.training_module.sae.save_pretrained(folder, layer=self.layer, **self.about)

    def flops_per_token(self, seq_len: int) -> float:
        sae = self.training_module.sae
        return sae_training_flops(self._teacher[0].config, sae.n_latents, sae.k, self.layer, seq_len)

    def before_step(self) -> None:
        self.training_module.sae.remove_parallel_gradient_()

    def after_step(self) -> None:
        self.training_module.sae.normalize_decoder_()

"""Training of an autoencoder on hidden states that the concept model computes in each step.

With bf16 the concept model runs under autocast. The autoencoder stays in float32, because small latents and the
gradients of dead ones would lose precision.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from cocomix.model.documents import document_positions
from cocomix.model.flops import sae_training_flops
from cocomix.model.teacher import hidden_at
from cocomix.objectives.base import Objective
from cocomix.sae.positions import NOTHING, LeftOut
from cocomix.sae.sae import TopKSAE
from cocomix.sae.training import SaeTraining


class SaeObjective(Objective):
    """Normalised reconstruction error plus the auxiliary loss of dead latents.

    Args:
        sae: the autoencoder, or the training of one of any kind, which then has settings of its own.
        teacher: the concept model; it gets no gradients and is not part of this module's state.
        layer: block (0-based) whose output is reconstructed.
        aux_k, aux_coefficient, dead_after_tokens: see `SaeTraining`.
        left_out: positions that it is not trained on. With a limit on norms, processes whose windows keep different
            numbers of positions count alike.
        about: saved with the autoencoder.
    """

    def __init__(
        self,
        sae: TopKSAE | SaeTraining,
        teacher: PreTrainedModel,
        *,
        layer: int,
        aux_k: int = 64,
        aux_coefficient: float = 1 / 32,
        dead_after_tokens: int = 100_000,
        left_out: LeftOut = NOTHING,
        about: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(sae, TopKSAE):
            sae = SaeTraining(sae, aux_k=aux_k, aux_coefficient=aux_coefficient, dead_after_tokens=dead_after_tokens)
        self.training_module = sae
        self.layer, self.left_out, self.about = layer, left_out, about or {}
        # In a tuple nn.Module does not see the teacher: DDP must not broadcast it, checkpoints must not contain it.
        self._teacher = (teacher,)

    def initialise(self, input_ids: torch.Tensor, rows: str = "random", padding: torch.Tensor | None = None) -> None:
        """Initialise what depends on data from the hidden states of `input_ids` int64 `[batch, seq]`; rows as there.

        Args:
            padding: bool `[batch, seq]`, positions without text.
        """
        with torch.no_grad():
            self.training_module.initialise(self._hidden(input_ids, padding), rows)

    def _hidden(self, input_ids: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
        """Hidden states that are reconstructed, `[n, d_model]`."""
        positions = document_positions(self._teacher[0], input_ids)
        return self.left_out.select(hidden_at(self._teacher[0], input_ids, self.layer), padding, positions)

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
        self.training_module.before_step()

    def after_step(self) -> None:
        self.training_module.after_step()

"""Training of an autoencoder on hidden states that the concept model computes in each step.

With bf16 the concept model runs under autocast. The autoencoder stays in float32, because small latents and the
gradients of dead ones would lose precision.

Autoencoders of several layers share the pass, which ends at the deepest of them (`SaeLayersObjective`). Each is drawn,
clipped and stepped as if it were alone, so it ends with the same bits.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from cocomix.model.documents import document_positions
from cocomix.model.flops import sae_training_flops
from cocomix.model.teacher import hidden_at, hidden_at_layers
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
        return self.selected(hidden_at(self._teacher[0], input_ids, self.layer), input_ids, padding)

    def selected(self, hidden: torch.Tensor, input_ids: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
        """Those of its layer's `hidden` states `[batch, seq, d_model]` that are reconstructed, `[n, d_model]`."""
        return self.left_out.select(hidden, padding, document_positions(self._teacher[0], input_ids))

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            hidden = self._hidden(batch["input_ids"], batch.get("padding"))
        return self.loss(hidden)

    def loss(self, hidden: torch.Tensor) -> torch.Tensor:
        """Loss of hidden states `[n, d_model]`, a scalar."""
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


def layer_folder(layer: int) -> str:
    """Folder of an autoencoder of another layer, below that of the first one."""
    return f"layer-{layer}"


class SaeLayersObjective(Objective):
    """Autoencoders of several layers, trained on one pass of the concept model in each step.

    The loss is the sum of theirs, and a step that is skipped or stopped is so for all.

    Args:
        parts: one for each layer, all of one concept model; the first one is saved in the folder itself.
    """

    def __init__(self, parts: Sequence[SaeObjective]) -> None:
        super().__init__()
        self.parts = list(parts)
        self.layers = [part.layer for part in parts]
        self.training_modules = nn.ModuleDict({f"layer-{part.layer}": part.training_module for part in parts})
        self._teacher = parts[0]._teacher

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        ids, padding = batch["input_ids"], batch.get("padding")
        with torch.no_grad():
            hidden = hidden_at_layers(self._teacher[0], ids, self.layers)
            chosen = [part.selected(one, ids, padding) for part, one in zip(self.parts, hidden, strict=True)]
        return torch.stack([part.loss(one) for part, one in zip(self.parts, chosen, strict=True)]).sum()

    def trainable(self) -> nn.Module:
        return self.training_modules

    def clipped(self) -> list[nn.Module]:
        return [part.training_module for part in self.parts]

    def sharded_units(self) -> list[nn.Module]:
        return self.clipped()

    def save(self, folder: Path) -> None:
        first, *others = self.parts
        first.save(folder)
        for part in others:
            part.save(folder / layer_folder(part.layer))

    def flops_per_token(self, seq_len: int) -> float:
        sae = self.parts[0].training_module.sae
        config = self._teacher[0].config
        return sae_training_flops(config, sae.n_latents, sae.k, max(self.layers), seq_len, len(self.parts))

    def before_step(self) -> None:
        for part in self.parts:
            part.before_step()

    def after_step(self) -> None:
        for part in self.parts:
            part.after_step()

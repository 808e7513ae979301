"""CoCoMix without a teacher: the autoencoder learns on a slow-moving average of the student while it trains.

The paper names this as future work. The average's hidden state at a position is encoded; its strongest latents are
the position's labels; the student predicts and mixes them as ever. The autoencoder trains on the same hidden states
in the same step, and no gradient passes between the two. Until the autoencoder means something (`warmup`), its labels
are not used.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cocomix.model.flops import hidden_flops, model_flops
from cocomix.model.modeling_cocomix import CoCoMixForCausalLM, concept_loss
from cocomix.objectives.base import Objective
from cocomix.sae.sae import TopKSAE
from cocomix.sae.training import SaeTraining


class Bootstrap(nn.Module):
    """What is trained and kept: the student, its average, and the autoencoder."""

    steps: torch.Tensor
    """optimiser steps averaged over so far, int64"""

    def __init__(self, student: CoCoMixForCausalLM, sae: TopKSAE, dead_after_tokens: int) -> None:
        super().__init__()
        self.student = student
        self.average = copy.deepcopy(student).requires_grad_(False).eval()
        self.sae_training = SaeTraining(sae, dead_after_tokens=dead_after_tokens)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))


class BootstrapObjective(Objective):
    """Next-token loss + lambda * concept loss on labels from the student's own average + the autoencoder's loss.

    Args:
        model: the student.
        sae: the autoencoder, `d_model` wide as the student.
        top: encode what feeds the final norm; else what enters concept_layer.
        decay: average = decay * average + (1 - decay) * student after each step; early on less, as if averaging evenly.
        labels_per_position: K_attr.
        warmup: share of the training before the concept loss begins.
    """

    def __init__(
        self,
        model: CoCoMixForCausalLM,
        sae: TopKSAE,
        *,
        top: bool,
        decay: float,
        labels_per_position: int,
        warmup: float,
        dead_after_tokens: int = 100_000,
    ) -> None:
        super().__init__()
        self.all = Bootstrap(model, sae, dead_after_tokens)
        self.top, self.decay, self.k, self.warmup = top, decay, labels_per_position, warmup

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        ids, sae = batch["input_ids"], self.all.sae_training.sae
        with torch.no_grad():
            hidden = self.all.average.hidden_state(ids, top=self.top).float()
            latents = sae.encode(hidden)
            top = latents.values.topk(self.k, dim=-1)
            labels = latents.ids.gather(-1, top.indices).masked_fill(top.values <= 0, -100)
        output = self.all.student(input_ids=ids, labels=ids, use_cache=False)
        begun = (batch["progress"] >= self.warmup).to(output.lm_loss.dtype)
        weight = begun * self.all.student.config.concept_loss_weight
        with torch.autocast(ids.device.type, enabled=False):
            reconstruction = self.all.sae_training(hidden.flatten(0, 1))
        return output.lm_loss + weight * concept_loss(output.concept_logits, labels) + reconstruction

    def trainable(self) -> Bootstrap:
        return self.all

    def evaluated(self) -> CoCoMixForCausalLM:
        return self.all.student

    def clipped(self) -> list[nn.Module]:
        return [self.all.student, self.all.sae_training]

    def save(self, folder: Path) -> None:
        self.all.student.save_pretrained(folder)
        self.all.sae_training.sae.save_pretrained(folder / "sae")

    def flops_per_token(self, seq_len: int) -> float:
        return bootstrap_flops(self.all.student.config, self.all.sae_training.sae.k, self.top, seq_len)

    def before_step(self) -> None:
        self.all.sae_training.sae.remove_parallel_gradient_()

    @torch.no_grad()
    def after_step(self) -> None:
        self.all.sae_training.sae.normalize_decoder_()
        self.all.steps += 1
        steps = int(self.all.steps)
        decay = min(self.decay, steps / (steps + 10))
        for averaged, current in zip(self.all.average.parameters(), self.all.student.parameters(), strict=True):
            averaged.lerp_(current, 1 - decay)


def bootstrap_flops(student: Any, k: int, top: bool, seq_len: int) -> float:
    """Training operations per token: the student's, the average's forward pass, three times the autoencoder's."""
    own = model_flops(student, seq_len)
    head = 2 * student.hidden_size * student.vocab_size
    average = own.forward - head if top else hidden_flops(student, seq_len, student.concept_layer)
    return own.training + average + 3 * 2 * (student.num_concepts + k) * student.hidden_size

"""CoCoMix without a teacher: the autoencoder is trained on a moving average of the student, together with the student.

The paper names this as future work. The hidden state of the averaged student is encoded, and its largest latents are
the labels of the position; the student predicts them and mixes them in as usual. The autoencoder is trained on the same
hidden states in the same step, and no gradient flows between the two. During `warmup`, while the autoencoder is not yet
useful, the labels are not used.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn
from transformers import PreTrainedModel

from cocomix.model.build import Sizes
from cocomix.model.flops import hidden_flops, model_flops
from cocomix.model.modeling_cocomix import CoCoMixForCausalLM, concept_loss
from cocomix.objectives.base import Objective, describe_mixing
from cocomix.objectives.cocomix import OwnConceptsStudent
from cocomix.sae.sae import TopKSAE
from cocomix.sae.training import SaeTraining


class BootstrapStudent(OwnConceptsStudent):
    """CoCoMix without a teacher: the autoencoder is trained on a moving average of the student."""

    name = "bootstrap"

    source: Literal["top", "middle"] = Field(
        default="top", description="hidden state encoded: what feeds the final norm, or what enters concept_layer"
    )
    decay: float = Field(default=0.99, ge=0, lt=1, description="of the average, a step")
    k: int = Field(default=16, ge=1, description="active latents per position K")
    labels_per_position: int = Field(default=4, ge=1, description="labels a position K_attr: its strongest latents")
    warmup: float = Field(default=0.1, ge=0, lt=1, description="share of the training before the concept loss begins")

    @model_validator(mode="after")
    def _k_fits(self) -> Self:
        if not self.labels_per_position <= self.k <= self.n_latents:
            raise ValueError(
                f"labels_per_position {self.labels_per_position}, k {self.k} and n_latents {self.n_latents}"
                " must not fall in this order; change one of them"
            )
        if self.concept.loss_until is not None:
            raise ValueError("concept.loss_until is for cocomix students; a bootstrap student has `warmup`")
        return self

    def make_objective(self, model: Any, sizes: Sizes, teacher: Callable[[], PreTrainedModel]) -> Objective:
        return BootstrapObjective(
            model,
            TopKSAE(self.model.width, self.n_latents, self.k),
            top=self.source == "top",
            decay=self.decay,
            labels_per_position=self.labels_per_position,
            warmup=self.warmup,
            first_position=sizes.first_position,
        )

    def summary(self) -> str:
        return (
            f"no teacher: concepts of the student's own average ({self.source} hidden state),"
            f" lambda {self.concept.loss_weight:g}, mixing {describe_mixing(self.concept)}"
        )


class Bootstrap(nn.Module):
    """The modules that are trained and saved in checkpoints: student, averaged student and autoencoder."""

    steps: torch.Tensor
    """number of optimiser steps in the average so far, int64"""

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
        sae: the autoencoder, of the student's width.
        top: whether to encode the input of the final norm; otherwise that of concept_layer.
        decay: average = decay * average + (1 - decay) * student after each step; smaller in early steps, as in a mean
            over all steps.
        labels_per_position: K_attr.
        warmup: share of the training before the concept loss begins.
        first_position: positions of a window before it have no labels and train no autoencoder: that of a
            beginning-of-text token.
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
        first_position: int = 0,
    ) -> None:
        super().__init__()
        self.first_position = first_position
        self.all = Bootstrap(model, sae, dead_after_tokens)
        self.top, self.decay, self.k, self.warmup = top, decay, labels_per_position, warmup

    @property
    def uses_progress(self) -> bool:
        return self.warmup > 0

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        ids, sae = batch["input_ids"], self.all.sae_training.sae
        with torch.no_grad():
            hidden = self.all.average.hidden_state(ids, top=self.top).float()
            latents = sae.encode(hidden)
            top = latents.values.topk(self.k, dim=-1)
            labels = latents.ids.gather(-1, top.indices).masked_fill(top.values <= 0, -100)
            labels[:, : self.first_position] = -100
        output = self.all.student(input_ids=ids, labels=ids, use_cache=False, z_loss=self.z_loss)
        begun = (batch["progress"] >= self.warmup).to(output.lm_loss.dtype)
        weight = begun * self.all.student.config.concept_loss_weight
        with torch.autocast(ids.device.type, enabled=False):
            reconstruction = self.all.sae_training(hidden[:, self.first_position :].flatten(0, 1))
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
        """The student's training FLOPs, a forward pass of its average, and three forward passes of the autoencoder."""
        config: Any = self.all.student.config
        student = model_flops(config, seq_len)
        head = 2 * config.hidden_size * config.vocab_size
        average = student.forward - head if self.top else hidden_flops(config, seq_len, config.concept_layer)
        autoencoder = 2 * (config.num_concepts + self.all.sae_training.sae.k) * config.hidden_size
        return student.training + average + 3 * autoencoder

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

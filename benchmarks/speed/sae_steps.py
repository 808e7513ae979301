"""One training step of a TopK autoencoder on the same hidden states: ours, SAELens' and sparsify's.

All run in float32 without the auxiliary loss, with the same clipping and AdamW. What each library's trainer does to
weights and gradients in a step (unit norm of the decoder) is done where its trainer does it.
"""

import contextlib
import io
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.speed.students import TRAIN
from benchmarks.speed.workload import Lap, Setting, Workload
from cocomix.objectives.sae import SaeObjective
from cocomix.sae.sae import TopKSAE
from cocomix.train.optimizer import adamw
from cocomix.utils.errors import CocomixError


class SaeStep(Workload):
    """Forward, backward, clip, AdamW on `sae_tokens` hidden states."""

    unit, precision = "token", "fp32"
    module: nn.Module

    def __init__(self, setting: Setting) -> None:
        shape = setting.shape
        self.setting, self.d, self.c, self.k = setting, shape.teacher.width, shape.concepts, shape.top_k
        self.units = float(shape.sae_tokens)
        # The minimum for all of them: one product over all C, and four over K rows (decoding, its two gradients, the
        # encoder's gradient).
        self.flops = (2 * self.c * self.d + 4 * 2 * self.k * self.d) * self.units
        generator = torch.Generator().manual_seed(setting.seed)
        self.x = torch.randn(shape.sae_tokens, self.d, generator=generator).to(setting.device)

    def prepare(self) -> None:
        torch.manual_seed(self.setting.seed)
        self.module = self.build().to(self.setting.device).train()
        self.optimizer = adamw(self.module, TRAIN)

    def run(self, lap: Lap) -> None:
        loss = self.loss()
        loss.backward()
        self.before_step()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), TRAIN.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.after_step()

    def build(self) -> nn.Module:
        """Return the autoencoder."""
        raise NotImplementedError

    def loss(self) -> torch.Tensor:
        """Return the loss of the hidden states, a scalar."""
        raise NotImplementedError

    def before_step(self) -> None:
        """Called between the backward pass and the update."""

    def after_step(self) -> None:
        """Called after the update."""


class OurSae(SaeStep):
    """Our objective as the autoencoder stage trains it, including normalisation and the count of silent latents."""

    name = "cocomix"

    def build(self) -> nn.Module:
        no_teacher: Any = None
        sae = TopKSAE(self.d, self.c, self.k)
        self.objective = SaeObjective(sae, no_teacher, layer=0, aux_coefficient=0.0)
        return self.objective.training_module

    def loss(self) -> torch.Tensor:
        return self.module(self.x)

    def before_step(self) -> None:
        self.objective.before_step()

    def after_step(self) -> None:
        self.objective.after_step()


class SaeLens(SaeStep):
    """SAELens' `TopKTrainingSAE` with its defaults, or with its sparse decoding, which does not rescale on a CPU."""

    def __init__(self, setting: Setting, *, sparse: bool) -> None:
        super().__init__(setting)
        self.name, self.sparse = f"saelens {'sparse' if sparse else 'dense'}", sparse

    def build(self) -> nn.Module:
        try:
            from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
            from sae_lens.saes.sae import TrainStepInput
        except ImportError:
            raise CocomixError("SAELens is not installed; pip install 'cocomix[interop]' to compare with it") from None
        self.step_input: Any = TrainStepInput(
            sae_in=self.x, coefficients={}, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False
        )
        torch.sparse.check_sparse_tensor_invariants.disable()  # the default; setting it avoids a warning
        return TopKTrainingSAE(
            TopKTrainingSAEConfig(
                d_in=self.d,
                d_sae=self.c,
                k=self.k,
                use_sparse_activations=self.sparse,
                rescale_acts_by_decoder_norm=not self.sparse,
            )
        )

    def loss(self) -> torch.Tensor:
        return self.module.training_forward_pass(self.step_input).loss  # pyright: ignore[reportCallIssue]


class Sparsify(SaeStep):
    """EleutherAI's `SparseCoder` with its own decoding (Triton's on a GPU)."""

    name = "sparsify"

    def build(self) -> nn.Module:
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # importing it prints
                from sparsify import SparseCoder, SparseCoderConfig
        except ImportError:
            raise CocomixError("sparsify is not installed; pip install 'cocomix[interop]' to compare with it") from None
        return SparseCoder(self.d, SparseCoderConfig(num_latents=self.c, k=self.k))

    def loss(self) -> torch.Tensor:
        return self.module(self.x).fvu

    def before_step(self) -> None:
        self.module.remove_gradient_parallel_to_decoder_directions()  # pyright: ignore[reportCallIssue]

    def after_step(self) -> None:
        self.module.set_decoder_norm_to_unit_norm()  # pyright: ignore[reportCallIssue]


SAE_STEPS: tuple[Callable[[Setting], SaeStep], ...] = (
    OurSae,
    lambda setting: SaeLens(setting, sparse=False),
    lambda setting: SaeLens(setting, sparse=True),
    Sparsify,
)
"""All autoencoder workloads."""

"""Kinds of autoencoders that are trained here, in one registry: TopK, BatchTopK, Matryoshka and JumpReLU.

- TopK (Gao et al. 2024, arXiv 2406.04093): the K largest latents of each position.
- BatchTopK (Bussmann et al. 2024, arXiv 2412.06410): the n K largest latents of a batch of n positions, so that a
  position has K of them on average. Alone, a latent is active above a threshold: the mean, over batches, of the
  smallest activation that was kept.
- Matryoshka (Bussmann et al. 2025, arXiv 2503.17547): BatchTopK whose first latents must reconstruct without the later
  ones, for several nested prefixes, so that general concepts are not split into, or absorbed by, special ones.
- JumpReLU (Rajamanoharan et al. 2024, arXiv 2407.14435): a threshold of its own for each latent, learned by
  straight-through estimators under a penalty on the number of active latents.

How each gives a position its few active latents, which labels, attribution and students need:

| kind | activation of the finished autoencoder | active latents of a position |
|---|---|---|
| topk | ReLU | exactly K, less those that are not positive |
| batch_topk, matryoshka | JumpReLU, one threshold for all | those above it, K on average, at most `most_active` |
| jumprelu | JumpReLU, a threshold each | those above their own, about K on average, at most `most_active` |

Choices:
- No tensor is C wide: `most_active` latents of each position are candidates, in training as in use. This is the papers'
  definition wherever no position has more active latents. The quality figures say at how many it is full.
- Thresholds are in units of normalised inputs. With several processes, BatchTopK's batch is that of one process, and
  the threshold is the mean over processes.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from cocomix.kernels.sparse import largest
from cocomix.sae.sae import JumpReLU, TopKSAE, encode_chosen
from cocomix.sae.training import SaeTraining, largest_ids
from cocomix.utils.distributed import mean_over_processes
from cocomix.utils.errors import CocomixError
from cocomix.utils.registry import Registry


class ThresholdTraining(SaeTraining):
    """Base class of the kinds whose finished autoencoder has thresholds.

    Args:
        k: mean number of active latents; the autoencoder's own k is the largest number at one position.
    """

    def __init__(self, sae: TopKSAE, *, k: int, **options: Any) -> None:
        super().__init__(sae, **options)
        self.k = k

    @classmethod
    def make(cls, d_model: int, n_latents: int, k: int, *, most_active: int | None = None, **options: Any) -> Self:
        """As in `SaeTraining`.

        Args:
            most_active: largest number of active latents at one position; None: twice k.
        """
        most = min(2 * k, n_latents) if most_active is None else most_active
        if not k <= most <= n_latents:
            raise CocomixError(
                f"most_active {most} must be from k ({k}) to the number of latents ({n_latents}); choose another"
            )
        return cls(TopKSAE(d_model, n_latents, most, activation=JumpReLU(n_latents)), k=k, **options)

    @property
    def threshold(self) -> torch.Tensor:
        """Thresholds of the autoencoder as it is, `[C]`."""
        assert isinstance(self.sae.activation, JumpReLU)
        return self.sae.activation.threshold

    def candidates(self, normed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The `most_active` largest pre-activations and their ids, largest first, `[n, most_active]`."""
        sae = self.sae
        pre_bias = sae.pre_bias if sae.bias_input else None
        return encode_chosen(normed, pre_bias, sae.encoder_weight, sae.latent_bias, sae.k, largest_ids)

    def largest_of_batch(self, values: torch.Tensor) -> torch.Tensor:
        """Which of `values` `[n, most_active]` are positive and among the n k largest of all, bool."""
        flat = values.detach().flatten()
        kept = torch.zeros_like(flat, dtype=torch.bool)
        kept[flat.topk(min(len(values) * self.k, len(flat)), sorted=False).indices] = True
        return kept.view_as(values) & (values > 0)


class BatchTopKTraining(ThresholdTraining):
    """BatchTopK: the n k largest latents of a batch of n positions.

    Args:
        threshold_rate: weight of each batch in the running mean of the smallest activation kept.
    """

    name = "batch_topk"

    def __init__(self, sae: TopKSAE, *, k: int, threshold_rate: float = 0.01, **options: Any) -> None:
        super().__init__(sae, k=k, **options)
        self.threshold_rate = threshold_rate

    def active(self, normed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.training:
            return super().active(normed)
        pre, ids = self.candidates(normed)
        values = F.relu(pre)
        kept = self.largest_of_batch(values)
        self._update_threshold(torch.where(kept, values.detach(), torch.inf).amin())
        values = torch.where(kept, values, 0.0)
        if values.device.type == "cpu" and kept.numel():
            # Candidates come largest first, so no position has an active one beyond its count.
            most = max(1, int(kept.sum(-1).max()))
            values, ids = values[:, :most], ids[:, :most]
        return values, ids

    @torch.no_grad()
    def _update_threshold(self, smallest: torch.Tensor) -> None:
        """Move the threshold towards the smallest activation kept; infinity says that none was."""
        old = self.threshold[0]
        mean = mean_over_processes(torch.where(smallest.isfinite(), smallest, old))
        # Kept activations are positive: a threshold of 0 is one that has seen no batch yet.
        moved = torch.where(old > 0, old + self.threshold_rate * (mean - old), mean)
        self.threshold.copy_(moved.expand_as(self.threshold))


class MatryoshkaTraining(BatchTopKTraining):
    """BatchTopK whose first latents, for several nested prefixes, reconstruct without the later ones.

    The error is the mean over prefixes; the paper sums, which differs in the weight of AuxK alone.

    Args:
        prefixes: shares of the latents, ascending, the last one 1.
    """

    name = "matryoshka"

    def __init__(
        self, sae: TopKSAE, *, k: int, prefixes: Sequence[float] = (1 / 32, 3 / 32, 7 / 32, 15 / 32, 1), **options: Any
    ) -> None:
        super().__init__(sae, k=k, **options)
        numbers = isinstance(prefixes, list | tuple) and all(isinstance(one, int | float) for one in prefixes)
        self.ends = [round(share * sae.n_latents) for share in prefixes] if numbers else []
        if (
            not self.ends
            or self.ends[-1] != sae.n_latents
            or any(a >= b for a, b in zip([0, *self.ends], self.ends, strict=False))
        ):
            raise CocomixError(
                f"prefixes {prefixes} must be ascending shares of the {sae.n_latents} latents that differ by at"
                " least one latent and end with 1; choose others"
            )

    def error(
        self, normed: torch.Tensor, values: torch.Tensor, ids: torch.Tensor, residual: torch.Tensor
    ) -> torch.Tensor:
        total, left, start = residual.square().mean(), normed - self.sae.pre_bias, 0
        for end in self.ends[:-1]:
            inside = (ids >= start) & (ids < end)
            left = left - self.sae.combine(torch.where(inside, values, 0.0), ids)
            total, start = total + left.square().mean(), end
        return total / len(self.ends)


class JumpReLUTraining(ThresholdTraining):
    """JumpReLU: learned thresholds, and a penalty on the distance of the mean number of active latents from k.

    Thresholds begin at the value that keeps k on average. Gradients reach them through latents within half a bandwidth
    of their threshold, as the paper's straight-through estimators have it. The penalty is its quadratic one,
    sparsity * (L0 / k - 1)^2, with L0 a mean over the batch of all processes.

    Args:
        bandwidth: of the estimators, for inputs of mean square norm 1 as in the paper.
        sparsity: weight of the penalty.
    """

    name = "jumprelu"

    def __init__(
        self, sae: TopKSAE, *, k: int, bandwidth: float = 0.001, sparsity: float = 1.0, **options: Any
    ) -> None:
        super().__init__(sae, k=k, **options)
        if bandwidth <= 0 or sparsity < 0:
            raise CocomixError("bandwidth must be above 0 and sparsity at least 0; choose others")
        scale = sae.d_model**0.5  # normalised inputs have this norm
        self.bandwidth, self.sparsity = bandwidth * scale, sparsity
        self.log_threshold = nn.Parameter(torch.full((sae.n_latents,), bandwidth * scale).log())
        self._l0: torch.Tensor | None = None
        self.after_step()

    @torch.no_grad()
    def initialise(self, x: torch.Tensor, rows: str = "random") -> None:
        super().initialise(x, rows)
        values = F.relu(self.candidates(self.sae.preprocess(x.to(self.sae.encoder_weight.dtype))[0])[0])
        kept = self.largest_of_batch(values)
        if kept.any():
            self.log_threshold.fill_(values[kept].min().log())
            self.after_step()

    def active(self, normed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.training:
            self._l0 = None
            return super().active(normed)
        sae, threshold = self.sae, self.log_threshold.exp()
        pre_bias, detached = sae.pre_bias if sae.bias_input else None, threshold.detach()

        def nearest(pre: torch.Tensor, k: int) -> torch.Tensor:
            # By the distance above the threshold, so that those just below it are candidates, too.
            return largest(pre - detached, k)[1]

        pre, ids = encode_chosen(normed, pre_bias, sae.encoder_weight, sae.latent_bias, sae.k, nearest)
        own = threshold[ids]
        self._l0 = _Step.apply(pre, own, self.bandwidth).sum(-1).mean()  # pyright: ignore[reportOptionalMemberAccess]
        return _Jump.apply(pre, own, self.bandwidth), ids  # pyright: ignore[reportReturnType]

    def penalty(self) -> torch.Tensor | None:
        l0, self._l0 = self._l0, None
        if l0 is None:
            return None
        overall = l0 + (mean_over_processes(l0.detach()) - l0.detach())
        return self.sparsity * (overall / self.k - 1).square()

    @torch.no_grad()
    def after_step(self) -> None:
        super().after_step()
        self.threshold.copy_(self.log_threshold.exp())


class _Jump(torch.autograd.Function):
    """x where it is above its threshold, else 0; the threshold's gradient is estimated (the paper's eq. 11)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, threshold: torch.Tensor, bandwidth: float) -> torch.Tensor:
        ctx.save_for_backward(x, threshold)
        ctx.bandwidth = bandwidth
        return torch.where(x > threshold, x, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, threshold = ctx.saved_tensors
        near = (x - threshold).abs() < ctx.bandwidth / 2
        return gradient * (x > threshold), -gradient * near * threshold / ctx.bandwidth, None


class _Step(torch.autograd.Function):
    """1 where x is above its threshold, else 0; only the threshold gets a gradient, estimated (the paper's eq. 12)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, threshold: torch.Tensor, bandwidth: float) -> torch.Tensor:
        ctx.save_for_backward(x, threshold)
        ctx.bandwidth = bandwidth
        return (x > threshold).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, threshold = ctx.saved_tensors
        near = (x - threshold).abs() < ctx.bandwidth / 2
        return None, -gradient * near / ctx.bandwidth, None


SAE_KINDS: Registry[type[SaeTraining]] = Registry(
    "kind of autoencoder",
    (SaeTraining, BatchTopKTraining, MatryoshkaTraining, JumpReLUTraining),
    own=("sae", "k", "aux_k", "aux_coefficient", "dead_after_tokens", "options"),
)
"""Kinds by name; `make` builds one, and its constructor's arguments are the options."""
register_sae_kind = SAE_KINDS.register

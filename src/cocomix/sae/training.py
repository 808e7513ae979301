"""Training losses of autoencoders: the common part, which is that of TopK; the other kinds are in `kinds.py`.

The loss is the squared error of the normalised hidden states, relative to their variance, plus AuxK (Gao et al. 2024,
eq. 8): latents that have not fired for `dead_after_tokens` tokens reconstruct the residual of the live ones, which
gives them a gradient again. In the normalised space every position has the same weight. Variances are taken over all
processes, so that several processes take the same step as one with the whole batch.

Whatever the kind, what is trained is a `TopKSAE`: labels, attribution and students need a few active latents of each
position, as ids and values. A kind decides which latents are active in training, what else the loss asks for, and which
`Activation` the finished autoencoder has.
"""

from typing import Any, ClassVar, Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from cocomix.kernels.sparse import largest
from cocomix.sae.sae import TopKSAE, encode_chosen
from cocomix.utils.distributed import mean_over_processes

ROWS = ("random", "data")
"""Where the rows of encoder and decoder come from: random directions, or hidden states."""


class SaeTraining(nn.Module):
    """Training of a TopK autoencoder: its loss, with a count of the tokens since each latent fired.

    Base class of the other kinds. They change `active`, `error` and `penalty`.

    Args:
        sae: trained in place.
        aux_k: dead latents per position in the auxiliary loss.
        aux_coefficient: weight of the auxiliary loss (1/32 in the paper).
        dead_after_tokens: a latent that has not fired for more tokens than this is dead.
    """

    name: ClassVar[str] = "topk"
    """name in settings"""
    tokens_since_fired: torch.Tensor
    """tokens since each latent last fired, int64 `[C]`"""

    def __init__(
        self, sae: TopKSAE, *, aux_k: int = 64, aux_coefficient: float = 1 / 32, dead_after_tokens: int = 100_000
    ) -> None:
        super().__init__()
        self.sae = sae
        self.aux_k, self.aux_coefficient, self.dead_after_tokens = aux_k, aux_coefficient, dead_after_tokens
        self.register_buffer("tokens_since_fired", torch.zeros(sae.n_latents, dtype=torch.int64))

    @classmethod
    def make(cls, d_model: int, n_latents: int, k: int, **options: Any) -> Self:
        """An autoencoder of this kind and its training.

        Args:
            k: latents active at a position; a mean for kinds with thresholds.
            options: the constructor's.
        """
        return cls(TopKSAE(d_model, n_latents, k), **options)

    def initialise(self, x: torch.Tensor, rows: str = "random") -> None:
        """Set what depends on data from the hidden states `x` `[n, d_model]`; `rows` is a key of `ROWS`."""
        self.sae.init_from_data(x)
        if rows == "data":
            self.sae.rows_from_data_(x)

    def active(self, normed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Active latents of normalised inputs `[n, d_model]`: values and int64 ids, `[n, most]`; 0 stands for none."""
        return self.sae.chosen(normed)

    def error(
        self, normed: torch.Tensor, values: torch.Tensor, ids: torch.Tensor, residual: torch.Tensor
    ) -> torch.Tensor:
        """Mean squared error of the reconstruction from `values` and `ids`, which leaves `residual`."""
        return residual.square().mean()

    def penalty(self) -> torch.Tensor | None:
        """What the loss has besides errors, of the latents that `active` returned last; None: nothing."""
        return None

    def before_step(self) -> None:
        """Called after the backward pass, before clipping and the optimiser."""
        self.sae.remove_parallel_gradient_()

    def after_step(self) -> None:
        """Called after each optimiser step."""
        self.sae.normalize_decoder_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Loss of hidden states `x` `[n, d_model]`, a scalar; in training mode it also counts which latents fired."""
        sae = self.sae
        normed, _, _ = sae.preprocess(x)
        values, ids = self.active(normed)
        residual = normed - (sae.combine(values, ids) + sae.pre_bias)
        variance, residual_square = self._scales(normed.detach(), residual.detach())
        loss = self.error(normed, values, ids, residual) / variance
        penalty = self.penalty()
        if penalty is not None:
            loss = loss + penalty
        if self.training:
            self._count(ids, values, len(x))
        dead = (self.tokens_since_fired > self.dead_after_tokens).nonzero().squeeze(-1)
        if len(dead) and self.aux_coefficient:
            loss = loss + self.aux_coefficient * self._auxiliary(normed, dead, residual.detach()) / residual_square
        return loss

    @staticmethod
    def _scales(normed: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Variance of the inputs and mean square of the residual, over all processes, `[2]`."""
        deviation = normed - mean_over_processes(normed.mean(0))
        squares = torch.stack([deviation.square().mean(), residual.square().mean()])
        return mean_over_processes(squares).clamp_min(1e-12)

    def _auxiliary(self, normed: torch.Tensor, dead: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Mean squared error of the residual reconstructed from the top `aux_k` dead latents."""
        sae, k = self.sae, min(self.aux_k, len(dead))
        rows = sae.encoder_weight.index_select(0, dead), sae.latent_bias.index_select(0, dead)
        values, places = encode_chosen(normed, sae.pre_bias if sae.bias_input else None, *rows, k, largest_ids)
        reconstruction = sae.combine(F.relu(values), dead[places])
        return (reconstruction - residual).square().mean()

    @torch.no_grad()
    def _count(self, ids: torch.Tensor, values: torch.Tensor, n_tokens: int) -> None:
        """Update `tokens_since_fired` with the `ids` and `values` `[n, K]` of this process's `n_tokens` tokens."""
        fired = torch.zeros_like(self.tokens_since_fired, dtype=torch.uint8)
        # Unlike indexing with a mask, a reduction does not wait for the GPU.
        fired.scatter_reduce_(0, ids.flatten(), (values > 0).flatten().to(fired.dtype), reduce="amax")
        world = 1
        if dist.is_initialized():
            dist.all_reduce(fired, op=dist.ReduceOp.MAX)
            world = dist.get_world_size()
        self.tokens_since_fired += n_tokens * world
        self.tokens_since_fired.masked_fill_(fired.bool(), 0)


def largest_ids(pre: torch.Tensor, k: int) -> torch.Tensor:
    """The columns of the k largest, int64 `[..., k]`, largest first."""
    return largest(pre, k)[1]

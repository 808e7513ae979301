"""Training loss of the TopK autoencoder.

The loss is the squared error of the normalised hidden states, relative to their variance, plus AuxK (Gao et al. 2024,
eq. 8): latents that have not fired for `dead_after_tokens` tokens reconstruct the residual of the live ones, which
gives them a gradient again. In the normalised space every position has the same weight. Variances are taken over all
processes, so that several processes take the same step as one with the whole batch.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from cocomix.kernels.sparse import largest
from cocomix.sae.sae import TopKSAE, encode_chosen
from cocomix.utils.distributed import mean_over_processes


class SaeTraining(nn.Module):
    """Training loss of an autoencoder, with a count of the tokens since each latent fired.

    Args:
        sae: trained in place.
        aux_k: dead latents per position in the auxiliary loss.
        aux_coefficient: weight of the auxiliary loss (1/32 in the paper).
        dead_after_tokens: a latent that has not fired for more tokens than this is dead.
    """

    tokens_since_fired: torch.Tensor
    """tokens since each latent last fired, int64 `[C]`"""

    def __init__(
        self, sae: TopKSAE, *, aux_k: int = 64, aux_coefficient: float = 1 / 32, dead_after_tokens: int = 100_000
    ) -> None:
        super().__init__()
        self.sae = sae
        self.aux_k, self.aux_coefficient, self.dead_after_tokens = aux_k, aux_coefficient, dead_after_tokens
        self.register_buffer("tokens_since_fired", torch.zeros(sae.n_latents, dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Loss of hidden states `x` `[n, d_model]`, a scalar; in training mode it also counts which latents fired."""
        sae = self.sae
        normed, _, _ = sae.preprocess(x)
        values, ids = sae.chosen(normed)
        residual = normed - (sae.combine(values, ids) + sae.pre_bias)
        variance, residual_square = self._scales(normed.detach(), residual.detach())
        loss = residual.square().mean() / variance
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
        values, places = encode_chosen(normed, sae.pre_bias if sae.bias_input else None, *rows, k, _largest_ids)
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


def _largest_ids(pre: torch.Tensor, k: int) -> torch.Tensor:
    return largest(pre, k)[1]

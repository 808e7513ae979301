"""The divergence of one linear layer's distributions at two inputs, in chunks that never hold all the scores.

As in `linear_cross_entropy`, one buffer holds the scores of a chunk of positions at a time, and the gradient is
computed in the same pass. The weights of the layer get none.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from cocomix.kernels.linear_cross_entropy import CHUNK_BYTES, chunk_size
from cocomix.kernels.matmul import outside_graphs, scores_into


@outside_graphs
def linear_divergence(
    x: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum over positions of KL(p || q), p = softmax(weight target + bias), q = softmax(weight x + bias); a scalar.

    Differentiable once, with respect to x alone. Under autocast the products are computed in its dtype and everything
    else in float32.

    Args:
        x: `[n, d]`.
        target: `[n, d]`.
        weight: `[V, d]`.
        bias: `[V]`, or None.
    """
    device_type = x.device.type
    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else x.dtype
    with torch.autocast(device_type, enabled=False):
        return _LinearDivergence.apply(x, target, weight, bias, dtype)  # pyright: ignore[reportReturnType]


class _LinearDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        target: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        wide = torch.promote_types(dtype, torch.float32)
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        total = torch.zeros((), dtype=wide, device=x.device)
        gradient = torch.empty(x.shape, dtype=wide, device=x.device) if ctx.needs_input_grad[0] else None
        size = chunk_size(len(x), max(1, CHUNK_BYTES // (8 * len(weight))))
        scores = torch.empty(min(size, len(x)), len(weight), dtype=dtype, device=x.device)
        for first in range(0, len(x), size):
            rows = slice(first, min(first + size, len(x)))
            held = scores[: rows.stop - first]
            p = scores_into(held, target[rows].to(dtype), weight, bias).to(wide).log_softmax(-1)
            q = scores_into(held, x[rows].to(dtype), weight, bias).to(wide).log_softmax(-1)
            total += (p.exp() * (p - q)).sum()
            if gradient is not None:
                gradient[rows] = (q.exp_() - p.exp_()).to(dtype) @ weight
        ctx.save_for_backward(gradient)
        ctx.dtype = x.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: torch.Tensor) -> tuple:
        (gradient,) = ctx.saved_tensors
        return None if gradient is None else (gradient * grad_total).to(ctx.dtype), None, None, None, None

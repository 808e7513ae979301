"""A linear layer, cross entropies of its scores and their K largest, without ever holding all scores.

Scores of N positions over V choices, their softmax and their gradient are the largest tensors of a training step.
Here positions are taken a chunk at a time through one buffer: product, TopK, softmax and, where gradients will be
wanted, both gradient products while the chunk is at hand. What is kept is the size of the inputs.
"""

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from cocomix.kernels.rows import rows_gradient, weighted_rows
from cocomix.kernels.topk import largest

CHUNK_BYTES = 1 << 26
"""Scores held at a time, float32."""


class LinearLosses(NamedTuple):
    """What `linear_losses` returns."""

    total: torch.Tensor
    """sum of the cross entropies, a scalar, in float32 or better"""
    count: torch.Tensor
    """targets that were not ignored, int64, a scalar"""
    values: torch.Tensor | None
    """the K largest scores, `[n, K]`"""
    ids: torch.Tensor | None
    """their columns, int64 `[n, K]`"""


def linear_losses(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    top_k: int = 0,
) -> LinearLosses:
    """Scores z = weight x + bias; the sum of logsumexp(z[n]) - z[n, i] over all targets i of n; the K largest of z.

    Under autocast the products are taken in its dtype, everything else in float32. All outputs are differentiable
    once, with respect to x, weight and bias.

    Args:
        x: `[n, d]`.
        weight: `[V, d]`.
        bias: `[V]`, or None.
        targets: int64 `[n, J]`, columns; -100 is ignored.
        top_k: K; 0: the largest scores are not looked for.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    with torch.autocast(kind, enabled=False):
        total, values, ids = _LinearLosses.apply(x, weight, bias, targets, top_k, dtype)  # pyright: ignore
    found = top_k > 0
    return LinearLosses(total, (targets != -100).sum(), values if found else None, ids if found else None)


class _LinearLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        top_k: int,
        dtype: torch.dtype,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        wanted = any(ctx.needs_input_grad[:3])
        total, values, ids, gradients = _through(x, weight, bias, targets, top_k, dtype, wanted)
        ctx.save_for_backward(x, weight, bias, targets, ids)
        ctx.gradients, ctx.made_with = gradients, (top_k, dtype)
        ctx.mark_non_differentiable(ids)
        ctx.set_materialize_grads(False)
        return total, values, ids

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, into_total: torch.Tensor | None, into_values: torch.Tensor | None, _: None) -> tuple:
        x, weight, bias, targets, ids = ctx.saved_tensors
        made: list[torch.Tensor | None] = [None, None, None]
        if into_total is not None:
            if ctx.gradients is None:  # used up by an earlier backward pass
                ctx.gradients = _through(x, weight, bias, targets, *ctx.made_with, True)[3]
            made = [None if g is None else g.mul_(into_total) for g in ctx.gradients]
            ctx.gradients = None
        if into_values is not None:
            more = weighted_rows(into_values, ids, weight), rows_gradient(into_values, ids, x, len(weight))
            made[:2] = [m if g is None else g.add_(m) for g, m in zip(made, more, strict=False)]
            if bias is not None:
                extra = torch.zeros_like(bias) if made[2] is None else made[2]
                made[2] = extra.index_add_(0, ids.flatten(), into_values.flatten().to(extra.dtype))
        for place, (given, gradient) in enumerate(zip((x, weight, bias), made, strict=True)):
            if gradient is not None and given is not None:
                made[place] = gradient.to(given.dtype) if ctx.needs_input_grad[place] else None
        return *made, None, None, None


def _through(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    top_k: int,
    dtype: torch.dtype,
    with_gradients: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor | None] | None]:
    """The sum of losses, values and ids of the K largest, and the sum's gradients in x, weight and bias."""
    wide = torch.promote_types(dtype, torch.float32)
    used = targets != -100
    counts = used.sum(-1, keepdim=True).to(wide)
    total = torch.zeros((), dtype=wide, device=x.device)
    values = torch.empty(len(x), top_k, dtype=wide, device=x.device)
    ids = torch.empty(len(x), top_k, dtype=torch.int64, device=x.device)
    work = _Chunks(x, weight, bias, dtype, wide, with_gradients)
    for rows in work.chunks():
        scores = work.scores(rows)
        if top_k:
            values[rows], ids[rows] = largest(scores, top_k)
            peak, place = values[rows, :1], ids[rows, :1]
        else:
            peak, place = scores.max(-1, keepdim=True)
        chosen, real = targets[rows].masked_fill(~used[rows], 0), used[rows]
        at_targets = scores.gather(-1, chosen)
        odds = torch.softmax(scores, -1, out=scores)
        log_sum = peak - odds.gather(-1, place).log()  # the largest score's odds are never too small for a logarithm
        total += ((log_sum - at_targets) * real).sum()
        if with_gradients:
            share = counts[rows]
            odds.scatter_add_(-1, chosen, -(real / share.clamp_min(1)))
            work.add_gradients(rows, odds, share)
    return total, values, ids, work.gradients


class _Chunks:
    """The buffers and products of a pass over chunks of positions."""

    def __init__(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        wide: torch.dtype,
        with_gradients: bool,
    ) -> None:
        self.x, self.weight, self.dtype, self.wide = x.to(dtype), weight.to(dtype), dtype, wide
        self.bias = None if bias is None else bias.to(dtype)
        self.size = max(1, CHUNK_BYTES // (4 * len(weight)))
        n = min(self.size, len(x))
        self.buffer = torch.empty(n, len(weight), dtype=wide, device=x.device)
        self.narrow = self.buffer if dtype == wide else torch.empty_like(self.buffer, dtype=dtype)
        self.gradients: list[torch.Tensor | None] | None = None
        if with_gradients:
            self.gradients = [
                torch.empty(x.shape, dtype=wide, device=x.device),
                torch.zeros(weight.shape, dtype=wide, device=x.device),
                None if bias is None else torch.zeros(bias.shape, dtype=wide, device=x.device),
            ]

    def chunks(self):
        """Slices of positions."""
        for first in range(0, len(self.x), self.size):
            yield slice(first, min(first + self.size, len(self.x)))

    def scores(self, rows: slice) -> torch.Tensor:
        """Scores of a chunk in the buffer, `[rows, V]`."""
        n = rows.stop - rows.start
        into = self.narrow[:n]
        if self.bias is None:
            torch.mm(self.x[rows], self.weight.T, out=into)
        else:
            torch.addmm(self.bias, self.x[rows], self.weight.T, out=into)
        return into if self.narrow is self.buffer else self.buffer[:n].copy_(into)

    def add_gradients(self, rows: slice, into_scores: torch.Tensor, share: torch.Tensor) -> None:
        """Carry `into_scores` `[rows, V]`, times `share` `[rows, 1]`, into the inputs."""
        assert self.gradients is not None
        into_x, into_weight, into_bias = self.gradients
        assert into_x is not None and into_weight is not None
        if into_bias is not None:
            into_bias.addmv_(into_scores.T, share.squeeze(-1))
        x = self.x[rows] * share.to(self.dtype)
        if self.narrow is self.buffer:
            torch.mm(into_scores, self.weight, out=into_x[rows])
            into_weight.addmm_(into_scores.T, x)
        else:
            narrow = self.narrow[: len(x)].copy_(into_scores)
            into_x[rows] = narrow @ self.weight
            into_weight += narrow.T @ x
        into_x[rows] *= share

"""A linear layer, cross entropies of its scores and their K largest, without ever holding all scores.

Scores of N positions over V choices, their softmax and their gradient are the largest tensors of a training step.
Here positions are taken a chunk at a time through one buffer: product, TopK, softmax and, where gradients will be
wanted, both gradient products while the chunk is at hand. What is kept is the size of the inputs.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from cocomix.kernels.matmul import Linear, add_product, outside_graphs, scores_into
from cocomix.kernels.sparse import largest, rows_gradient, weighted_rows

CHUNK_BYTES = 1 << 26
"""Scores held at a time."""
NARROW_CHUNKS = 4
"""Under autocast chunks are so many times larger: its products are that much faster, reading the weights is not."""
PART_BYTES = 1 << 23
"""Scores a softmax works on at a time, float32: what several passes find in the cache."""


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

    @property
    def mean(self) -> torch.Tensor:
        """Mean cross entropy of the targets, a scalar; 0 where all were ignored."""
        return self.total / self.count.clamp_min(1)


@outside_graphs
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


def plain_linear(module: nn.Module) -> bool:
    """Whether `linear_losses` may stand for `module`: a linear layer with nothing hooked to its forward pass."""
    return type(module) in (nn.Linear, Linear) and not is_wrapped(module)


def is_wrapped(module: nn.Module) -> bool:
    """Whether somebody (a hook, Accelerate's offloading) does more in the module's forward pass than the module."""
    return "forward" in module.__dict__ or bool(module._forward_hooks or module._forward_pre_hooks)


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
        wanted = ctx.needs_input_grad[:3]
        total, values, ids, gradients = _through(x, weight, bias, targets, top_k, dtype, wanted)
        ctx.save_for_backward(x, weight, bias, targets, ids)
        ctx.gradients, ctx.made_with = gradients, (top_k, dtype, wanted)
        ctx.mark_non_differentiable(ids)
        ctx.set_materialize_grads(False)
        return total, values, ids

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, into_total: torch.Tensor | None, into_values: torch.Tensor | None, _: None) -> tuple:
        x, weight, bias, targets, ids = ctx.saved_tensors
        made: list[torch.Tensor | None] = [None, None, None]
        if into_total is not None:
            kept, ctx.gradients = ctx.gradients, None
            if kept is None:  # used up by an earlier backward pass
                kept = _through(x, weight, bias, targets, *ctx.made_with)[3]
            made = [None if g is None else g.mul_(into_total) for g in kept or made]
        if into_values is not None:
            more = _through_largest(into_values, ids, x, weight, bias, ctx.needs_input_grad)
            made = [m if g is None else g if m is None else g.add_(m) for g, m in zip(made, more, strict=True)]
        given = (x, weight, bias)
        typed = [g if g is None or t is None else g.to(t.dtype) for g, t in zip(made, given, strict=True)]
        return *typed, None, None, None


def _through_largest(
    into_values: torch.Tensor,
    ids: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    wanted: Sequence[bool],
) -> list[torch.Tensor | None]:
    """Gradients of x, weight and bias through the K largest scores alone."""
    into_x = weighted_rows(into_values, ids, weight) if wanted[0] else None
    into_weight = rows_gradient(into_values, ids, x, len(weight)) if wanted[1] else None
    into_bias = None
    if bias is not None and wanted[2]:
        into_bias = torch.zeros_like(bias).index_add_(0, ids.flatten(), into_values.flatten().to(bias.dtype))
    return [into_x, into_weight, into_bias]


def _through(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    top_k: int,
    dtype: torch.dtype,
    wanted: Sequence[bool],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor | None] | None]:
    """The sum of losses, values and ids of the K largest, and the sum's gradients in what is `wanted` of the inputs."""
    wide = torch.promote_types(dtype, torch.float32)
    used = targets != -100
    counts = used.sum(-1, keepdim=True).to(wide)
    total = torch.zeros((), dtype=wide, device=x.device)
    values = torch.empty(len(x), top_k, dtype=wide, device=x.device)
    ids = torch.empty(len(x), top_k, dtype=torch.int64, device=x.device)
    work = _Chunks(x, weight, bias, dtype, wide, wanted)
    for chunk in work.chunks():
        work.score(chunk)
        for rows, scores in work.parts(chunk):
            if top_k:
                values[rows], ids[rows] = largest(scores, top_k)
                peak, place = values[rows, :1], ids[rows, :1]
            else:
                peak, place = scores.max(-1, keepdim=True)
            chosen, real = targets[rows].masked_fill(~used[rows], 0), used[rows]
            at_targets = scores.gather(-1, chosen)
            odds = torch.softmax(scores, -1, out=scores)
            log_sum = peak - odds.gather(-1, place).log()  # the largest score's odds are never too small for a log
            total += ((log_sum - at_targets) * real).sum()
            if work.gradients:
                odds.scatter_add_(-1, chosen, -(real / counts[rows].clamp_min(1)))
                work.give_back(chunk, rows, odds)
        if work.gradients:
            work.add_gradients(chunk, counts[chunk])
    return total, values, ids, work.gradients


def _chunk(n: int, most: int) -> int:
    """Positions a chunk, at most `most`: n in about equal parts, and products like multiples of 64."""
    most = most // 64 * 64 or most
    even = -(-n // max(1, -(-n // most)))
    return max(1, min(most, -(-even // 64) * 64))


def held_bytes(n: int, columns: int, width: int) -> int:
    """Bytes of the scores `[n, columns]` that `linear_losses` holds at a time; `width`: of a product's element."""
    if not columns:
        return 0
    narrow = width < 4
    size = min(n, _chunk(n, _most(columns, narrow)))
    return columns * (size * width + (min(size, _part(columns)) * 4 if narrow else 0))


def _most(columns: int, narrow: bool) -> int:
    return max(1, CHUNK_BYTES * (NARROW_CHUNKS if narrow else 1) // (4 * columns))


def _part(columns: int) -> int:
    return max(1, PART_BYTES // (4 * columns))


class _Chunks:
    """The buffers and products of a pass over chunks of positions."""

    def __init__(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        wide: torch.dtype,
        wanted: Sequence[bool],
    ) -> None:
        self.x, self.weight, self.dtype, self.wide = x.to(dtype), weight.to(dtype), dtype, wide
        self.bias = None if bias is None else bias.to(dtype)
        exact = dtype == wide
        self.size = _chunk(len(x), _most(len(weight), not exact))
        self.part = _part(len(weight))
        n = min(self.size, len(x))
        self.buffer = torch.empty(n, len(weight), dtype=dtype, device=x.device)
        self.wide_part = None if exact else torch.empty(min(self.part, n), len(weight), dtype=wide, device=x.device)
        self.gradients: list[torch.Tensor | None] | None = None
        if any(wanted):
            self.gradients = [
                torch.zeros(one.shape, dtype=wide, device=x.device) if asked and one is not None else None
                for one, asked in zip((x, weight, bias), wanted, strict=True)
            ]

    def chunks(self) -> Iterator[slice]:
        """Slices of positions."""
        return _slices(0, len(self.x), self.size)

    def score(self, chunk: slice) -> None:
        """Scores of a chunk into the buffer, `[rows, V]`."""
        scores_into(self.buffer[: chunk.stop - chunk.start], self.x[chunk], self.weight, self.bias)

    def parts(self, chunk: slice) -> Iterator[tuple[slice, torch.Tensor]]:
        """Slices of positions of a chunk with their scores, to be worked on in place, `[rows, V]`."""
        for rows in _slices(chunk.start, chunk.stop, self.part):
            scores = self.buffer[rows.start - chunk.start : rows.stop - chunk.start]
            yield rows, scores if self.wide_part is None else self.wide_part[: len(scores)].copy_(scores)

    def give_back(self, chunk: slice, rows: slice, into_scores: torch.Tensor) -> None:
        """Put a part's gradient `[rows, V]` in place of its scores."""
        if self.wide_part is not None:
            self.buffer[rows.start - chunk.start : rows.stop - chunk.start].copy_(into_scores)

    def add_gradients(self, chunk: slice, share: torch.Tensor) -> None:
        """Carry the gradient of a chunk's scores, times `share` `[rows, 1]`, into the inputs."""
        assert self.gradients is not None
        into_x, into_weight, into_bias = self.gradients
        into_scores = self.buffer[: len(share)]
        if into_bias is not None:
            into_bias += (into_scores.T @ share.to(self.dtype)).squeeze(-1)
        if into_x is not None:
            torch.mul(into_scores @ self.weight, share, out=into_x[chunk])
        if into_weight is not None:
            add_product(into_weight, into_scores.T, self.x[chunk] * share.to(self.dtype))


def _slices(first: int, last: int, size: int) -> Iterator[slice]:
    for start in range(first, last, size):
        yield slice(start, min(start + size, last))

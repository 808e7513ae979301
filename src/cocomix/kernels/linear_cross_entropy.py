"""Linear layer, cross entropy and TopK in one function that never holds all the scores.

The scores of n positions over V classes, their softmax and their gradient are the largest tensors of a training step.
Here one buffer holds the scores of a chunk of positions at a time. Each chunk goes through the matrix product, TopK and
softmax and, where gradients are needed, through both gradient products. Only tensors of the size of the inputs are kept
for the backward pass.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from cocomix.kernels.matmul import add_product, outside_graphs, scores_into
from cocomix.kernels.sparse import largest, rows_gradient, weighted_rows

CHUNK_BYTES = 1 << 26
"""Bytes of scores held at a time."""
NARROW_CHUNKS = 4
"""Factor on the chunk size under autocast: its products are faster by about as much, reading the weights is not."""
PART_BYTES = 1 << 23
"""Bytes of float32 scores that one softmax works on, small enough to stay in the cache over several passes."""


class LinearLosses(NamedTuple):
    """Output of `linear_losses`."""

    total: torch.Tensor
    """sum of the cross entropies, a scalar, in float32 or better"""
    count: torch.Tensor
    """number of targets that were not ignored, int64, a scalar"""
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
    weights: torch.Tensor | None = None,
    cap: float | None = None,
    z_weight: float = 0.0,
) -> LinearLosses:
    """Cross entropies and the K largest of the scores z = weight x + bias.

    The loss is the sum of logsumexp(z[n]) - z[n, i] + z_weight logsumexp(z[n])^2 over all targets i of all positions n,
    each times its weight. Under autocast the products are computed in its dtype and everything else in float32. All
    outputs are differentiable once, with respect to x, weight and bias.

    Args:
        x: `[n, d]`.
        weight: `[V, d]`.
        bias: `[V]`, or None.
        targets: columns of z, int64 `[n, J]`; -100 is ignored.
        top_k: K; with 0 the largest scores are not computed.
        weights: of the targets, 0 or more, `[n, J]`, without a gradient; None: 1 each.
        cap: soft-cap of the scores: z = cap tanh((weight x + bias) / cap); only with top_k 0. None: there is none.
        z_weight: weight of the z-loss, the squared logarithm of the softmax's normaliser.
    """
    assert cap is None or not top_k, "the gradient of the largest scores knows no cap"
    device_type = x.device.type
    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else x.dtype
    with torch.autocast(device_type, enabled=False):
        options = (top_k, dtype, weights, cap, z_weight)
        total, values, ids = _LinearLosses.apply(x, weight, bias, targets, *options)  # pyright: ignore
    count = (targets != -100).sum()
    return LinearLosses(total, count, values, ids) if top_k else LinearLosses(total, count, None, None)


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
        weights: torch.Tensor | None,
        cap: float | None,
        z_weight: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        options = (top_k, dtype, ctx.needs_input_grad[:3], cap, z_weight)
        total, values, ids, gradients = _chunked_pass(x, weight, bias, targets, weights, *options)
        ctx.save_for_backward(x, weight, bias, targets, weights, ids)
        ctx.gradients, ctx.options = gradients, options
        ctx.mark_non_differentiable(ids)
        ctx.set_materialize_grads(False)
        return total, values, ids

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: torch.Tensor | None, grad_values: torch.Tensor | None, _: None) -> tuple:
        x, weight, bias, targets, weights, ids = ctx.saved_tensors
        gradients: list[torch.Tensor | None] = [None, None, None]
        if grad_total is not None:
            saved, ctx.gradients = ctx.gradients, None
            if saved is None:  # an earlier backward pass has scaled them in place
                saved = _chunked_pass(x, weight, bias, targets, weights, *ctx.options)[3]
            gradients = [None if g is None else g.mul_(grad_total) for g in saved or gradients]
        if grad_values is not None:
            top = _top_k_gradients(grad_values, ids, x, weight, bias, ctx.needs_input_grad)
            gradients = [t if g is None else g if t is None else g.add_(t) for g, t in zip(gradients, top, strict=True)]
        inputs = (x, weight, bias)
        typed = [g if g is None or i is None else g.to(i.dtype) for g, i in zip(gradients, inputs, strict=True)]
        return *typed, None, None, None, None, None, None


def _top_k_gradients(
    grad_values: torch.Tensor,
    ids: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    needs_grad: Sequence[bool],
) -> list[torch.Tensor | None]:
    """Gradients of x, weight and bias that come through the K largest scores."""
    grad_x = weighted_rows(grad_values, ids, weight) if needs_grad[0] else None
    grad_weight = rows_gradient(grad_values, ids, x, len(weight)) if needs_grad[1] else None
    grad_bias = None
    if bias is not None and needs_grad[2]:
        grad_bias = torch.zeros_like(bias).index_add_(0, ids.flatten(), grad_values.flatten().to(bias.dtype))
    return [grad_x, grad_weight, grad_bias]


def _chunked_pass(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    weights: torch.Tensor | None,
    top_k: int,
    dtype: torch.dtype,
    needs_grad: Sequence[bool],
    cap: float | None,
    z_weight: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor | None] | None]:
    """Sum of losses, K largest values and their ids, and the gradients of that sum in x, weight and bias as needed."""
    wide = torch.promote_types(dtype, torch.float32)
    used = targets != -100
    shares = used.to(wide) if weights is None else weights.to(wide) * used
    counts = shares.sum(-1, keepdim=True)
    divisors = counts.masked_fill(counts == 0, 1)
    total = torch.zeros((), dtype=wide, device=x.device)
    values = torch.empty(len(x), top_k, dtype=wide, device=x.device)
    ids = torch.empty(len(x), top_k, dtype=torch.int64, device=x.device)
    work = _Chunks(x, weight, bias, dtype, wide, needs_grad)
    for chunk in work.chunks():
        work.score(chunk)
        for rows, scores in work.parts(chunk):
            slope = None if cap is None else capped_(scores, cap)
            if top_k:
                values[rows], ids[rows] = largest(scores, top_k)
                peak, place = values[rows, :1], ids[rows, :1]
            else:
                peak, place = scores.max(-1, keepdim=True)
            chosen = targets[rows].masked_fill(~used[rows], 0)
            at_targets = scores.gather(-1, chosen)
            probabilities = torch.softmax(scores, -1, out=scores)
            log_sum = peak - probabilities.gather(-1, place).log()  # the largest one is never too small for a log
            total += ((log_sum - at_targets) * shares[rows]).sum()
            if z_weight:
                total += z_weight * (log_sum.square() * counts[rows]).sum()
            if work.gradients:
                if z_weight:
                    probabilities.mul_(1 + 2 * z_weight * log_sum)
                probabilities.scatter_add_(-1, chosen, -(shares[rows] / divisors[rows]))
                if slope is not None:
                    probabilities.mul_(slope)
                work.store_gradient(chunk, rows, probabilities)
        if work.gradients:
            work.add_gradients(chunk, counts[chunk])
    return total, values, ids, work.gradients


def capped_(scores: torch.Tensor, cap: float) -> torch.Tensor:
    """Replace scores by cap tanh(scores / cap), in place; returns the slope 1 - tanh^2 at each."""
    share = scores.div_(cap).tanh_()
    slope = 1 - share.square()
    scores.mul_(cap)
    return slope


def chunk_size(n: int, most: int) -> int:
    """Positions per chunk, at most `most`: about equal chunks, in multiples of 64, which products handle fastest."""
    most = most // 64 * 64 or most
    even = -(-n // max(1, -(-n // most)))
    return max(1, min(most, -(-even // 64) * 64))


def held_bytes(n: int, columns: int, width: int) -> int:
    """Bytes of the scores `[n, columns]` held at a time; `width` is the bytes of an element of the product."""
    if not columns:
        return 0
    narrow = width < 4
    size = min(n, chunk_size(n, _chunk_limit(columns, narrow)))
    return columns * (size * width + (min(size, _part_limit(columns)) * 4 if narrow else 0))


def _chunk_limit(columns: int, narrow: bool) -> int:
    return max(1, CHUNK_BYTES * (NARROW_CHUNKS if narrow else 1) // (4 * columns))


def _part_limit(columns: int) -> int:
    return max(1, PART_BYTES // (4 * columns))


class _Chunks:
    """Buffers and matrix products of one pass over chunks of positions."""

    def __init__(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        wide: torch.dtype,
        needs_grad: Sequence[bool],
    ) -> None:
        self.x, self.weight, self.dtype, self.wide = x.to(dtype), weight.to(dtype), dtype, wide
        self.bias = None if bias is None else bias.to(dtype)
        full_precision = dtype == wide
        self.size = chunk_size(len(x), _chunk_limit(len(weight), not full_precision))
        self.part = _part_limit(len(weight))
        n = min(self.size, len(x))
        self.buffer = torch.empty(n, len(weight), dtype=dtype, device=x.device)
        self.wide_part = (
            None if full_precision else torch.empty(min(self.part, n), len(weight), dtype=wide, device=x.device)
        )
        self.gradients: list[torch.Tensor | None] | None = None
        if any(needs_grad):
            self.gradients = [
                torch.zeros(tensor.shape, dtype=wide, device=x.device) if needed and tensor is not None else None
                for tensor, needed in zip((x, weight, bias), needs_grad, strict=True)
            ]

    def chunks(self) -> Iterator[slice]:
        """Slices of positions, one for each chunk."""
        return _slices(0, len(self.x), self.size)

    def score(self, chunk: slice) -> None:
        """Compute the scores of a chunk into the buffer, `[rows, V]`."""
        scores_into(self.buffer[: chunk.stop - chunk.start], self.x[chunk], self.weight, self.bias)

    def parts(self, chunk: slice) -> Iterator[tuple[slice, torch.Tensor]]:
        """Parts of a chunk: slices of positions and their scores `[rows, V]`, which the caller may overwrite."""
        for rows in _slices(chunk.start, chunk.stop, self.part):
            scores = self.buffer[rows.start - chunk.start : rows.stop - chunk.start]
            yield rows, scores if self.wide_part is None else self.wide_part[: len(scores)].copy_(scores)

    def store_gradient(self, chunk: slice, rows: slice, grad_scores: torch.Tensor) -> None:
        """Write a part's gradient `[rows, V]` over its scores in the buffer."""
        if self.wide_part is not None:
            self.buffer[rows.start - chunk.start : rows.stop - chunk.start].copy_(grad_scores)

    def add_gradients(self, chunk: slice, share: torch.Tensor) -> None:
        """Add the gradient of a chunk's scores, times `share` `[rows, 1]`, to the gradients of the inputs."""
        assert self.gradients is not None
        grad_x, grad_weight, grad_bias = self.gradients
        grad_scores = self.buffer[: len(share)]
        if grad_bias is not None:
            grad_bias += (grad_scores.T @ share.to(self.dtype)).squeeze(-1)
        if grad_x is not None:
            torch.mul(grad_scores @ self.weight, share, out=grad_x[chunk])
        if grad_weight is not None:
            add_product(grad_weight, grad_scores.T, self.x[chunk] * share.to(self.dtype))


def _slices(first: int, last: int, size: int) -> Iterator[slice]:
    for start in range(first, last, size):
        yield slice(start, min(start + size, last))

"""Sums and products over a few rows of a big matrix: what a dense product with K non-zeros in C amounts to.

A position with K active concepts reads K rows of `[C, d]`, where the dense product reads all of them. The weight's
gradient is the transpose, a sum of positions for each row, and is done the same way.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


def weighted_rows(values: torch.Tensor, ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """sum_k values[..., k] * weight[ids[..., k]]: `[..., d]` in the weight's dtype.

    Args:
        values: `[..., K]`.
        ids: rows, int64 `[..., K]`.
        weight: `[C, d]`.
    """
    k = ids.shape[-1]
    flat = _WeightedRows.apply(values.reshape(-1, k).to(weight.dtype), ids.reshape(-1, k), weight)
    return flat.view(*ids.shape[:-1], weight.shape[1])  # pyright: ignore[reportOptionalMemberAccess]


def row_products(x: torch.Tensor, ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """<x, weight[ids[..., k]]> for each k: `[..., d]` and `[..., K]` -> `[..., K]`; no gradient."""
    flat_x, flat_ids = x.reshape(-1, x.shape[-1]).to(weight.dtype), ids.reshape(-1, ids.shape[-1])
    products = _direct_products if weight.device.type == "cpu" else _gathered_products
    return products(flat_x, flat_ids, weight).view(ids.shape)


def _direct_products(x: torch.Tensor, ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`row_products` of `[n, d]` and `[n, K]` without a copy of the rows: a quarter of the time of gathering them.

    It is what autograd computes for the weights of `embedding_bag`, of which position n is a bag of K.
    """
    n, k = ids.shape
    bags = torch.arange(n, device=ids.device)
    flat = _weights_gradient(x.contiguous(), weight, ids.flatten(), bags * k, bags.repeat_interleave(k), 0, -1)
    return flat.view(n, k)


def _gathered_products(x: torch.Tensor, ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`row_products` of `[n, d]` and `[n, K]` on gathered rows, some positions at a time."""
    parts = [
        torch.bmm(weight[some], part.unsqueeze(-1)).squeeze(-1)
        for part, some in zip(x.split(_ROWS), ids.split(_ROWS), strict=True)
    ]
    return torch.cat(parts)


def rows_gradient(values: torch.Tensor, ids: torch.Tensor, x: torch.Tensor, rows: int) -> torch.Tensor:
    """The gradient of `weight` in `weighted_rows` for an output gradient `x`: `[rows, d]`.

    Row i is sum of values[n, k] * x[n] over all n, k with ids[n, k] = i.

    Args:
        values: `[n, K]`.
        ids: int64 `[n, K]`.
        x: `[n, d]`.
        rows: C.
    """
    order = ids.flatten().argsort()
    counts = torch.bincount(ids.flatten(), minlength=rows)
    starts = counts.cumsum(0) - counts
    positions = torch.div(order, ids.shape[1], rounding_mode="floor")
    weights = values.flatten()[order].to(x.dtype)
    return F.embedding_bag(positions, x, starts, per_sample_weights=weights, mode="sum")


_weights_gradient = torch.ops.aten._embedding_bag_per_sample_weights_backward.default
_ROWS = 256
"""Positions whose rows are gathered at once."""


class _WeightedRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(values, ids, weight)
        return F.embedding_bag(ids, weight, per_sample_weights=values, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, None, torch.Tensor | None]:
        values, ids, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        into_values = row_products(gradient, ids, weight) if ctx.needs_input_grad[0] else None
        into_weight = rows_gradient(values, ids, gradient, len(weight)) if ctx.needs_input_grad[2] else None
        return into_values, None, into_weight

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
    k = ids.shape[-1]
    flat_x, flat_ids = x.reshape(-1, x.shape[-1]).to(weight.dtype), ids.reshape(-1, k)
    parts = [
        torch.bmm(weight[some], part.unsqueeze(-1)).squeeze(-1)
        for part, some in zip(flat_x.split(_ROWS), flat_ids.split(_ROWS), strict=True)
    ]
    return torch.cat(parts).view(ids.shape) if parts else flat_x.new_zeros(ids.shape)


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

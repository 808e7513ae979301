"""Sums and products over a few rows of a big matrix: what a dense product with K non-zeros in C amounts to.

A position with K active concepts reads K rows of `[C, d]`, where the dense product reads all of them. The weight's
gradient is the transpose, a sum of positions for each row. torch's `embedding_bag` does both as fast as anything
tried here (docs/performance.md).
"""

import torch
import torch.nn.functional as F


def weighted_rows(values: torch.Tensor, ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """sum_k values[..., k] * weight[ids[..., k]]: `[..., d]` in the weight's dtype.

    Args:
        values: `[..., K]`.
        ids: rows, int64 `[..., K]`.
        weight: `[C, d]`.
    """
    k = ids.shape[-1]
    weights = values.reshape(-1, k).to(weight.dtype)
    flat = F.embedding_bag(ids.reshape(-1, k), weight, per_sample_weights=weights, mode="sum")
    return flat.view(*ids.shape[:-1], weight.shape[1])


def row_products(x: torch.Tensor, ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """<x, weight[ids[..., k]]> for each k: `[..., d]` and `[..., K]` -> `[..., K]`; no gradient."""
    k = ids.shape[-1]
    flat_x, flat_ids = x.reshape(-1, x.shape[-1]).to(weight.dtype), ids.reshape(-1, k)
    # It is what a weighted sum passes back to its weights; torch does that without gathering a copy of the rows.
    with torch.enable_grad():
        values = torch.zeros(flat_ids.shape, dtype=weight.dtype, device=weight.device, requires_grad=True)
        summed = F.embedding_bag(flat_ids, weight.detach(), per_sample_weights=values, mode="sum")
    return torch.autograd.grad(summed, values, flat_x.detach().contiguous())[0].view(ids.shape)


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

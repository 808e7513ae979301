"""Sparse products with a few rows of a large matrix, and an exact TopK over many columns.

- `weighted_rows`, `row_products` and `rows_gradient` replace a dense product with a vector that has K non-zeros out of
  C. A position with K active concepts reads K rows of `[C, d]`, where the dense product reads all C. The weight's
  gradient is the transpose: for each row a sum over positions. torch's `embedding_bag` does both as fast as anything
  measured here (docs/performance.md).
- `largest` is torch's `topk` with the same values, faster on a CPU: it compares the maxima of groups of columns before
  it ranks single elements.
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
    # This is the gradient of a weighted sum in its weights, which torch computes without gathering a copy of the rows.
    with torch.enable_grad():
        values = torch.zeros(flat_ids.shape, dtype=weight.dtype, device=weight.device, requires_grad=True)
        summed = F.embedding_bag(flat_ids, weight.detach(), per_sample_weights=values, mode="sum")
    return torch.autograd.grad(summed, values, flat_x.detach().contiguous())[0].view(ids.shape)


def rows_gradient(values: torch.Tensor, ids: torch.Tensor, x: torch.Tensor, rows: int) -> torch.Tensor:
    """Gradient of `weight` in `weighted_rows` for an output gradient `x`: `[rows, d]`.

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


def largest(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`scores.topk(k)` over the last dimension: the same values in the same order, differentiable.

    On a CPU ranking C scores costs far more than reading them. The columns are divided into groups. Each of the k
    largest scores is in one of the k groups with the largest maxima, so only the members of those groups are ranked.
    Among equal scores another column than torch's may be returned.

    Args:
        scores: `[..., C]`.
        k: 1 to C.

    Returns:
        values `[..., k]`, descending, and their columns, int64 `[..., k]`.
    """
    size = _group_size(scores.shape[-1], k)
    if scores.device.type != "cpu" or size < 2 or scores.numel() == 0:
        values, ids = scores.topk(k, dim=-1)
        return values, ids
    with torch.no_grad():
        ids = _largest_ids(scores.detach().reshape(-1, scores.shape[-1]), k, size).view(*scores.shape[:-1], k)
    return scores.gather(-1, ids), ids


def _group_size(columns: int, k: int) -> int:
    """Columns per group; below 2 grouping gains nothing.

    torch uses one partial sort as long as there are at least 64 k candidates, and a slower method below that. So there
    must be at least that many groups.
    """
    return columns // (64 * k)


def _largest_ids(scores: torch.Tensor, k: int, size: int) -> torch.Tensor:
    rows, columns = scores.shape
    groups = columns // size
    # Group g holds columns g, g + groups, g + 2 groups, ...: the maxima are then taken over contiguous memory.
    maxima = scores[:, : groups * size].view(rows, size, groups).amax(1)
    chosen = maxima.topk(k, dim=-1, sorted=False).indices
    members = chosen.unsqueeze(-1) + torch.arange(size, device=scores.device) * groups
    candidates = members.flatten(1)
    if groups * size < columns:
        rest = torch.arange(groups * size, columns, device=scores.device).expand(rows, -1)
        candidates = torch.cat((candidates, rest), dim=1)
    best = scores.gather(1, candidates).topk(k, dim=-1).indices
    return candidates.gather(1, best)

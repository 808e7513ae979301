"""Products with a matrix of very many rows, at the speed of ordinary ones."""

import torch

_TILE = 1024
"""Columns of the output made at a time. MKL's float32 product reaches two thirds of its peak on 50,000 columns."""


def scores_into(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Write weight x + bias into `out` `[n, V]` and return it; no gradient.

    Args:
        x: `[n, d]`.
        weight: `[V, d]`.
        bias: `[V]`, or None.
    """
    in_tiles = x.device.type == "cpu" and x.dtype == torch.float32
    tile = _TILE if in_tiles else len(weight)
    for first in range(0, len(weight), tile):
        columns = slice(first, first + tile)
        if bias is None:
            torch.mm(x, weight[columns].T, out=out[:, columns])
        else:
            torch.addmm(bias[columns], x, weight[columns].T, out=out[:, columns])
    return out

"""Linear layers over a handful of rows, as in generation, on a CPU.

There the weights are read once and hardly used, so the memory's speed is the limit. BLAS reaches it for W x^T with two
columns or more, and stays several times below it for x W^T and for a single column (docs/performance.md). The sums
are the same up to their order.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import nn

# Functions that a compiled model calls between its graphs.

Given = ParamSpec("Given")
Made = TypeVar("Made")


def outside_graphs(function: Callable[Given, Made]) -> Callable[Given, Made]:
    """`function`, never traced by torch.compile: its loops, buffers and own backward pass are not for tracing."""
    disable: Any = torch.compiler.disable
    return cast(Callable[Given, Made], disable(function))


MOST_ROWS, MOST_ROWS_WIDE, WIDE = 4, 8, 8192
"""Beyond so many rows x W^T is as fast; beyond a few more where W has at least `WIDE` rows."""


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`F.linear`: `[..., d]`, `[out, d]` and `[out]` -> `[..., out]`, differentiable."""
    rows = x.numel() // x.shape[-1] if x.numel() else 0
    if not 0 < rows <= (MOST_ROWS_WIDE if len(weight) >= WIDE else MOST_ROWS) or not _suits(x, weight):
        return F.linear(x, weight, bias)
    flat = x.reshape(rows, -1)
    # A single column would be a matrix-vector product, and columns that are no transpose another slow way.
    columns = (flat.repeat(2, 1) if rows == 1 else flat).T
    out = weight @ columns if bias is None else torch.addmm(bias[:, None], weight, columns)
    return out[:, :rows].T.reshape(*x.shape[:-1], len(weight))


def _suits(x: torch.Tensor, weight: torch.Tensor) -> bool:
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or x.dtype != weight.dtype:
        return False
    return not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


class Linear(nn.Linear):
    """`nn.Linear` that is fast over a few rows, too."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self.weight, self.bias)


# Products with a matrix of very many rows, at the speed of ordinary ones.

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


_BLOCK = 4096
"""Rows of a narrow product made at a time: what is added from the cache needs no pages of its own."""


def add_product(into: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add left right to `into` `[V, d]` in place, which may be of a wider dtype; no gradient.

    Args:
        left: `[V, n]`.
        right: `[n, d]`, of the dtype of `left`.
    """
    if into.dtype == left.dtype:
        into.addmm_(left, right)
        return
    for first in range(0, len(left), _BLOCK):
        into[first : first + _BLOCK] += left[first : first + _BLOCK] @ right

"""Matrix products in shapes where BLAS is slow on a CPU; elsewhere they are torch's own.

- `linear`, for a few rows, as in generation. Memory bandwidth is the limit there. BLAS reaches it for W x^T with two
  columns or more, and stays several times below it for x W^T and for a single column (docs/performance.md).
- `scores_into` and `add_product`, for a weight matrix of very many rows: MKL is fastest if the product is computed in
  tiles.

Sums may be taken in another order than torch's; results are equal up to rounding.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import torch
import torch.nn.functional as F

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def outside_graphs(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Exclude `function` from torch.compile's graphs: its loops, buffers and backward pass cannot be traced."""
    disable: Any = torch.compiler.disable
    return cast(Callable[Arguments, Result], disable(function))


MOST_ROWS, MOST_ROWS_WIDE, WIDE = 4, 8, 8192
"""Rows of x up to which W x^T is faster than x W^T; the second number holds where W has at least `WIDE` rows."""


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`F.linear`: `[..., d]`, `[out, d]` and `[out]` -> `[..., out]`, differentiable."""
    rows = _rows(x)
    if not 0 < rows <= (MOST_ROWS_WIDE if len(weight) >= WIDE else MOST_ROWS) or not _is_supported(x, weight):
        return F.linear(x, weight, bias)
    flat = x.reshape(rows, -1)
    # A single column would be a matrix-vector product, which is slow; so are columns that are not a transposed view.
    columns = (flat.repeat(2, 1) if rows == 1 else flat).T
    out = weight @ columns if bias is None else torch.addmm(bias[:, None], weight, columns)
    return out[:, :rows].T.reshape(*x.shape[:-1], len(weight))


def few_rows(x: torch.Tensor) -> bool:
    """Whether `linear` may be faster than `F.linear` for `x` `[..., d]`, with some weight of its device and dtype."""
    return not torch.compiler.is_compiling() and x.device.type == "cpu" and 0 < _rows(x) <= MOST_ROWS_WIDE


def _rows(x: torch.Tensor) -> int:
    return x.numel() // x.shape[-1] if x.numel() else 0


def _is_supported(x: torch.Tensor, weight: torch.Tensor) -> bool:
    if x.device.type != "cpu" or x.device != weight.device:
        return False
    if x.dtype not in (torch.float32, torch.float64) or x.dtype != weight.dtype:
        return False
    return not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


_TILE = 1024
"""Columns of the output computed at a time: over 50,000 columns MKL's float32 product reaches only 2/3 of its peak."""


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
"""Rows of a low-precision product computed at a time, so that it is added from the cache and never held whole."""


def add_product(into: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add the product left right to `into` `[V, d]` in place; `into` may have a wider dtype; no gradient.

    Args:
        left: `[V, n]`.
        right: `[n, d]`, of the dtype of `left`.
    """
    if into.dtype == left.dtype:
        into.addmm_(left, right)
        return
    for first in range(0, len(left), _BLOCK):
        into[first : first + _BLOCK] += left[first : first + _BLOCK] @ right

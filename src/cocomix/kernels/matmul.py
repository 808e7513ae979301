"""Linear layers over a handful of rows, as in generation, on a CPU.

There the weights are read once and hardly used, so the memory's speed is the limit. BLAS reaches it for W x^T with two
columns or more, and stays several times below it for x W^T and for a single column (docs/performance.md). The sums
are the same up to their order.
"""

import torch
import torch.nn.functional as F
from torch import nn

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

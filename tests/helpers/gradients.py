"""A fast loss compared with its slow twin, gradient by gradient."""

from collections.abc import Sequence

import torch
from torch import nn


def check_gradients(
    module: nn.Module, slow: torch.Tensor, x: torch.Tensor, wanted: Sequence[torch.Tensor], *, least: float
) -> list[torch.Tensor]:
    """`module(x)` equals `slow`, and so do its gradients with respect to `wanted`; returns these, of `slow`.

    Args:
        least: every gradient has an entry larger than this, so that the comparison says something.
    """
    theirs = torch.autograd.grad(slow, wanted)
    fast = module(x)
    ours = torch.autograd.grad(fast, wanted)
    assert abs(fast - slow) <= 1e-12 * slow
    for a, b in zip(ours, theirs, strict=True):
        assert b.abs().max() > least and (a - b).abs().max() <= 1e-9 * b.abs().max()
    return list(theirs)

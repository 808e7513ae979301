"""The encoder and the choice of its K latents in one: pre-activations of all C never exist at once.

Positions are taken a chunk at a time through one buffer. Backward only the K chosen pre-activations of a position
have a gradient, so the encoder's is a sum over K rows a position and not a product over C.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from cocomix.kernels import weighted_rows
from cocomix.kernels.products import scores_into
from cocomix.kernels.rows import rows_gradient

CHUNK_BYTES = 1 << 24
"""Pre-activations held at a time."""


def encode_chosen(
    x: torch.Tensor,
    pre_bias: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    k: int,
    choose: Callable[[torch.Tensor, int], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The K pre-activations weight (x - pre_bias) + bias of each position that `choose` names.

    Args:
        x: `[n, d]`.
        pre_bias: `[d]`, or None for zeros.
        weight: `[C, d]`.
        bias: `[C]`.
        k: K.
        choose: from some positions' pre-activations `[rows, C]` and K to latents, int64 `[rows, K]`.

    Returns:
        pre-activations `[n, K]`, differentiable once, and their latents, int64 `[n, K]`.
    """
    return _EncodeChosen.apply(x, pre_bias, weight, bias, k, choose)  # pyright: ignore[reportReturnType]


def equal_chunks(n: int, most: int) -> Iterator[slice]:
    """Slices of equal length, at most `most`, that cover 0 to n; the last one may begin inside the one before.

    Libraries choose a product's kernel by its shape: a shorter last chunk would have other last bits.
    """
    number = -(-n // max(1, most))
    size = -(-n // max(1, number))
    for place in range(number):
        first = min(place * size, n - size)
        yield slice(first, first + size)


class _EncodeChosen(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        pre_bias: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor,
        k: int,
        choose: Callable[[torch.Tensor, int], torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        centred = x if pre_bias is None else x - pre_bias
        values = x.new_empty(len(x), k)
        ids = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
        buffer = x.new_empty(0, len(weight))
        for rows in equal_chunks(len(x), CHUNK_BYTES // (weight.element_size() * len(weight))):
            if not len(buffer):
                buffer = x.new_empty(rows.stop - rows.start, len(weight))
            scores_into(buffer, centred[rows], weight, bias)
            ids[rows] = choose(buffer, k)
            values[rows] = buffer.gather(-1, ids[rows])
        ctx.save_for_backward(centred, weight, bias, ids)
        ctx.mark_non_differentiable(ids)
        return values, ids

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, _: None) -> tuple[torch.Tensor | None, ...]:
        centred, weight, bias, ids = ctx.saved_tensors
        for_x, for_pre_bias, for_weight, for_bias = ctx.needs_input_grad[:4]
        into_x = weighted_rows(gradient, ids, weight) if for_x else None
        into_bias = into_pre_bias = None
        if for_bias or for_pre_bias:
            into_bias = torch.zeros_like(bias).index_add_(0, ids.flatten(), gradient.flatten())
        if for_pre_bias:
            # One product with the sums over positions, not one a position.
            into_pre_bias = -(into_x.sum(0) if into_x is not None else into_bias @ weight)
        into_weight = rows_gradient(gradient, ids, centred, len(weight)) if for_weight else None
        return into_x, into_pre_bias, into_weight, into_bias if for_bias else None, None, None

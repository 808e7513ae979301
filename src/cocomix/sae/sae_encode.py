"""The encoder and the choice of its K latents in one: pre-activations of all C never exist at once.

Positions are taken a chunk at a time through one buffer. Backward only the K chosen pre-activations of a position
have a gradient, so the encoder's is a sum over K rows a position and not a product over C.

The product over C need only say which latents are worth a closer look. It may be taken in bfloat16 (`screen`): of the
2 K largest found there the pre-activations are then computed in full precision, and the K largest of these are kept.
bfloat16 is off by about 0.003 of a unit row's pre-activation's spread, and ranks K and 2 K are much further apart.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from cocomix.kernels.eager import outside_graphs
from cocomix.kernels.products import scores_into
from cocomix.kernels.sparse import row_products, rows_gradient, weighted_rows

CHUNK_BYTES = 1 << 25
"""Pre-activations held at a time."""
_CANDIDATES = 2
"""Latents looked at closely after screening, as a multiple of K."""


@outside_graphs
def encode_chosen(
    x: torch.Tensor,
    pre_bias: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    k: int,
    choose: Callable[[torch.Tensor, int], torch.Tensor],
    screen: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The K pre-activations weight (x - pre_bias) + bias of each position that `choose` names.

    Args:
        x: `[n, d]`; computed in the weight's dtype.
        pre_bias: `[d]`, or None for zeros.
        weight: `[C, d]`.
        bias: `[C]`.
        k: K.
        choose: from some positions' pre-activations `[rows, C]` and K to latents, int64 `[rows, K]`.
        screen: dtype of the product over C, where `choose` names the largest; None: that of `x`.

    Returns:
        pre-activations `[n, K]`, differentiable once, and their latents, int64 `[n, K]`.
    """
    x = x.to(weight.dtype)
    return _EncodeChosen.apply(x, pre_bias, weight, bias, k, choose, screen)  # pyright: ignore[reportReturnType]


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
        screen: torch.dtype | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        centred = x if pre_bias is None else x - pre_bias
        values = centred.new_empty(len(x), k)  # a double pre_bias makes float hidden states double
        ids = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
        screened = [one if screen is None else one.to(screen) for one in (centred, weight, bias)]
        buffer = screened[0].new_empty(0, len(weight))
        for rows in equal_chunks(len(x), CHUNK_BYTES // (buffer.element_size() * len(weight))):
            if not len(buffer):
                buffer = buffer.new_empty(rows.stop - rows.start, len(weight))
            pre = scores_into(buffer, screened[0][rows], screened[1], screened[2])
            if screen is None:
                ids[rows] = choose(pre, k)
                values[rows] = pre.gather(-1, ids[rows])
            else:
                candidates = choose(pre, min(_CANDIDATES * k, len(weight)))
                exact = row_products(centred[rows], candidates, weight) + bias[candidates]
                values[rows], places = exact.topk(k, dim=-1)
                ids[rows] = candidates.gather(-1, places)
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
        return into_x, into_pre_bias, into_weight, into_bias if for_bias else None, None, None, None

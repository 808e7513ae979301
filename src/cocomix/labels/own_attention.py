"""Attention in which a position sees others' keys and values before it, and its own at itself.

`plain` is the definition, with any mask. `fused` is for the causal one: it never holds `[seq, seq]` scores. Both are
differentiable in the query, the own key and the own value; the others' are constants.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_BLOCK = 64
"""Queries whose scores exist at once in the backward pass."""


def plain(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    others: tuple[torch.Tensor, torch.Tensor],
    scale: float,
    mask: torch.Tensor | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attention by its definition; everything `[batch, heads, seq, head_dim]`, any floating dtype.

    Args:
        others: keys and values seen at earlier positions.
        mask: True where a query may look, broadcasting to `[batch, heads, seq, seq]`; None: causal.
        softcap: the model's own, if any.
    """
    other_key, other_value = others
    seq = query.shape[-2]
    scores = query @ other_key.transpose(-1, -2) * scale
    diagonal = torch.eye(seq, dtype=torch.bool, device=query.device)
    own = (query * key).sum(-1) * scale
    scores = torch.where(diagonal, own.to(scores.dtype).unsqueeze(-1), scores)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is None:
        mask = torch.ones(seq, seq, dtype=torch.bool, device=query.device).tril()
    # A padded position sees nothing; a finite score keeps it from becoming NaN, and nobody looks at it.
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = F.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    # The product below gives the other's value at a position itself; replace it by its own.
    itself = weights.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    return weights @ other_value + itself * (value - other_value)


def can_fuse(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether `fused` knows such queries and values."""
    return (
        query.device.type == "cpu"
        and query.dtype in (torch.float64, torch.float32, torch.bfloat16)
        and query.shape == value.shape
        and query.shape[-2] > 1
    )


def fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    others: tuple[torch.Tensor, torch.Tensor],
    scale: float,
) -> torch.Tensor:
    """Causal `plain`, without its scores; differentiable once."""
    return _Fused.apply(query, key, value, *others, scale)  # pyright: ignore[reportReturnType]


class _Fused(torch.autograd.Function):
    """Query t + 1 over the others' keys 0 to t is square and causal: the library's own. The own score joins it after.

    With log-sum-exps a of the others' scores and s of the own one, the whole softmax is the two parts' shares
    exp(a - l) and exp(s - l), l = log(exp(a) + exp(s)).
    """

    @staticmethod
    def forward(ctx: Any, query, key, value, other_key, other_value, scale) -> torch.Tensor:
        own = _dot(query, key) * scale
        before, log_sum = _flash(
            query[:, :, 1:], other_key[:, :, :-1], other_value[:, :, :-1], 0.0, True, attn_mask=None, scale=scale
        )
        total = own.clone()
        torch.logaddexp(log_sum, own[:, :, 1:], out=total[:, :, 1:])
        own = torch.exp(own - total)
        out = own.unsqueeze(-1) * value
        out[:, :, 1:] += torch.exp(log_sum - total[:, :, 1:]).unsqueeze(-1) * before
        out = out.to(value.dtype)
        ctx.save_for_backward(query, key, value, other_key, other_value, out, total, own)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, other_key, other_value, out, total, own = ctx.saved_tensors
        mean = _dot(gradient, out)
        into_own = (own * (_dot(gradient, value) - mean) * ctx.scale).unsqueeze(-1)
        into_query = into_own * key
        for row in range(len(query)):  # a window at a time: its scores then fit into a cache
            _add_through_others(
                into_query[row], gradient[row], query[row], other_key[row], other_value[row], total[row], mean[row],
                ctx.scale,
            )  # fmt: skip
        into_value = own.unsqueeze(-1) * gradient
        into_key = into_own * query
        return into_query.to(query.dtype), into_key.to(key.dtype), into_value.to(value.dtype), None, None, None


def _add_through_others(
    into_query: torch.Tensor,
    gradient: torch.Tensor,
    query: torch.Tensor,
    other_key: torch.Tensor,
    other_value: torch.Tensor,
    total: torch.Tensor,
    mean: torch.Tensor,
    scale: float,
) -> None:
    """Add to `into_query` what comes through the others' keys, for one window, `[heads, seq, head_dim]`.

    The library's backward pass would do, given the whole log-sum-exp; but two of its five products go into gradients
    of keys and values that nobody wants.

    Args:
        total: the whole softmax's log-sum-exp, `[heads, seq]`.
        mean: <gradient, output>, `[heads, seq]`.
    """
    seq = query.shape[-2]
    unseen = torch.ones(_BLOCK, _BLOCK, dtype=torch.bool, device=query.device).triu()
    scaled = query * scale
    for first in range(0, seq, _BLOCK):
        rows, last = slice(first, first + _BLOCK), min(first + _BLOCK, seq)
        weights = _wide(torch.bmm(scaled[:, rows], other_key[:, :last].transpose(-1, -2)))
        weights[:, :, first:].masked_fill_(unseen[: last - first, : last - first], -torch.inf)
        weights.sub_(total[:, rows].unsqueeze(-1)).exp_()
        into_weights = _wide(torch.bmm(gradient[:, rows], other_value[:, :last].transpose(-1, -2)))
        into_scores = weights.mul_(into_weights.sub_(mean[:, rows].unsqueeze(-1))).mul_(scale)
        into_query[:, rows] += torch.bmm(into_scores.to(query.dtype), other_key[:, :last])


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _dot(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """<x, y> over the last dimension, in float32 or better."""
    return (_wide(x) * y).sum(-1)

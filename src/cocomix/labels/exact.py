"""Two streams through a Transformers model: every position patched, each as if it were the only one.

Stream A is the plain forward pass. Stream B starts from other hidden states at every position; in each attention
layer its query at t sees A's keys and values for s < t and its own at s = t. B's output at t is therefore what a
forward pass would give in which position t alone was replaced (positions after t cannot matter to it).

It is done by the library's own forward pass with an attention function of ours, so any model that uses
Transformers' attention interface works: rotary positions, grouped queries and masks come in as usual. Of stream A
only keys and values are wanted, so it ends as soon as the last block has them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, PreTrainedModel
from transformers.activations import AccurateGELUActivation, FastGELUActivation, NewGELUActivation
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from cocomix.model.teacher import in_autocast_dtype
from cocomix.utils.errors import CocomixError

# GELU in one operation where a concept model spells it out.
#
# GPT-2's activation in Transformers is eight operations over `[batch, seq, 4 d_model]`, each with a result to be kept:
# a tenth of a labelling pass. PyTorch has the same function as one.

SPELT_OUT = (NewGELUActivation, FastGELUActivation, AccurateGELUActivation)
"""Classes that compute x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) step by step."""


@contextmanager
def fused_gelu(model: nn.Module) -> Iterator[None]:
    """Within: the model's activations of a class in `SPELT_OUT` run as one operation, unless somebody wrapped them."""
    found = [one for one in model.modules() if type(one) in SPELT_OUT and "forward" not in one.__dict__]
    try:
        for one in found:
            one.forward = partial(F.gelu, approximate="tanh")
        yield
    finally:
        for one in found:
            del one.forward


# Attention in which a position sees others' keys and values before it, and its own at itself.
#
# `plain` is the definition, with any mask. `fused` is for the causal one: it never holds `[seq, seq]` scores. Both are
# differentiable in the query, the own key and the own value; the others' are constants.

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


NAME = "cocomix_two_stream"


class _Recorded(Exception):
    """Raised to end stream A's pass early."""


class Streams:
    """Keys and values of stream A by layer, and which stream is running.

    Args:
        model: the model whose passes they are.
        layers: how many blocks are run; each must go through our attention function.
    """

    def __init__(self, model: PreTrainedModel, layers: int) -> None:
        self.model, self.layers = model, layers
        self.plain: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.recording = True
        self.causal: list[torch.Tensor] = []
        """masks made for these passes that are causal and nothing else"""

    def record(self, run: Callable[[], Any]) -> None:
        """Run stream A, a forward pass; passes from here on are stream B.

        Raises:
            CocomixError: some blocks attend elsewhere, so that B could not be kept from seeing itself.
        """
        try:
            if self.layers:
                run()
        except _Recorded:
            pass
        if len(self.plain) < self.layers:
            raise CocomixError(
                f"{len(self.plain)} of {self.layers} upper blocks of {type(self.model).__name__} attend through"
                " Transformers' attention interface, which the exact rule needs of all; use the reference or"
                " activation rule, or another concept model"
            )
        self.recording = False

    def keep(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Stream A has come to `layer`; the pass ends here if that is the last one."""
        self.plain[layer] = (key, value)
        if len(self.plain) == self.layers:
            raise _Recorded


_streams: ContextVar[Streams | None] = ContextVar("cocomix_streams", default=None)


@contextmanager
def two_streams(model: PreTrainedModel, layers: int) -> Iterator[Streams]:
    """Within: `streams.record` runs stream A through `layers` blocks; passes after it are stream B."""
    before = model.config._attn_implementation
    streams = Streams(model, layers)
    token = _streams.set(streams)
    model.config._attn_implementation = NAME
    try:
        yield streams
    finally:
        model.config._attn_implementation = before
        _streams.reset(token)


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of the running stream; query `[batch, heads, seq, head_dim]` -> `[batch, seq, heads, head_dim]`."""
    streams = _streams.get()
    assert streams is not None
    if s_aux is not None:
        raise CocomixError(
            "the concept model's attention has sinks, which the exact rule does not know;"
            " use the reference rule or another concept model"
        )
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    layer: int = module.layer_idx  # pyright: ignore[reportAssignmentType]
    query, key, value = in_autocast_dtype(query), in_autocast_dtype(key), in_autocast_dtype(value)
    if streams.recording:
        streams.keep(layer, key, value)
    others = streams.plain[layer]  # stream A's own, while it runs
    causal = softcap is None and any(attention_mask is one for one in streams.causal)
    if causal and streams.recording:
        output = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    elif causal and can_fuse(query, value):
        output = fused(query, key, value, others, scale)
    else:
        output = plain(query, key, value, others, scale, attention_mask, softcap)
    return output.transpose(1, 2).contiguous(), None


def _mask(*arguments: Any, **options: Any) -> torch.Tensor:
    """A bool mask, True where a query may look; the running streams remember which are causal and nothing else.

    A mask for those, too: a model that attends in its own way (MPT) must come far enough to be refused by name.
    """
    if not options.pop("allow_is_causal_skip", True):
        return sdpa_mask(*arguments, **options, allow_is_causal_skip=False)  # pyright: ignore[reportReturnType]
    needed = sdpa_mask(*arguments, **options)
    if needed is not None:
        return needed
    causal = sdpa_mask(*arguments, **options, allow_is_causal_skip=False)
    assert causal is not None
    streams = _streams.get()
    if streams is not None:
        streams.causal.append(causal)
    return causal


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)

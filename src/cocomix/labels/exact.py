"""Two-stream forward pass of a Transformers model: all positions patched at once, each as if it were the only one.

Stream A is the plain forward pass. Stream B starts from patched hidden states at all positions. In each attention layer
its query at position t sees A's keys and values for s < t and B's own at s = t (exact attention). So B's output at t is
what a forward pass gives in which position t alone was patched; positions after t cannot change it.

Choices:
- The model's own forward pass runs with a custom attention function. Any model that uses Transformers' attention
  interface works, and rotary positions, grouped queries and masks come in as usual.
- Only keys and values of stream A are needed, so its pass ends when the last block has computed them.
- Stream B may run on the last positions alone (`can_run_tail`): no position of it is seen by another. Where windows
  overlap that is half of them.
- `exact_attention` is the definition, with any mask. `fused_exact_attention` is for the causal mask and never holds
  `[seq, seq]` scores. Both are differentiable in stream B's query, key and value; stream A's keys and values are
  constants.
- `fused_gelu` runs GPT-2's activation as one operation. Transformers computes it in eight operations over
  `[batch, seq, 4 d_model]`, each of which keeps its result; that is a tenth of a labelling pass.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, PreTrainedModel
from transformers.activations import AccurateGELUActivation, FastGELUActivation, NewGELUActivation
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from cocomix.model.teacher import blocks, hidden_at, in_autocast_dtype, model_inputs, resumed_at
from cocomix.model.text_config import text_shape
from cocomix.utils.errors import CocomixError

UNFUSED_GELUS = (NewGELUActivation, FastGELUActivation, AccurateGELUActivation)
"""Classes that compute x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) step by step."""


@contextmanager
def fused_gelu(model: nn.Module) -> Iterator[None]:
    """Context in which activations of a class in `UNFUSED_GELUS` run as one operation, unless they are wrapped."""
    activations = [
        module for module in model.modules() if type(module) in UNFUSED_GELUS and "forward" not in module.__dict__
    ]
    try:
        for activation in activations:
            activation.forward = partial(F.gelu, approximate="tanh")
        yield
    finally:
        for activation in activations:
            del activation.forward


_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_BLOCK = 64
"""Queries per block of scores in the backward pass."""


def exact_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plain_kv: tuple[torch.Tensor, torch.Tensor],
    scale: float,
    mask: torch.Tensor | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attention to stream A's keys and values at earlier positions, and to `key` and `value` at the query's own.

    All tensors are `[batch, heads, seq, head_dim]`, of any floating dtype.

    Args:
        plain_kv: keys and values of stream A; with more positions than the queries, these are the last ones.
        mask: True where a query may look, broadcasting to `[batch, heads, seq, seq]`; None: causal.
        softcap: softcap of the model's attention scores, if it has one.
    """
    plain_key, plain_value = plain_kv
    seq, before = query.shape[-2], plain_key.shape[-2] - query.shape[-2]
    scores = query @ plain_key.transpose(-1, -2) * scale
    earlier = torch.ones(seq, before + seq, dtype=torch.bool, device=query.device).tril(before)
    diagonal = earlier.triu(before)
    self_score = (query * key).sum(-1) * scale
    scores = torch.where(diagonal, self_score.to(scores.dtype).unsqueeze(-1), scores)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is None:
        mask = earlier
    # A padded query sees nothing. A finite score keeps its result from being NaN; the result is not used.
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = F.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    # The product below uses stream A's value at the diagonal; replace it by stream B's.
    self_weight = weights.diagonal(before, dim1=-2, dim2=-1).unsqueeze(-1)
    return weights @ plain_value + self_weight * (value - plain_value[..., before:, :])


def can_fuse(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether `fused_exact_attention` supports this device, dtype and shape."""
    return (
        query.device.type == "cpu"
        and query.dtype in (torch.float64, torch.float32, torch.bfloat16)
        and query.shape == value.shape
        and query.shape[-2] > 1
    )


def fused_exact_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plain_kv: tuple[torch.Tensor, torch.Tensor],
    scale: float,
) -> torch.Tensor:
    """Causal `exact_attention` without `[seq, seq]` scores; differentiable once."""
    return _FusedExactAttention.apply(query, key, value, *plain_kv, scale)  # pyright: ignore[reportReturnType]


class _FusedExactAttention(torch.autograd.Function):
    """Flash attention over stream A's keys, to which the score of the query's own position is added afterwards.

    Query t + 1 over stream A's keys 0 to t is square and causal, as flash attention needs it. With log-sum-exp a of
    these scores and the score s of the own position, the softmax over both has weights exp(a - l) and exp(s - l) for
    the two parts, where l = log(exp(a) + exp(s)).
    """

    @staticmethod
    def forward(ctx: Any, query, key, value, plain_key, plain_value, scale) -> torch.Tensor:
        self_score = _dot(query, key) * scale
        before = plain_key.shape[-2] - query.shape[-2]
        plain_output, log_sum = _flash(
            query[:, :, 1:],
            plain_key[:, :, before:-1],
            plain_value[:, :, before:-1],
            0.0,
            True,
            attn_mask=None,
            scale=scale,
        )
        total = self_score.clone()
        torch.logaddexp(log_sum, self_score[:, :, 1:], out=total[:, :, 1:])
        if before:  # what is earlier than all queries is another, unmasked part of the same softmax
            earlier_output, earlier_sum = _flash(
                query, plain_key[:, :, :before], plain_value[:, :, :before], 0.0, False, attn_mask=None, scale=scale
            )
            total = torch.logaddexp(total, earlier_sum)
        self_weight = torch.exp(self_score - total)
        out = self_weight.unsqueeze(-1) * value
        out[:, :, 1:] += torch.exp(log_sum - total[:, :, 1:]).unsqueeze(-1) * plain_output
        if before:
            out += torch.exp(earlier_sum - total).unsqueeze(-1) * earlier_output
        out = out.to(value.dtype)
        ctx.save_for_backward(query, key, value, plain_key, plain_value, out, total, self_weight)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, plain_key, plain_value, out, total, self_weight = ctx.saved_tensors
        mean = _dot(gradient, out)
        grad_score = (self_weight * (_dot(gradient, value) - mean) * ctx.scale).unsqueeze(-1)
        grad_query = grad_score * key
        for row in range(len(query)):  # one window at a time, so that its scores fit into the cache
            _add_plain_query_gradient(
                grad_query[row], gradient[row], query[row], plain_key[row], plain_value[row], total[row], mean[row],
                ctx.scale,
            )  # fmt: skip
        grad_value = self_weight.unsqueeze(-1) * gradient
        grad_key = grad_score * query
        return grad_query.to(query.dtype), grad_key.to(key.dtype), grad_value.to(value.dtype), None, None, None


def _add_plain_query_gradient(
    grad_query: torch.Tensor,
    gradient: torch.Tensor,
    query: torch.Tensor,
    plain_key: torch.Tensor,
    plain_value: torch.Tensor,
    total: torch.Tensor,
    mean: torch.Tensor,
    scale: float,
) -> None:
    """Add to `grad_query` the gradient through stream A's keys, for one window, `[heads, seq, head_dim]`.

    Flash attention's backward pass would give the same from the log-sum-exp of all scores, but two of its five products
    compute gradients of keys and values, which are not needed.

    Args:
        total: log-sum-exp of all scores, `[heads, seq]`.
        mean: <gradient, output>, `[heads, seq]`.
    """
    seq, before = query.shape[-2], plain_key.shape[-2] - query.shape[-2]
    unseen = torch.ones(_BLOCK, _BLOCK, dtype=torch.bool, device=query.device).triu()
    scaled = query * scale
    for first in range(0, seq, _BLOCK):
        rows, last = slice(first, first + _BLOCK), before + min(first + _BLOCK, seq)
        weights = _wide(torch.bmm(scaled[:, rows], plain_key[:, :last].transpose(-1, -2)))
        size = last - before - first
        weights[:, :, before + first :].masked_fill_(unseen[:size, :size], -torch.inf)
        weights.sub_(total[:, rows].unsqueeze(-1)).exp_()
        grad_weights = _wide(torch.bmm(gradient[:, rows], plain_value[:, :last].transpose(-1, -2)))
        grad_scores = weights.mul_(grad_weights.sub_(mean[:, rows].unsqueeze(-1))).mul_(scale)
        grad_query[:, rows] += torch.bmm(grad_scores.to(query.dtype), plain_key[:, :last])


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _dot(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """<x, y> over the last dimension, in float32 or better."""
    return (_wide(x) * y).sum(-1)


NAME = "cocomix_two_stream"


class _Recorded(Exception):
    """Raised to end the pass of stream A early."""


class Streams:
    """State of a two-stream pass: stream A's keys and values by layer, and which stream is running.

    Args:
        model: the model that is run.
        layers: number of blocks that are run; each must call the attention function of this module.
    """

    def __init__(self, model: PreTrainedModel, layers: int) -> None:
        self.model, self.layers = model, layers
        self.plain_kv: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.recording = True
        self.causal: list[torch.Tensor] = []
        """masks of these passes that are purely causal"""
        self.all_causal = True
        """whether all masks of stream A were"""

    def record(self, run: Callable[[], Any]) -> None:
        """Run stream A by calling `run`, a forward pass; later passes are stream B.

        Raises:
            CocomixError: some blocks do not use the attention interface, so stream B would see itself there.
        """
        try:
            if self.layers:
                run()
        except _Recorded:
            pass
        if len(self.plain_kv) < self.layers:
            raise CocomixError(
                f"{len(self.plain_kv)} of {self.layers} upper blocks of {type(self.model).__name__} use Transformers'"
                " attention interface, and the exact rule needs all of them to; use the reference or activation rule,"
                " or another concept model"
            )
        self.recording = False

    def store(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store stream A's keys and values of `layer`; the pass ends here if it is the last layer."""
        self.plain_kv[layer] = (key, value)
        if len(self.plain_kv) == self.layers:
            raise _Recorded


_streams: ContextVar[Streams | None] = ContextVar("cocomix_streams", default=None)


@contextmanager
def two_streams(model: PreTrainedModel, layers: int) -> Iterator[Streams]:
    """Context in which `streams.record` runs stream A through `layers` blocks, and later passes are stream B."""
    streams = Streams(model, layers)
    # A multimodal model's text blocks have a configuration of their own. The private attribute, because the public one
    # would also set the implementation of parts that are not run.
    configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    previous = {key: config._attn_implementation_internal for key, config in configs.items() if _is_set(config)}
    token = _streams.set(streams)
    try:
        for key in previous:
            configs[key]._attn_implementation_internal = NAME  # pyright: ignore[reportAttributeAccessIssue]
        yield streams
    finally:
        for key, implementation in previous.items():
            configs[key]._attn_implementation_internal = implementation  # pyright: ignore[reportAttributeAccessIssue]
        _streams.reset(token)


def _is_set(config: Any) -> bool:
    return hasattr(config, "_attn_implementation_internal")


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
    """Attention function of both streams; query `[batch, heads, seq, head_dim]` -> `[batch, seq, heads, head_dim]`."""
    streams = _streams.get()
    assert streams is not None
    if s_aux is not None:
        raise CocomixError(
            "the concept model's attention has sinks, which the exact rule does not support;"
            " use the reference rule or another concept model"
        )
    if attention_mask is not None and attention_mask.dtype != torch.bool:
        raise CocomixError(
            f"{type(module).__name__} of the concept model adds a bias of its own to the attention scores, which the"
            " exact rule does not support; use the reference rule or another concept model"
        )
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise CocomixError(
            f"{type(module).__name__} of the concept model does not know the number of its block (layer_idx), which the"
            " exact rule needs; use the reference rule or another concept model"
        )
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    query, key, value = in_autocast_dtype(query), in_autocast_dtype(key), in_autocast_dtype(value)
    is_causal = any(attention_mask is mask for mask in streams.causal)
    if streams.recording:
        streams.all_causal &= is_causal
        streams.store(layer, key, value)
    if layer not in streams.plain_kv:  # while stream A runs, it has just been stored
        raise CocomixError(
            f"{type(module).__name__} of the concept model is not the only attention of its block, which the exact rule"
            " does not support; use the reference rule or another concept model"
        )
    plain_kv = streams.plain_kv[layer]
    causal = softcap is None and is_causal
    if causal and streams.recording:
        output = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    elif causal and can_fuse(query, value):
        output = fused_exact_attention(query, key, value, plain_kv, scale)
    else:
        tail = plain_kv[0].shape[-2] > query.shape[-2]  # only run where all masks are causal
        output = exact_attention(query, key, value, plain_kv, scale, None if tail else attention_mask, softcap)
    return output.transpose(1, 2).contiguous(), None


def _mask(*arguments: Any, **options: Any) -> torch.Tensor:
    """Mask function: bool, True where a query may look; purely causal masks are noted in the running streams.

    A purely causal mask is also returned and not left out: a model with its own attention code (MPT) needs it to get as
    far as the error that names it.
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


_checked: WeakKeyDictionary[PreTrainedModel, set[int]] = WeakKeyDictionary()
"""Layers of each model from which its blocks have been checked."""
_with_tail: WeakKeyDictionary[PreTrainedModel, set[int]] = WeakKeyDictionary()
"""Layers of each model from which stream B may run on the last positions alone."""
_TRIAL = 6
"""Tokens of a check."""


def tail_inputs(model: PreTrainedModel, input_ids: torch.Tensor, first: int) -> dict[str, Any]:
    """Keyword arguments of stream B's forward pass on the positions from `first` on."""
    seq = input_ids.shape[1]
    positions = torch.arange(first, seq, device=input_ids.device).expand(len(input_ids), -1)
    return model_inputs(model, input_ids[:, first:], None) | {"position_ids": positions}


def can_run_tail(model: PreTrainedModel, layer: int, streams: Streams) -> bool:
    """Whether stream B may run on the last positions alone, after stream A: `check_two_streams` found that this model's
    blocks above `layer` give the same then, and no mask hides earlier positions."""
    return streams.all_causal and layer in _with_tail.get(model, ())


@torch.no_grad()
def check_two_streams(model: PreTrainedModel, layer: int) -> None:
    """Refuse a model whose blocks above `layer` combine positions elsewhere than in the attention function.

    A state-space model or a convolution beside the attention (Falcon-H1) and attention that is called more than once a
    block (DiffLlama) would be computed without a word and wrong. Both passes over a few tokens are compared, once for
    each model and layer.

    Raises:
        CocomixError: two streams do not give what separate patched passes give.
    """
    if layer in _checked.setdefault(model, set()):
        return
    ids = torch.arange(1, _TRIAL + 1, device=model.device)[None] % text_shape(model.config).vocab_size
    inputs = model_inputs(model, ids, torch.ones_like(ids))
    rows = model_inputs(model, ids.expand(_TRIAL, -1), torch.ones_like(ids).expand(_TRIAL, -1))
    with torch.autocast(model.device.type, enabled=False):
        hidden = hidden_at(model, ids, layer)
        patched = hidden.roll(1, -1)
        place = torch.arange(_TRIAL, device=ids.device)
        separate = hidden.repeat(_TRIAL, 1, 1)
        separate[place, place] = patched[0]
        with resumed_at(model, layer, hidden):
            plain = model(**inputs).logits[0]
        with resumed_at(model, layer, separate):
            expected = model(**rows).logits[place, place]
        with two_streams(model, len(blocks(model)) - layer - 1) as streams:
            with resumed_at(model, layer, hidden):
                streams.record(lambda: model.base_model(**inputs))
            with resumed_at(model, layer, patched):
                actual = model(**inputs).logits[0]
            if _tail_agrees(model, layer, ids, patched, actual):
                _with_tail.setdefault(model, set()).add(layer)
    error, effect = (actual - expected).abs().max(), (expected - plain).abs().max()
    if not error <= (0.02 if model.dtype.itemsize >= 4 else 0.25) * effect:
        raise CocomixError(
            f"the blocks of {type(model).__name__} combine positions elsewhere than in Transformers' attention"
            " interface, so the exact rule would be wrong; use the reference or activation rule, or another concept"
            " model"
        )
    _checked[model].add(layer)


def _tail_agrees(
    model: PreTrainedModel, layer: int, ids: torch.Tensor, patched: torch.Tensor, expected: torch.Tensor
) -> bool:
    """Whether stream B on the last half of positions gives the logits that it gives there on all."""
    first = _TRIAL // 2
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    try:
        with resumed_at(model, layer, patched[:, first:]):
            logits = model(**tail_inputs(model, ids, first)).logits[0]
    except Exception:  # a model of any family may fail in any way; stream B then runs on all positions
        return False
    tolerance = 1e-4 if model.dtype.itemsize >= 4 else 0.02
    return bool((logits - expected[first:]).abs().max() <= tolerance * expected.std())


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)

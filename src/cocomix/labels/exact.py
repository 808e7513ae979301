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
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from cocomix.labels.own_attention import can_fuse, fused, plain
from cocomix.model.teacher import in_autocast_dtype
from cocomix.utils.errors import CocomixError

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

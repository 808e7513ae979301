"""Two streams through a Transformers model: every position patched, each as if it were the only one.

Stream A is the plain forward pass. Stream B starts from other hidden states at every position; in each attention
layer its query at t sees A's keys and values for s < t and its own at s = t. B's output at t is therefore what a
forward pass would give in which position t alone was replaced (positions after t cannot matter to it).

It is done by the library's own forward pass with an attention function of ours, so any model that uses
Transformers' attention interface works: rotary positions, grouped queries and masks come in as usual.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from cocomix.errors import CocomixError

NAME = "cocomix_two_stream"


class Streams:
    """Keys and values of stream A by layer, and which stream is running.

    Args:
        model: the model whose passes they are.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.plain: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.recording = True

    def play(self, layers: int) -> None:
        """Passes from here on are stream B.

        Args:
            layers: how many blocks stream A ran; each must have gone through our attention function.

        Raises:
            CocomixError: some did not, so that B could not be kept from seeing itself.
        """
        if len(self.plain) < layers:
            raise CocomixError(
                f"{len(self.plain)} of {layers} upper blocks of {type(self.model).__name__} attend through"
                " Transformers' attention interface, which the exact rule needs of all; use the reference or"
                " activation rule, or another concept model"
            )
        self.recording = False


_streams: ContextVar[Streams | None] = ContextVar("cocomix_streams", default=None)


@contextmanager
def two_streams(model: PreTrainedModel) -> Iterator[Streams]:
    """Within: the first forward pass is stream A; after `streams.play` passes are stream B."""
    before = model.config._attn_implementation
    streams = Streams(model)
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
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    layer: int = module.layer_idx  # pyright: ignore[reportAssignmentType]
    if streams.recording:
        streams.plain[layer] = (key, value)
    plain_key, plain_value = streams.plain[layer]
    scores = query @ plain_key.transpose(-1, -2) * scale
    if not streams.recording:
        own = (query * key).sum(-1) * scale
        diagonal = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
        scores = torch.where(diagonal, own.to(scores.dtype).unsqueeze(-1), scores)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    output = weights @ plain_value
    if not streams.recording:
        # The product above gave A's value at s = t; replace it by B's.
        itself = weights.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
        output = output + itself * (value - plain_value)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, eager_mask)

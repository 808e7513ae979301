"""The KV cache of a model whose upper blocks hold more than one slot a token."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from cocomix.utils.errors import ConfigError


class GrowingLayer(DynamicLayer):
    """Keys and values of one block in a buffer with room to spare, so that a step writes its own and copies no others.

    `keys` and `values` are views of what is filled. Whatever replaces them (beam search, cropping) is copied to a new
    buffer at the next update, and no view handed out before is ever written to.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._views: tuple[torch.Tensor, torch.Tensor] | None = None
        self._buffers: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append `[batch, heads, new, head_dim]`; all there is then, `[batch, heads, slots, head_dim]`."""
        if key_states.requires_grad or value_states.requires_grad:  # what a gradient needs must not be written over
            return super().update(key_states, value_states, *args, **kwargs)
        held = self.get_seq_length()
        filled = held + key_states.shape[-2]
        ours = self._views is not None and self.keys is self._views[0] and self.values is self._views[1]
        if not ours or filled > self._buffers[0].shape[-2]:
            self._make_room(key_states, value_states, held, filled)
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, held:filled] = new
        self._views = (self._buffers[0][:, :, :filled], self._buffers[1][:, :, :filled])
        self.keys, self.values = self._views
        return self._views

    def _make_room(self, key_states: torch.Tensor, value_states: torch.Tensor, held: int, filled: int) -> None:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        room = filled + max(filled // 2, _SPARE)
        buffers = []
        for new, before in ((key_states, self.keys), (value_states, self.values)):
            buffer = new.new_empty(*new.shape[:-2], room, new.shape[-1])
            if held:
                assert before is not None
                buffer[:, :, :held] = before
            buffers.append(buffer)
        self._buffers = buffers


_SPARE = 128
"""Slots of room a new buffer has at least."""


class SlotCache(DynamicCache):
    """A DynamicCache that counts in tokens: cropping to n tokens keeps n entries for each slot a token has.

    Args:
        slots: entries a token has in each block; the first block has one.
    """

    def __init__(self, slots: Sequence[int]) -> None:
        super().__init__()
        self.layer_class_to_replicate = GrowingLayer
        self.slots = tuple(slots)

    def crop(self, max_length: int) -> None:
        """Keep the first `max_length` tokens; a negative number drops that many from the end, and 0 none."""
        # A layer of newer Transformers versions refuses to be told what to keep; what to drop suits all of them.
        drop = max_length - self.get_seq_length() if max_length > 0 else max_length
        if drop < 0:
            for layer, slots in zip(self.layers, self.slots, strict=False):
                layer.crop(drop * slots)  # pyright: ignore[reportAttributeAccessIssue]


def slot_cache(given: Cache | None, slots: Sequence[int]) -> Cache:
    """`given` if it is in use already, else a new `SlotCache` in its place.

    Raises:
        ConfigError: a cache of fixed size, which has no room for the extra slots.
    """
    if given is not None and not isinstance(given, DynamicCache):
        raise ConfigError(
            f"a CoCoMix model cannot use a {type(given).__name__}, which has one slot a token;"
            " leave cache_implementation unset"
        )
    return given if given is not None and given.get_seq_length() else SlotCache(slots)

"""KV cache of a model whose upper blocks hold more than one slot per token."""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from cocomix.utils.errors import ConfigError


class GrowingLayer(DynamicLayer):
    """Keys and values of one block in a buffer with spare room, so that a step writes its own and copies no others.

    `keys` and `values` are views of the filled part. If something replaces them (beam search, cropping), they are
    copied to a new buffer at the next update. A view returned before is never written to.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._views: tuple[torch.Tensor, torch.Tensor] | None = None
        self._buffers: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append `[batch, heads, new, head_dim]` and return everything, `[batch, heads, slots, head_dim]`."""
        if key_states.requires_grad or value_states.requires_grad:  # autograd needs them unchanged
            return super().update(key_states, value_states, *args, **kwargs)
        held = self.get_seq_length()
        filled = held + key_states.shape[-2]
        in_buffers = self._views is not None and self.keys is self._views[0] and self.values is self._views[1]
        if not in_buffers or filled > self._buffers[0].shape[-2]:
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
        for new, previous in ((key_states, self.keys), (value_states, self.values)):
            buffer = new.new_empty(*new.shape[:-2], room, new.shape[-1])
            if held:
                assert previous is not None
                buffer[:, :, :held] = previous
            buffers.append(buffer)
        self._buffers = buffers


_SPARE = 128
"""Minimum number of spare slots in a new buffer."""


class SlotCache(DynamicCache):
    """A DynamicCache that counts tokens: cropping to n tokens keeps n entries for each slot of a token.

    Args:
        slots: entries per token in each block; the first block has one.
    """

    def __init__(self, slots: Sequence[int]) -> None:
        super().__init__()
        self.layer_class_to_replicate = GrowingLayer
        self.slots = tuple(slots)

    def crop(self, max_length: int) -> None:
        """Keep the first `max_length` tokens; a negative number drops that many from the end, and 0 none."""
        # Layers of newer Transformers versions only accept how many entries to drop, which older ones accept too.
        drop = max_length - self.get_seq_length() if max_length > 0 else max_length
        if drop < 0:
            for layer, slots in zip(self.layers, self.slots, strict=False):
                layer.crop(drop * slots)  # pyright: ignore[reportAttributeAccessIssue]


def slot_cache(cache: Cache | None, slots: Sequence[int]) -> Cache:
    """`cache`, made a `SlotCache` in place so that the caller's object is the one that is filled, or a new one.

    Raises:
        ConfigError: the cache has a fixed size, without room for the extra slots, or was filled by another model.
    """
    if cache is None:
        return SlotCache(slots)
    if isinstance(cache, SlotCache) and cache.slots == tuple(slots):
        return cache
    if type(cache) not in (DynamicCache, SlotCache):
        refuse_cache(type(cache).__name__)
    _become_slot_cache(cache, slots)
    return cache


def _become_slot_cache(cache: Cache, slots: Sequence[int]) -> None:
    tokens = cache.get_seq_length()
    lengths = [cache.get_seq_length(layer) for layer in range(len(cache.layers))]
    if tokens and lengths != [tokens * each for each in slots]:
        raise ConfigError(
            f"the cache of {tokens} tokens was not filled by a model of this shape; pass the cache that this model"
            " returned, or none"
        )
    cache.__class__ = SlotCache
    assert isinstance(cache, SlotCache)
    cache.slots = tuple(slots)
    if not cache.offloading:  # an offloaded layer must not keep a buffer
        cache.layer_class_to_replicate = GrowingLayer
        if not tokens:
            cache.layers = []


def refuse_cache(kind: str) -> NoReturn:
    """Refuse a cache of the class `kind`.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(
        f"a CoCoMix model cannot use a {kind}, which has one slot per token; leave cache_implementation unset, or use"
        " dynamic or offloaded"
    )

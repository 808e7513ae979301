"""The KV cache of a model whose upper blocks hold more than one slot a token."""

from collections.abc import Sequence

from transformers import Cache, DynamicCache

from cocomix.errors import ConfigError


class SlotCache(DynamicCache):
    """A DynamicCache that counts in tokens: cropping to n tokens keeps n entries for each slot a token has.

    Args:
        slots: entries a token has in each block; the first block has one.
    """

    def __init__(self, slots: Sequence[int]) -> None:
        super().__init__()
        self.slots = tuple(slots)

    def crop(self, max_length: int) -> None:
        """Keep the first `max_length` tokens; a negative number drops that many."""
        for index, layer in enumerate(self.layers):
            layer.crop(max_length * self.slots[index])  # pyright: ignore[reportAttributeAccessIssue]


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

"""The KV cache of a model whose upper blocks hold more than one slot a token."""

from transformers import Cache, DynamicCache

from cocomix.errors import ConfigError


class SlotCache(DynamicCache):
    """A DynamicCache that counts in tokens: cropping to n tokens keeps n * slots entries from block `first` on.

    Args:
        first: first block with `slots` slots a token; the ones below have one.
        slots: slots a token there.
    """

    def __init__(self, first: int, slots: int) -> None:
        super().__init__()
        self.first, self.slots = first, slots

    def crop(self, max_length: int) -> None:
        """Keep the first `max_length` tokens; a negative number drops that many."""
        for index, layer in enumerate(self.layers):
            layer.crop(max_length * (self.slots if index >= self.first else 1))  # pyright: ignore[reportAttributeAccessIssue]


def slot_cache(given: Cache | None, first: int, slots: int) -> Cache:
    """`given` if it is in use already, else a new `SlotCache` in its place.

    Raises:
        ConfigError: a cache of fixed size, which has no room for the extra slots.
    """
    if given is not None and not isinstance(given, DynamicCache):
        raise ConfigError(
            f"a CoCoMix model cannot use a {type(given).__name__}, which has one slot a token;"
            " leave cache_implementation unset"
        )
    return given if given is not None and given.get_seq_length() else SlotCache(first, slots)

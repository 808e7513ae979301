"""Running a stretch of blocks over a layout of slots; what a mixer writes the upper half of the forward pass with."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from transformers import Cache

from cocomix.model.masks import attend


class BlockRun:
    """Runs blocks, a few or all that are left at a time; masks, positions and the cache follow from the slots.

    Args:
        blocks: the stretch, e.g. those from concept_layer on.
        backbone: for its rotary tables.
        positions: of the new tokens, int64 `[batch or 1, new]`.
        padding: 1 for tokens, 0 for padding, `[batch, past + new]`; None: no padding.
        past: tokens in the cache.
        cache: keys and values to read and extend, or None.
        seen: gets what each block returned, if there is one.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        backbone: nn.Module,
        positions: torch.Tensor,
        padding: torch.Tensor | None,
        past: int,
        cache: Cache | None,
        seen: list[torch.Tensor] | None,
    ) -> None:
        self._blocks: Iterator[nn.Module] = iter(blocks)
        self._left, self._backbone = len(blocks), backbone
        self.positions, self.padding, self.past, self.cache, self._seen = positions, padding, past, cache, seen

    @property
    def plain(self) -> bool:
        """Whether all tokens are here and none is padding: then a layout needs no mask beyond causality."""
        return self.padding is None and self.cache is None

    def run(
        self,
        hidden: torch.Tensor,
        *,
        slots: int = 1,
        blocks: int | None = None,
        memory: torch.Tensor | None = None,
        present: torch.Tensor | None = None,
        asking: slice | None = None,
    ) -> torch.Tensor:
        """Run `blocks` more blocks, or all that are left, over `slots` slots a token.

        With `asking` only those slots are returned, and the last of the blocks carries on no others.

        Args:
            hidden: `[batch, new * slots, d_model]`.
            memory: `[batch, new, d_model]`, vectors that are only attended to, one behind each token.
            present: False for slots nobody sees, bool `[batch or 1, (past + new) * slots]`.
        """
        new = self.positions.shape[1]
        key_slots = slots if memory is None else 2 * slots
        layout = attend(
            self.padding, new, self.past, slots=slots, key_slots=key_slots, present=present, device=hidden.device
        )
        rotary = self._backbone.rotary(self.positions.repeat_interleave(slots, dim=1), hidden.dtype)  # pyright: ignore
        return self._through(blocks, hidden, layout, rotary, memory, asking)

    def run_compact(self, hidden: torch.Tensor, owners: torch.Tensor) -> torch.Tensor:
        """Run all blocks left over slots of which `owners` int64 `[slots]` names the tokens; only where `plain`."""
        layout = attend(None, len(owners), 0, slots=1, device=hidden.device)
        rotary = self._backbone.rotary(self.positions[:, owners], hidden.dtype)  # pyright: ignore
        return self._through(None, hidden, layout, rotary, None, None)

    def _through(self, blocks, hidden, layout, rotary, memory, asking):
        count = self._left if blocks is None else min(blocks, self._left)
        self._left -= count
        for place in range(count):
            given = {"layout": layout, "rotary": rotary, "cache": self.cache, "memory": memory}
            # Who watches every block's hidden states gets all slots of the last one, too.
            sparing = asking is not None and place == count - 1 and self._seen is None
            if sparing:
                given |= {"layout": layout.for_slots(asking, hidden.shape[1], hidden.device), "asking": asking}
            hidden = next(self._blocks)(hidden, **given)
            if self._seen is not None:
                self._seen.append(hidden)
        return hidden if asking is None or (count and self._seen is None) else hidden[:, asking]

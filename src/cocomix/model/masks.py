"""Causal layouts over one or more slots a token.

Slots are ordered token by token, so causality over slots is plain causality over positions `token * slots + slot`.
SDPA's own causal flag aligns queries and keys at the top left and is therefore used only where both have the
same length; cached steps of several queries need an explicit mask.
"""

from typing import NamedTuple

import torch


class Attend(NamedTuple):
    """What SDPA needs to know about who sees whom."""

    mask: torch.Tensor | None
    """bool `[batch or 1, 1, queries, keys]`, True where seen; None: no mask beyond `causal`"""
    causal: bool
    """whether SDPA's own causal flag is used"""

    def for_slots(self, asking: slice, slots: int, device: torch.device) -> "Attend":
        """The same layout where of `slots` slots only `asking` ask."""
        if self.causal:
            places = torch.arange(slots, device=device)
            return Attend((places[None, :] <= places[asking, None])[None, None], causal=False)
        return self if self.mask is None else Attend(self.mask[:, :, asking], causal=False)


def attend(
    padding: torch.Tensor | None,
    new: int,
    past: int,
    *,
    slots: int,
    device: torch.device,
    key_slots: int | None = None,
    present: torch.Tensor | None = None,
) -> Attend:
    """Layout for `new` tokens after `past` cached ones.

    Args:
        padding: 1 for tokens, 0 for padding, `[batch, past + new]`; None: no padding.
        slots: slots a token that ask.
        key_slots: slots a token that answer, if more of them do; a query sees all those of its own token.
        present: False for slots nobody may see, bool `[batch or 1, (past + new) * key_slots]`; None: all are there.
    """
    key_slots = key_slots or slots
    queries, keys = new * slots, (past + new) * key_slots
    if padding is None and present is None and slots == key_slots:
        if past == 0:
            return Attend(None, causal=True)
        if queries == 1:
            return Attend(None, causal=False)
    column = torch.arange(keys, device=device)[None, :]
    own = _last_seen(new, past, slots, key_slots, device)[:, None]
    mask = (column <= own)[None, None]
    hidden = None
    if padding is not None:
        hidden = padding.bool().repeat_interleave(key_slots, dim=1)
    if present is not None:
        hidden = present if hidden is None else hidden & present
    if hidden is not None:
        # A padded or absent query would see nothing and turn into NaN; let it see itself, nobody ever sees it.
        mask = (mask & hidden[:, None, None, :]) | (column == own)
    return Attend(mask, causal=False)


def _last_seen(new: int, past: int, slots: int, key_slots: int, device: torch.device) -> torch.Tensor:
    """The last key each query sees, int64 `[new * slots]`: its own slot, or the last one of its token."""
    if slots == key_slots:
        return torch.arange(past * slots, (past + new) * slots, device=device)
    return torch.arange(past + 1, past + new + 1, device=device) * key_slots - 1

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


def attend(padding: torch.Tensor | None, new: int, past: int, *, slots: int, device: torch.device) -> Attend:
    """Layout for `new` tokens after `past` cached ones, with `slots` slots each.

    Args:
        padding: 1 for tokens, 0 for padding, `[batch, past + new]`; None: no padding.
    """
    queries, keys = new * slots, (past + new) * slots
    if padding is None:
        if past == 0:
            return Attend(None, causal=True)
        if queries == 1:
            return Attend(None, causal=False)
    row = torch.arange(keys - queries, keys, device=device)[:, None]
    column = torch.arange(keys, device=device)[None, :]
    mask = (column <= row)[None, None]
    if padding is not None:
        seen = padding.bool().repeat_interleave(slots, dim=1)[:, None, None, :]
        # A padded query would see nothing and turn into NaN; let it see itself, nobody ever sees it.
        mask = (mask & seen) | (column == row)
    return Attend(mask, causal=False)

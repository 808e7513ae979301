"""From scores to labels: a position's top K_attr concepts, where it has that many with a positive score."""

from typing import NamedTuple

import torch

from cocomix.labels.attribution import ActiveAttribution
from cocomix.model.next_token import has_next_token
from cocomix.utils.errors import CocomixError


class ConceptLabels(NamedTuple):
    """Labels of each position, best first."""

    ids: torch.Tensor
    """concept indices, int64 `[batch, seq, k]`; meaningless where not valid"""
    scores: torch.Tensor
    """their scores, `[batch, seq, k]`"""
    valid: torch.Tensor
    """whether the position carries labels, bool `[batch, seq]`"""

    def targets(self) -> torch.Tensor:
        """`ids` with -100 where not valid, as `concept_labels` of the model's forward wants them."""
        return self.ids.masked_fill(~self.valid.unsqueeze(-1), -100)


def select_labels(scores: torch.Tensor, k: int, *, attention_mask: torch.Tensor | None = None) -> ConceptLabels:
    """Top `k` concepts of dense scores `[batch, seq, C]`.

    A position is valid where its k best scores are all positive and it has a next token: the last position,
    padding, and positions with too few usable concepts are not.
    """
    _check(k, scores.shape[-1])
    top = scores.topk(k, dim=-1)
    next_exists = has_next_token(torch.zeros(scores.shape[:2], dtype=torch.long, device=scores.device), attention_mask)
    return ConceptLabels(top.indices, top.values, (top.values > 0).all(-1) & next_exists)


def select_active(active: ActiveAttribution, k: int) -> ConceptLabels:
    """`select_labels` on the K active latents alone; the same labels wherever they are valid."""
    _check(k, active.scores.shape[-1])
    top = active.scores.topk(k, dim=-1)
    ids = active.ids.gather(-1, top.indices)
    return ConceptLabels(ids, top.values, (top.values > 0).all(-1) & active.valid)


def _check(k: int, available: int) -> None:
    if not 1 <= k <= available:
        raise CocomixError(f"k {k} labels cannot be chosen from {available} concepts; choose 1 to {available}")

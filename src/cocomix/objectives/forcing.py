"""Training windows in which other concepts than the predicted ones are mixed in, so that the upper blocks heed them.

Predictions say little that the hidden state they are made from does not say already, so that a model may learn to pass
over the vector, and to steer it then does nothing. Two kinds of windows give it a reason:

- Teacher forcing: labelled positions mix in their labels, which were chosen knowing the next token.
- Steered windows: one concept is amplified at every position, as a user does, in a window whose labels have it more
  often than usual. What follows is natural text that is about the concept, and that is what steering should bring. Of
  concept i with n_i of the window's n labels, and the share p_i of all labels, the excess n_i - n p_i says how much
  more; one is drawn with a probability that is proportional to it, of those that have OFTEN labels or more.

Both leave the concept loss as it is. Which windows these are is drawn anew in every step, from torch's generator, which
the trainer seeds by the step; windows without labels are never forced.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch

from cocomix.model.forced_concepts import concepts_forced

OFTEN = 4
"""Labels of a window that a concept it is steered toward has at least."""
WEAKEST, STRONGEST = 1.0, 8.0
"""Between these, evenly, strengths are drawn: multiples of the largest concept logit of the position."""


class Forcing(NamedTuple):
    """Shares of the windows of each kind; the rest mixes in what is predicted."""

    labels: float = 0.0
    """windows with teacher forcing"""
    steered: float = 0.0
    usual: torch.Tensor | None = None
    """p, share of each concept among the training labels, `[C]`; None: 0"""

    def applied(self, model: Any, labels: torch.Tensor) -> AbstractContextManager[None]:
        """Context for the forward pass of a batch with these labels, int64 `[batch, seq, k]`, negative for none."""
        if not self.labels + self.steered:
            return nullcontext()
        concepts, strength = self.draw(labels)
        return concepts_forced(model, concepts, strength)

    def draw(self, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Concepts to mix in, as `labels` but -1 where there are none, and their strengths, `[batch, 1, 1]`."""
        kind = torch.rand(len(labels), device=labels.device)
        strength = torch.empty(len(labels), 1, 1, device=labels.device).uniform_(WEAKEST, STRONGEST)
        place = torch.rand(len(labels), device=labels.device)
        concepts = labels.clamp_min(-1)
        usual = None if self.usual is None else self.usual.to(labels.device)
        for row, share in enumerate(kind.tolist()):
            if share < self.labels:
                strength[row] = 1
                continue
            concepts[row] = -1
            if share < self.labels + self.steered:
                found, counts = labels[row][labels[row] >= 0].unique(return_counts=True)
                excess = counts - (0 if usual is None else counts.sum() * usual[found])
                weights = torch.where(counts >= OFTEN, excess, 0).clamp_min(0).cumsum(0)
                if len(weights) and weights[-1] > 0:
                    concepts[row, :, 0] = found[torch.searchsorted(weights, place[row] * weights[-1], right=True)]
        return concepts, strength

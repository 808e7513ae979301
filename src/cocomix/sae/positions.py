"""Positions whose hidden states an autoencoder is not for: attention sinks and massive activations.

Published language models park attention on the first position of what they read: its hidden state is hundreds of times
as long as any other and says nothing of the text (Xiao et al. 2023, arXiv 2309.17453; Sun et al. 2024, arXiv
2402.17762). SmolLM2-135M has the norm 23,133 there after block 14 and 153 elsewhere. Unnormalised figures then measure
that one position, so that an untrained autoencoder explains half of the variance.

Choices:
- Positions count from the start of what attention reaches, because a sink is the first of it: the start of the window,
  or of each document in it for a teacher that reads windows document by document (`cocomix.model.documents`).
- A norm is compared with the median norm of the same text, without the first positions. So what is left out of a window
  does not depend on the other windows of its batch, nor that of a document on what else is in its window, as labels do
  not.
- What is left out trains no autoencoder, counts in no quality figure and gets no label; when reconstructions are
  spliced in, it keeps its hidden state.
"""

from typing import NamedTuple

import torch


class LeftOut(NamedTuple):
    """The rule by which positions are left out."""

    first: int = 0
    """number of positions at the start of each window, or document where the teacher reads document by document"""
    norm: float | None = None
    """also positions whose norm is more than this many times the median of that window or document; None: none"""

    def kept(
        self, hidden: torch.Tensor, padding: torch.Tensor | None = None, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Whether each position is kept, bool `[batch, seq]`, by its hidden states `[batch, seq, d_model]`.

        Args:
            padding: bool `[batch, seq]`, positions without text, whose norms count for nothing.
            positions: `document_positions` of the pass, int64 `[batch, seq]`; None: every window is one text.
        """
        if positions is not None:
            return self._kept_in_documents(hidden, padding, positions)
        kept = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        kept[:, : self.first] = False
        if self.norm is not None and hidden.shape[1] > self.first:
            norms = hidden.detach().float().norm(dim=-1)
            if padding is None:
                median = norms[:, self.first :].median(dim=1, keepdim=True).values
            else:
                median = norms.masked_fill(padding, torch.nan)[:, self.first :].nanmedian(dim=1, keepdim=True).values
            kept &= norms <= self.norm * median
        return kept

    def _kept_in_documents(
        self, hidden: torch.Tensor, padding: torch.Tensor | None, positions: torch.Tensor
    ) -> torch.Tensor:
        kept = positions >= self.first
        if self.norm is None:
            return kept
        norms = hidden.detach().float().norm(dim=-1)
        counted = kept if padding is None else kept & ~padding
        numbers = (positions == 0).flatten().cumsum(0) - 1  # every window begins with one
        # Norms that do not count stand behind the others of their document.
        values = norms.masked_fill(~counted, torch.inf).flatten()
        by_norm = values.argsort(stable=True)
        order = by_norm[numbers[by_norm].argsort(stable=True)]
        begins = (positions == 0).flatten().nonzero().squeeze(-1)
        counts = torch.zeros_like(begins).index_add_(0, numbers, counted.flatten().long())
        medians = values[order[begins + (counts - 1).clamp_min(0) // 2]]
        return kept & (norms <= self.norm * medians[numbers].view_as(norms)) & (counts > 0)[numbers].view_as(kept)

    def select(
        self, hidden: torch.Tensor, padding: torch.Tensor | None = None, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The hidden states kept, without padding, `[n, d_model]`, in the order of windows and positions."""
        if padding is not None:
            return hidden[self.kept(hidden, padding, positions) & ~padding]
        if self.norm is None and (positions is None or not self.first):
            return hidden[:, self.first :].flatten(0, 1)
        return hidden[self.kept(hidden, positions=positions)]

    def keep(self, hidden: torch.Tensor, replaced: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """`replaced` with the hidden states of what is left out put back, both `[batch, seq, d_model]`."""
        if self == NOTHING:
            return replaced
        return torch.where(self.kept(hidden, positions=positions).unsqueeze(-1), replaced, hidden)


NOTHING = LeftOut()
"""Every position is kept."""

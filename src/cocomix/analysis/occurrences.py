"""Where a teacher's autoencoder finds each concept in a text, and beside which tokens."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from cocomix.analysis.counts import PairCounts
from cocomix.analysis.strongest import StrongestPlaces
from cocomix.data.shards import TokenShards
from cocomix.evaluation.perplexity import window_subset
from cocomix.model.teacher import hidden_at
from cocomix.sae.sae import TopKSAE
from cocomix.utils.errors import CocomixError

BATCH = 16
"""Windows of a forward pass."""
ITSELF, NEXT = "token", "next"
"""What is counted: the token a concept is active at, and the one after it."""


class Occurrences:
    """What was seen of C concepts in windows of tokens.

    Attributes:
        halves: counts of `ITSELF` and `NEXT`, in even and in odd windows.
        windows, positions: seen so far.
    """

    def __init__(self, n_concepts: int, vocab_size: int, *, passages: int = 5) -> None:
        self.n_concepts, self.vocab_size = n_concepts, vocab_size
        kinds = (ITSELF, NEXT)
        self.halves = {kind: (PairCounts(n_concepts, vocab_size), PairCounts(n_concepts, vocab_size)) for kind in kinds}
        self.windows = self.positions = 0
        self._strongest = StrongestPlaces(passages)

    def add(self, windows: np.ndarray, ids: np.ndarray, concepts: np.ndarray, values: np.ndarray) -> None:
        """Take in some windows.

        Args:
            windows: their numbers in the shards, int64 `[windows]`.
            ids: tokens, int64 `[windows, seq]`.
            concepts: int64 `[windows, seq, K]`.
            values: activations `[windows, seq, K]`; one that is not positive is none.
        """
        k = concepts.shape[-1]
        active = values > 0
        odd = (self.windows + np.arange(len(ids))) % 2
        for half in (0, 1):
            mine = odd == half
            rows, on, tokens = concepts[mine], active[mine], ids[mine]
            self.halves[ITSELF][half].add(rows.reshape(-1, k), on.reshape(-1, k), tokens.ravel())
            before = rows[:, :-1].reshape(-1, k), on[:, :-1].reshape(-1, k)
            self.halves[NEXT][half].add(*before, tokens[:, 1:].ravel())
        self.windows += len(ids)
        self.positions += ids.size
        row, position, _ = np.nonzero(active)
        self._strongest.add(np.stack([concepts[active], windows[row], position]), values[active])

    def counts(self) -> np.ndarray:
        """Positions at which each concept is active in either half, int64 `[2, C]`."""
        return np.stack([half.concepts() for half in self.halves[ITSELF]])

    def strongest(self) -> tuple[np.ndarray, np.ndarray]:
        """The most active places of all concepts, at most one a window: int64 `[3, places]`, strengths `[places]`.

        The rows are concept, window and position; places are in order of concept, strongest first.
        """
        return self._strongest.found()


@torch.no_grad()
def observe(
    teacher: PreTrainedModel,
    sae: TopKSAE,
    shards: TokenShards,
    *,
    layer: int,
    seq_len: int,
    tokens: int,
    progress: Callable[..., Any] | None = None,
) -> Occurrences:
    """Encode about `tokens` tokens of `shards`, in evenly spread windows of `seq_len`.

    Args:
        layer: the teacher's block (0-based) after which the SAE reads.
        progress: called with the windows done, and how many there are.

    Raises:
        CocomixError: the shards hold fewer than two windows.
    """
    chosen = window_subset(shards.n_windows(seq_len), max(2, -(-tokens // seq_len)))
    if len(chosen) < 2:
        raise CocomixError(
            f"{shards.folder} has fewer tokens than two windows of {seq_len}, so no name could be checked; add text"
        )
    seen = Occurrences(sae.n_latents, shards.vocab_size)
    device = next(teacher.parameters()).device
    for start in range(0, len(chosen), BATCH):
        windows = chosen[start : start + BATCH]
        ids = shards.windows(windows, seq_len)
        latents = sae.encode(hidden_at(teacher, torch.from_numpy(ids).to(device), layer))
        seen.add(windows, ids, latents.ids.cpu().numpy(), latents.values.double().cpu().numpy())
        if progress is not None:
            progress(seen.windows, len(chosen), {})
    return seen

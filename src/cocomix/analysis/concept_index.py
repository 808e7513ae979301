"""Going through held-out text with a student, to see where it predicts each concept and whether that is true.

Only the K concepts a position mixes in are kept of it, so memory does not depend on the number of tokens; of the
C logits of a position no more exist at once than `LOGIT_BYTES` hold.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from cocomix.analysis.atlas_record import BINS, UNLABELLED, Atlas, AtlasKey
from cocomix.analysis.strongest import StrongestPlaces
from cocomix.data.shards import TokenShards
from cocomix.evaluation.perplexity import window_subset
from cocomix.labels.label_reader import LabelReader
from cocomix.model.predictors import ConceptChannel
from cocomix.utils.errors import CocomixError

TOKENS = 100_000
"""Tokens looked at."""
BATCH = 16
"""Windows whose labels are read at a time."""
PLACES = 16
"""Strongest places kept of each concept, at most one a window."""
LOGIT_BYTES = 1 << 26
"""Concept logits held at a time."""


class Tally:
    """What was seen so far of `n_concepts` concepts."""

    def __init__(self, n_concepts: int) -> None:
        self.n_concepts = n_concepts
        self.windows = self.positions = self.labelled = 0
        self.predicted, self.predicted_labelled, self.true, self.both = np.zeros((4, n_concepts), dtype=np.int64)
        self._histogram = np.zeros(n_concepts * BINS, dtype=np.int32)
        self._strongest = StrongestPlaces(PLACES, carried=1)

    def add(
        self,
        windows: np.ndarray,
        concepts: np.ndarray,
        logits: np.ndarray,
        strengths: np.ndarray,
        labels: np.ndarray | None = None,
    ) -> None:
        """Take in some windows, in ascending order.

        Wherever a concept's logit is the largest of all in magnitude its strength is 1, so logits decide between
        places of equal strength.

        Args:
            windows: their numbers in the shards, int64 `[windows]`.
            concepts: what is predicted, int64 `[windows, seq, K]`.
            logits: of these, `[windows, seq, K]`.
            strengths: of these, -1 to 1, `[windows, seq, K]`.
            labels: the teacher's, int64 `[windows, seq, K_attr]`, -100 where there are none; None: no labels at all.
        """
        shape = concepts.shape
        self.windows += len(windows)
        self.positions += shape[0] * shape[1]
        self.predicted += self._count(concepts)
        bin_of = np.clip(((strengths.astype(np.float64) + 1) * (BINS / 2)).astype(np.int64), 0, BINS - 1)
        bins, counts = np.unique(concepts * BINS + bin_of, return_counts=True)
        self._histogram[bins] += counts.astype(np.int32)
        truth = np.full(shape, UNLABELLED)
        if labels is not None:
            carries = (labels >= 0).all(-1)
            true = (concepts[..., None] == labels[:, :, None, :]).any(-1)
            truth[carries] = true[carries]
            self.labelled += int(carries.sum())
            self.predicted_labelled += self._count(concepts[carries])
            self.true += self._count(labels[carries])
            self.both += self._count(concepts[truth == 1])
        window = np.broadcast_to(windows[:, None, None], shape)
        position = np.broadcast_to(np.arange(shape[1])[:, None], shape)
        places = np.stack([one.ravel() for one in (concepts, window, position, truth)])
        self._strongest.add(places, strengths.ravel(), logits.ravel())

    def atlas(self, key: AtlasKey, truth: str | None) -> Atlas:
        """All of it; see `Atlas`."""
        places, strengths = self._strongest.found()
        return Atlas(
            key=key,
            truth=truth,
            windows=self.windows,
            positions=self.positions,
            labelled=self.labelled,
            predicted=self.predicted,
            predicted_labelled=self.predicted_labelled,
            true=self.true,
            both=self.both,
            histogram=self._histogram.reshape(-1, BINS),
            starts=np.searchsorted(places[0], np.arange(self.n_concepts + 1)),
            places=places[1:].T.astype(np.int32),
            strengths=strengths.astype(np.float32),
        )

    def _count(self, concepts: np.ndarray) -> np.ndarray:
        return np.bincount(concepts.ravel(), minlength=self.n_concepts)


def build(
    student: Any,
    shards: TokenShards,
    key: AtlasKey,
    *,
    labels: LabelReader | None = None,
    truth: str | None = None,
    progress: Callable[..., Any] | None = None,
) -> Atlas:
    """The atlas of `student` from about `key.tokens` tokens of `shards`, in evenly spread windows of `key.seq_len`.

    Args:
        student: one that predicts concepts, in evaluation mode.
        labels: the teacher's labels of the shards' windows.
        truth: what these are, in words.
        progress: called with the windows done, how many there are, and {}.

    Raises:
        CocomixError: a student without concepts, or shards that hold no whole window.
    """
    channel, seq_len = concept_channel(student), key.seq_len
    chosen = window_subset(shards.n_windows(seq_len), max(1, -(-key.tokens // seq_len)))
    if not len(chosen):
        raise CocomixError(
            f"{shards.folder} has fewer tokens than one window of {seq_len}, so no concept could be looked at; add text"
        )
    tally = Tally(channel.head.proj.out_features)
    at_once = windows_at_once(tally.n_concepts, seq_len)
    for start in range(0, len(chosen), BATCH):
        windows = chosen[start : start + BATCH]
        taught = None if labels is None else labels.read(windows, seq_len)
        ids = torch.from_numpy(shards.windows(windows, seq_len)).to(student.device)
        parts = [predictions(student, part) for part in ids.split(at_once)]
        concepts, logits, strengths = (np.concatenate(one) for one in zip(*parts, strict=True))
        tally.add(windows, concepts, logits, strengths, taught)
        if progress is not None:
            progress(tally.windows, len(chosen), {})
    return tally.atlas(key, None if labels is None else truth)


@torch.no_grad()
def predictions(student: Any, ids: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The K concepts that each position of `ids` `[batch, seq]` mixes in, their logits and strengths.

    A strength is the logit over the position's largest logit magnitude. All are `[batch, seq, K]`, the latter two
    float32. Nothing above concept_layer runs.
    """
    made = concept_channel(student).head(student.hidden_state(ids, top=False))
    assert made.logits is not None
    largest = torch.maximum(made.values.amax(-1), -made.logits.amin(-1))
    scale = largest.clamp_min(torch.finfo(largest.dtype).tiny).unsqueeze(-1)
    return made.ids.cpu().numpy(), made.values.float().cpu().numpy(), (made.values / scale).float().cpu().numpy()


def concept_channel(student: Any) -> ConceptChannel:
    """Where `student` predicts concepts.

    Raises:
        CocomixError: it predicts none.
    """
    channel = getattr(student, "channel", None)
    if not isinstance(channel, ConceptChannel):
        raise CocomixError("this student predicts no concepts; use one trained with the objective cocomix")
    return channel


def windows_at_once(n_concepts: int, seq_len: int) -> int:
    """Windows whose concept logits fit `LOGIT_BYTES`; at least one."""
    return max(1, LOGIT_BYTES // (4 * n_concepts * seq_len))

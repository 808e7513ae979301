"""Where a student predicts each concept in held-out text, whether that is true, and a searchable list of concepts.

`ConceptStatistics` is what is known of C concepts, in memory and in one safetensors file that says of which weights
and which text it is. `gather_statistics` makes it: only the K concepts that a position mixes in are kept of it, so
memory does not depend on the number of tokens, and of the C logits of a position no more exist at once than
`LOGIT_BYTES` hold. `ConceptIndex` puts names to the concepts; it is sorted and searched over all of them at once, so
that 32,768 answer while a user types.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cocomix.analysis.naming import ConceptName, Names
from cocomix.analysis.token_statistics import StrongestPlaces
from cocomix.data.shards import TokenShards
from cocomix.evaluation.perplexity import window_subset
from cocomix.labels.store import LabelReader
from cocomix.model.predictors import ConceptPredictor
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import write_bytes

BINS = 40
"""Bins of a strength's histogram."""
EDGES = np.arange(-BINS // 2, BINS // 2 + 1) / (BINS // 2)
"""Their edges; a bin holds its lower one, the last one both."""
UNLABELLED = -1
"""A place's `true` where the position carries no labels."""


class StatisticsKey(BaseModel):
    """What the statistics are of; with another key they are gathered again."""

    model_config = ConfigDict(frozen=True)
    format: Literal[1] = 1
    student: str = Field(description="checksum of its weights")
    shards: str = Field(description="fingerprint of the token shards")
    labels: str | None = Field(default=None, description="checksum of all that the labels depend on")
    seq_len: int
    tokens: int = Field(description="about how many were requested")


class _Metadata(BaseModel):
    """What the file holds beside the arrays."""

    key: StatisticsKey
    truth: str | None
    windows: int
    positions: int
    labelled: int


@dataclass(frozen=True)
class ConceptStatistics:
    """Counts and strongest places of C concepts in some windows of text.

    A concept is predicted where it is among the K mixed in.
    """

    key: StatisticsKey
    truth: str | None
    """what the labels are, e.g. "exact/absolute labels"; None: there are none"""
    windows: int
    positions: int
    """looked at"""
    labelled: int
    """of these, positions with labels"""
    predicted: np.ndarray
    """positions each concept is predicted at, int64 `[C]`"""
    predicted_labelled: np.ndarray
    """the same among labelled positions, int64 `[C]`"""
    true: np.ndarray
    """positions it is among the labels of, int64 `[C]`"""
    both: np.ndarray
    """positions with both, int64 `[C]`"""
    histogram: np.ndarray
    """its strengths where it is predicted, between `EDGES`, int32 `[C, BINS]`"""
    starts: np.ndarray
    """where each concept's places start and the last one's end, int64 `[C + 1]`"""
    places: np.ndarray
    """its strongest places: window, position, and whether it is a label there (1, 0, `UNLABELLED`), int32 `[n, 3]`"""
    strengths: np.ndarray
    """strengths there, falling within a concept, float32 `[n]`"""

    @property
    def n_concepts(self) -> int:
        """C."""
        return len(self.predicted)

    def places_of(self, concept: int, most: int) -> tuple[np.ndarray, np.ndarray]:
        """The `most` strongest places of `concept` at most, int64 `[n, 3]`, and their strengths, float32 `[n]`."""
        first = int(self.starts[concept])
        chosen = slice(first, min(first + most, int(self.starts[concept + 1])))
        return self.places[chosen].astype(np.int64), self.strengths[chosen]

    def precision(self) -> np.ndarray:
        """Share of labelled predictions that are true; NaN without any, float64 `[C]`."""
        return share(self.both, self.predicted_labelled)

    def recall(self) -> np.ndarray:
        """Share of true positions at which it is predicted; NaN without any, float64 `[C]`."""
        return share(self.both, self.true)


_SHAPES = {
    "predicted": (np.int64, ("C",)),
    "predicted_labelled": (np.int64, ("C",)),
    "true": (np.int64, ("C",)),
    "both": (np.int64, ("C",)),
    "histogram": (np.int32, ("C", BINS)),
    "starts": (np.int64, ("C + 1",)),
    "places": (np.int32, ("n", 3)),
    "strengths": (np.float32, ("n",)),
}


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part / whole`, NaN where `whole` is 0, float64."""
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def write_statistics(path: Path, statistics: ConceptStatistics) -> None:
    """Write `statistics` to the file `path`; folders are made."""
    metadata = _Metadata(**{name: getattr(statistics, name) for name in _Metadata.model_fields})
    arrays = {name: np.ascontiguousarray(getattr(statistics, name), dtype) for name, (dtype, _) in _SHAPES.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, save(arrays, metadata={"about": metadata.model_dump_json()}))


def read_statistics(path: Path, key: StatisticsKey) -> ConceptStatistics | None:
    """The statistics in the file `path`; None if they are missing, damaged or of another key, to be gathered again."""
    try:
        with safe_open(path, framework="numpy") as stored:
            metadata = _Metadata.model_validate_json((stored.metadata() or {})["about"])
            arrays = {name: stored.get_tensor(name) for name in _SHAPES}
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError):
        return None  # the last two are what safetensors raises for a type NumPy has not
    if metadata.key != key or not _fits(arrays):
        return None
    return ConceptStatistics(**{name: getattr(metadata, name) for name in _Metadata.model_fields}, **arrays)


def _fits(arrays: dict[str, np.ndarray]) -> bool:
    """Whether types and shapes are right, and the places end where they should."""
    n, n_concepts = arrays["strengths"].size, arrays["predicted"].size
    sizes = {"C": n_concepts, "C + 1": n_concepts + 1, "n": n}
    matching = all(
        arrays[name].dtype == dtype and arrays[name].shape == tuple(sizes.get(size, size) for size in shape)
        for name, (dtype, shape) in _SHAPES.items()
    )
    return matching and bool((np.diff(arrays["starts"], prepend=0) >= 0).all()) and int(arrays["starts"][-1]) == n


TOKENS = 100_000
"""Tokens looked at."""
BATCH = 16
"""Windows whose labels are read at a time."""
PLACES = 16
"""Strongest places kept of each concept, at most one a window."""
LOGIT_BYTES = 1 << 26
"""Concept logits held at a time."""


class StatisticsCounter:
    """Counts what is seen of `n_concepts` concepts, windows at a time."""

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
        """Count some windows, given in ascending order.

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
        places = np.stack([array.ravel() for array in (concepts, window, position, truth)])
        self._strongest.add(places, strengths.ravel(), logits.ravel())

    def statistics(self, key: StatisticsKey, truth: str | None) -> ConceptStatistics:
        """All that was counted."""
        places, strengths = self._strongest.found()
        return ConceptStatistics(
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


def gather_statistics(
    student: Any,
    shards: TokenShards,
    key: StatisticsKey,
    *,
    labels: LabelReader | None = None,
    truth: str | None = None,
    progress: Callable[..., Any] | None = None,
) -> ConceptStatistics:
    """Statistics of `student` from about `key.tokens` tokens of `shards`, in evenly spread windows of `key.seq_len`.

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
    counter = StatisticsCounter(channel.head.num_concepts)
    at_once = windows_at_once(counter.n_concepts, seq_len)
    for start in range(0, len(chosen), BATCH):
        windows = chosen[start : start + BATCH]
        true_concepts = None if labels is None else labels.read(windows, seq_len)
        ids = torch.from_numpy(shards.windows(windows, seq_len)).to(student.device)
        batches = [predictions(student, batch) for batch in ids.split(at_once)]
        concepts, logits, strengths = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
        counter.add(windows, concepts, logits, strengths, true_concepts)
        if progress is not None:
            progress(counter.windows, len(chosen), {})
    return counter.statistics(key, None if labels is None else truth)


@torch.no_grad()
def predictions(student: Any, ids: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The K concepts that each position of `ids` `[batch, seq]` mixes in, their logits and strengths.

    A strength is the logit over the position's largest logit magnitude. All are `[batch, seq, K]`, the latter two
    float32. Nothing above concept_layer runs.
    """
    prediction = concept_channel(student).head(student.hidden_state(ids, top=False))
    assert prediction.logits is not None
    largest = torch.maximum(prediction.values.amax(-1), -prediction.logits.amin(-1))
    scale = largest.clamp_min(torch.finfo(largest.dtype).tiny).unsqueeze(-1)
    strengths = prediction.values / scale
    return prediction.ids.cpu().numpy(), prediction.values.float().cpu().numpy(), strengths.float().cpu().numpy()


def concept_channel(student: Any) -> ConceptPredictor:
    """The module of `student` that predicts concepts.

    Raises:
        CocomixError: it predicts none.
    """
    channel = getattr(student, "channel", None)
    if not isinstance(channel, ConceptPredictor):
        raise CocomixError("this student predicts no concepts; use one trained with the objective cocomix")
    return channel


def windows_at_once(n_concepts: int, seq_len: int) -> int:
    """Windows whose concept logits fit `LOGIT_BYTES`; at least one."""
    return max(1, LOGIT_BYTES // (4 * n_concepts * seq_len))


_NUMBER = re.compile(r"c?(\d+)")


class ConceptRow(BaseModel):
    """One concept of the list."""

    concept: int
    name: str | None
    edited: bool
    stability: float | None = Field(description="do two halves of the text name it alike, 0 to 1")
    predicted: float = Field(description="share of positions it is predicted at")
    true: float | None = Field(description="share of labelled positions it is true at; null without labels")
    precision: float | None
    recall: float | None


class Listing(BaseModel):
    """A page of the concepts that were requested."""

    total: int = Field(description="how many there are")
    concepts: list[ConceptRow]


class ConceptIndex:
    """All concepts of a student under their names, ready to be listed."""

    def __init__(self, statistics: ConceptStatistics, names: Names) -> None:
        known = [names.of(concept) for concept in range(statistics.n_concepts)]
        self._names = [name.name for name in known]
        self._edited = [name.edited for name in known]
        self._stability = np.array([np.nan if name.stability is None else name.stability for name in known])
        self._tokens = [_tokens(name) for name in known]
        self._predicted = statistics.predicted / max(1, statistics.positions)
        self._true = share(statistics.true, np.full(statistics.n_concepts, statistics.labelled))
        self._precision, self._recall = statistics.precision(), statistics.recall()
        self._in_order: dict[str, np.ndarray] = {}

    def rename(self, name: ConceptName) -> None:
        """Use another name of a concept from now on."""
        self._names[name.concept], self._edited[name.concept] = name.name, name.edited
        self._in_order.pop("name", None)

    def listing(self, *, q: str = "", sort: str = "predicted", offset: int = 0, limit: int = 50) -> Listing:
        """Concepts `offset` to `offset + limit` of those that `q` finds.

        Args:
            q: a concept's number, as 12 or c12, which then comes first; or part of a name or of a distinguishing
                token, in either case; empty finds all.
            sort: a key of `SORTS`. What a concept does not have stands last; equal ones are in order of number.

        Raises:
            CocomixError: no such order.
        """
        if sort not in SORTS:
            raise CocomixError(f"concepts cannot be sorted by {sort!r}; choose one of {', '.join(SORTS)}")
        if sort not in self._in_order:
            self._in_order[sort] = SORTS[sort](self)
        order = self._in_order[sort]
        query = q.strip().casefold()
        if query:
            order = order[self._matches(query)[order]]
            number = _NUMBER.fullmatch(query)
            if number and int(number[1]) < len(self._names):
                order = np.concatenate(([int(number[1])], order[order != int(number[1])]))
        return Listing(
            total=len(order), concepts=[self._row(concept) for concept in order[offset : offset + limit].tolist()]
        )

    def _matches(self, query: str) -> np.ndarray:
        pairs = zip(self._names, self._tokens, strict=True)
        return np.array(
            [query in tokens or (name is not None and query in name.casefold()) for name, tokens in pairs], dtype=bool
        )

    def _row(self, concept: int) -> ConceptRow:
        return ConceptRow(
            concept=concept,
            name=self._names[concept],
            edited=self._edited[concept],
            stability=_or_none(self._stability[concept]),
            predicted=float(self._predicted[concept]),
            true=_or_none(self._true[concept]),
            precision=_or_none(self._precision[concept]),
            recall=_or_none(self._recall[concept]),
        )

    def _falling(self, of: str) -> np.ndarray:
        return np.argsort(-getattr(self, f"_{of}"), kind="stable")

    def _by_name(self) -> np.ndarray:
        names = [(name is None, (name or "").casefold()) for name in self._names]
        return np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64)


SORTS: dict[str, Callable[[ConceptIndex], np.ndarray]] = {
    "predicted": lambda index: index._falling("predicted"),
    "true": lambda index: index._falling("true"),
    "recall": lambda index: index._falling("recall"),
    "precision": lambda index: index._falling("precision"),
    "stability": lambda index: index._falling("stability"),
    "number": lambda index: np.arange(len(index._names)),
    "name": ConceptIndex._by_name,
}
"""Orders of all concepts, int64 `[C]`; each is computed once."""


def _tokens(name: ConceptName) -> str:
    """All distinguishing tokens, a line each, as they are searched."""
    return "\n".join(score.token for score in [*name.tokens, *name.next_tokens]).casefold()


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)

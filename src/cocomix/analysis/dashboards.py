"""Dashboards: where a student predicts a concept, when that is true, and what the concept does to the next token.

What it does is said twice. From the weights: the vector that one concept of weight 1 becomes goes through the mixer,
the final norm and the LM head with no block between (`direct_effect`). That is the direct path only, as in a logit
lens: what the upper blocks make of the vector, and what they read in it to move elsewhere, is not in it. A mixer whose
vectors are only attended to (`keys_values`, `every`) has no direct path; a gate stands as it does at a hidden state of
zero. Measured: the change of the log-probabilities at the concept's strongest places between the student as it is and
with the concept kept out at every position (`cocomix.analysis.inspect.ablated`), where the next largest one takes its
place (`measured_effect`). All paths are in it, and nothing but those places.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field

from cocomix.analysis.concept_index import EDGES, PLACES, ConceptStatistics, concept_channel, windows_at_once
from cocomix.analysis.inspect import ablated
from cocomix.analysis.naming import ConceptName, Names, around
from cocomix.data.shards import TokenShards
from cocomix.model.predictors import ConceptPrediction
from cocomix.model.transformer import BlockRunner
from cocomix.utils.errors import CocomixError


def mixes(student: Any) -> bool:
    """Whether the student mixes its concepts in at all."""
    return concept_channel(student).vector is not None


@torch.no_grad()
def concept_vectors(student: Any, concepts: np.ndarray) -> torch.Tensor:
    """What each of `concepts` int64 `[n]` adds to the mixer's vector at weight 1, `[n, d_model]`."""
    channel = concept_channel(student)
    make = channel.vector
    assert make is not None, "the student mixes its concepts in"
    ids = torch.from_numpy(concepts).to(student.device)[:, None, None]
    unit = torch.ones(len(concepts), 1, 1, dtype=student.dtype, device=student.device)
    centre = torch.zeros_like(channel.head.pre_bias)

    def vector(weight: float) -> torch.Tensor:
        return make(ConceptPrediction(None, weight * unit, ids, torch.zeros_like(unit), channel.scaled(unit), centre))

    return (vector(1.0) - vector(0.0))[:, 0]


@torch.no_grad()
def direct_effect(student: Any, concept: int) -> np.ndarray | None:
    """Next-token logits of a slot that holds nothing but `concept`, less those of an empty one, centred, `[vocab]`.

    None where there is no direct path.
    """
    if not mixes(student):
        return None
    hidden = _direct(student, concept_vectors(student, np.array([concept])))
    if not bool(hidden.any()):
        return None
    logits = _read_out(student, hidden) - _read_out(student, torch.zeros_like(hidden))
    return (logits - logits.mean(-1, keepdim=True))[0].cpu().numpy()


@torch.no_grad()
def measured_effect(student: Any, concept: int, ids: np.ndarray, positions: np.ndarray) -> np.ndarray | None:
    """Mean change of the log-probability of each next token that `concept` makes at some places, nats, `[vocab]`.

    Hooks are set on the student meanwhile: nothing else may run it. None without places or where nothing is mixed in.

    Args:
        ids: windows, int64 `[n, seq]`; what comes after the places is not read.
        positions: the place in each, int64 `[n]`.
    """
    if not mixes(student) or not len(ids):
        return None
    order = np.argsort(positions, kind="stable")  # windows of a pass end at the last of their places
    at_once = windows_at_once(concept_channel(student).head.num_concepts, int(positions.max()) + 1)
    changes = []
    for start in range(0, len(order), at_once):
        rows = order[start : start + at_once]
        places = torch.from_numpy(positions[rows]).to(student.device)
        tokens = torch.from_numpy(ids[rows, : int(places.max()) + 1]).to(student.device)
        unchanged = _log_probabilities(student, tokens, places)
        with ablated(student, concept):
            changes.append((unchanged - _log_probabilities(student, tokens, places)).cpu())
    return torch.cat(changes).mean(0).numpy()


def _direct(student: Any, vectors: torch.Tensor) -> torch.Tensor:
    """What reaches the final norm of mixed-in `vectors` `[n, d_model]` with no block between, `[n, d_model]`."""
    positions = torch.zeros(1, 1, dtype=torch.int64, device=vectors.device)
    empty = torch.zeros_like(vectors)[:, None]

    def through(vector: torch.Tensor) -> torch.Tensor:
        return student.mixer(empty, vector, BlockRunner([], student.backbone, positions, None, 0, None, None))

    return (through(vectors[:, None]) - through(empty))[:, 0]


def _read_out(student: Any, hidden: torch.Tensor) -> torch.Tensor:
    logits = _at_least_float32(student.lm_head(student.backbone.final_norm(hidden)))
    cap = student.config.logit_cap
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _log_probabilities(student: Any, tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Of the token after each row's place, `[rows, vocab]`."""
    kept, which = places.unique(return_inverse=True)
    logits = student(input_ids=tokens, use_cache=False, logits_to_keep=kept).logits
    return _at_least_float32(logits[torch.arange(len(tokens), device=tokens.device), which]).log_softmax(-1)


def _at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


SHOWN, LISTED, SIMILAR = 8, 10, 8
"""Passages, tokens on each side, and similar concepts."""


class Effect(BaseModel):
    """A next token and what the concept does to it."""

    token: str
    id: int
    effect: float


class Effects(BaseModel):
    """Tokens the concept does most to, strongest first."""

    promotes: list[Effect] = Field(default_factory=list)
    suppresses: list[Effect] = Field(default_factory=list)


class MeasuredEffects(Effects):
    """Mean change of log-probabilities, nats."""

    places: int = Field(description="places it is a mean over")


class Histogram(BaseModel):
    """Strengths where the concept is predicted."""

    edges: list[float]
    counts: list[int]


class PredictedPassage(BaseModel):
    """A place where the student predicts the concept most strongly."""

    before: str
    token: str
    after: str
    strength: float = Field(description="logit over the position's largest logit magnitude")
    true: bool | None = Field(description="among the teacher's labels there; null where there are none")


class PredictedAt(BaseModel):
    """Where the student predicts the concept."""

    count: int
    share: float
    histogram: Histogram
    passages: list[PredictedPassage]


class Agreement(BaseModel):
    """When it is predicted against when it is true, among labelled positions."""

    truth: str = Field(description="what the labels are")
    predicted: int
    true: int
    both: int
    precision: float | None
    recall: float | None
    positions: int


class Similar(BaseModel):
    """A concept whose vector points the same way."""

    concept: int
    name: str | None
    cosine: float


class Dashboard(BaseModel):
    """One concept."""

    concept: int
    about: ConceptName
    positions: int = Field(description="looked at")
    split: Literal["validation"] = "validation"
    predicted: PredictedAt
    agreement: Agreement | None
    promotes: list[Effect] = Field(description="from the weights alone: centred logits by the direct path")
    suppresses: list[Effect]
    measured: MeasuredEffects | None
    similar: list[Similar]


class Dashboards:
    """Dashboards of one student's concepts; what takes long is computed when it is first needed and then kept.

    Args:
        statistics: of the student.
        student: in evaluation mode.
        shards: the text the statistics are of.
        decode: text of token ids.
    """

    def __init__(
        self, statistics: ConceptStatistics, student: Any, shards: TokenShards, decode: Callable[[Sequence[int]], str]
    ) -> None:
        self.statistics, self.student, self.shards, self.decode = statistics, student, shards, decode
        self._measured: dict[int, MeasuredEffects | None] = {}
        self._directions: Any = None  # unit vectors of all concepts, `[C, d_model]`

    def of(self, concept: int, names: Names, *, measure: bool = True) -> Dashboard:
        """The dashboard of `concept`; without `measure` the student is not run, and `measured` is null unless kept.

        Raises:
            CocomixError: there is no such concept.
        """
        statistics = self.statistics
        if not 0 <= concept < statistics.n_concepts:
            raise CocomixError(f"there is no concept {concept}; the student's are 0 to {statistics.n_concepts - 1}")
        direct = direct_effect(self.student, concept)
        effects = Effects() if direct is None else Effects(**self._effects(direct))
        return Dashboard(
            concept=concept,
            about=names.of(concept),
            positions=statistics.positions,
            predicted=self._predicted(concept),
            agreement=self._agreement(concept),
            promotes=effects.promotes,
            suppresses=effects.suppresses,
            measured=self.measured_effects(concept) if measure else self._measured.get(concept),
            similar=self._similar(concept, names),
        )

    def measured_effects(self, concept: int) -> MeasuredEffects | None:
        """What the concept does at its strongest places. The student is steered meanwhile: hold its lock."""
        if concept not in self._measured:
            places, _ = self.statistics.places_of(concept, PLACES)
            ids = self.shards.windows(places[:, 0], self.statistics.key.seq_len)
            change = measured_effect(self.student, concept, ids, places[:, 1])
            effects = None if change is None else MeasuredEffects(places=len(places), **self._effects(change))
            self._measured[concept] = effects
        return self._measured[concept]

    def _predicted(self, concept: int) -> PredictedAt:
        statistics, count = self.statistics, int(self.statistics.predicted[concept])
        places, strengths = statistics.places_of(concept, SHOWN)
        passages = []
        for (_, position, true), ids, strength in zip(
            places.tolist(), self.shards.windows(places[:, 0], statistics.key.seq_len), strengths.tolist(), strict=True
        ):
            before, token, after = around(self.decode, ids.tolist(), position)
            passages.append(
                PredictedPassage(
                    before=before, token=token, after=after, strength=strength, true=None if true < 0 else bool(true)
                )
            )
        histogram = Histogram(edges=EDGES.tolist(), counts=statistics.histogram[concept].tolist())
        return PredictedAt(
            count=count, share=count / max(1, statistics.positions), histogram=histogram, passages=passages
        )

    def _agreement(self, concept: int) -> Agreement | None:
        statistics = self.statistics
        if statistics.truth is None:
            return None
        predicted, true, both = (
            int(counts[concept]) for counts in (statistics.predicted_labelled, statistics.true, statistics.both)
        )
        return Agreement(
            truth=statistics.truth,
            predicted=predicted,
            true=true,
            both=both,
            precision=both / predicted if predicted else None,
            recall=both / true if true else None,
            positions=statistics.labelled,
        )

    def _effects(self, change: np.ndarray) -> dict[str, list[Effect]]:
        def side(sign: int) -> list[Effect]:
            order = np.argsort(-sign * change, kind="stable")[:LISTED]
            chosen = order[sign * change[order] > 0].tolist()
            return [Effect(token=self.decode([token]), id=token, effect=float(change[token])) for token in chosen]

        return {"promotes": side(1), "suppresses": side(-1)}

    def _similar(self, concept: int, names: Names) -> list[Similar]:
        if not mixes(self.student):
            return []
        if self._directions is None:
            self._directions = F.normalize(concept_vectors(self.student, np.arange(self.statistics.n_concepts)), dim=-1)
        cosines = self._directions @ self._directions[concept]
        cosines[concept] = -2.0
        best = cosines.topk(min(SIMILAR, self.statistics.n_concepts - 1))
        return [
            Similar(concept=other, name=names.name(other), cosine=cosine)
            for other, cosine in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

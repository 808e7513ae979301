"""What is kept of one method, student and seed: figures of each dose and concept, ready for JSON."""

from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, Field

from cocomix.report.formats import GAIN_LABELS
from cocomix.steering.study.judge import TextMetrics, leak

if TYPE_CHECKING:
    from cocomix.steering.study.context import StudyContext

DIGITS = 6
"""Decimals kept."""
GAINS = tuple(GAIN_LABELS)
"""Figures of a concept looked for in texts: by an SAE of the teacher, by its tokens, by the tokens that follow it."""
QUALITY = ("loss", "distinct1", "distinct2", "repeated4", "leak")
"""Figures of a group of texts that have nothing to do with the concept that is looked for in them."""


class DoseResult(BaseModel):
    """Figures of one dose; `presence` is by the judging SAE.

    Texts are in groups, one for each concept that was steered; each group is judged for all chosen concepts.
    """

    dose: float
    presence: list[list[float]] = Field(description="[steered][judged]: share of positions, by the SAE that judges")
    words: list[list[float]] = Field(description="[steered][judged]: share of tokens that are the judged concept's")
    follow: list[list[float]] = Field(description="[steered][judged]: share of tokens that follow the judged concept")
    loss: list[float] = Field(description="[steered]: nats a token, under the independent model")
    distinct1: list[float]
    distinct2: list[float]
    repeated4: list[float]
    leak: list[float]


class UnsteeredResult(BaseModel):
    """Figures of the same model's text without steering, from as many rows, all of them together."""

    presence: list[float] = Field(description="[judged]")
    words: list[float] = Field(description="[judged]")
    follow: list[float] = Field(description="[judged]")
    loss: float
    distinct1: float
    distinct2: float
    repeated4: float


class Example(BaseModel):
    """Texts of one concept, from one prompt; the prompt's number is the concept's place, modulo the prompts."""

    concept: int
    dose: float
    prompt: str
    unsteered: str
    steered: str


class MethodResult(BaseModel):
    """Figures of one method, student and seed."""

    unsteered: UnsteeredResult
    at: list[DoseResult] = Field(description="one for each dose")
    examples: list[Example] = Field(description="at one dose, one for each concept; of some methods none")
    output_scores: list[float] | None = Field(
        default=None, description="of each concept, known before any text is generated; of the student's concepts alone"
    )

    def only(self, places: list[int]) -> "MethodResult":
        """The figures of some of the concepts, by their places."""

        def of(values: list[Any]) -> list[Any]:
            return [values[place] for place in places]

        unsteered = self.unsteered.model_copy(update={gain: of(getattr(self.unsteered, gain)) for gain in GAINS})
        at = []
        for result in self.at:
            kept: dict[str, Any] = {gain: [of(row) for row in of(getattr(result, gain))] for gain in GAINS}
            kept |= {name: of(getattr(result, name)) for name in QUALITY}
            at.append(result.model_copy(update=kept))
        examples = of(self.examples) if self.examples else []
        scores = None if self.output_scores is None else of(self.output_scores)
        return self.model_copy(update={"unsteered": unsteered, "at": at, "examples": examples, "output_scores": scores})

    def judged_on_others(self, order: list[int]) -> "MethodResult":
        """The same texts, those of concept order[i] judged on concept i."""
        at = []
        for result in self.at:
            reordered: dict[str, Any] = {name: [getattr(result, name)[i] for i in order] for name in (*GAINS, *QUALITY)}
            at.append(result.model_copy(update=reordered))
        return self.model_copy(update={"at": at, "examples": [], "output_scores": None})


def unsteered_result(metrics: TextMetrics, concepts: torch.Tensor) -> UnsteeredResult:
    """What is kept of unsteered text; `concepts` are the chosen concepts' numbers, int64 `[concepts]`."""
    scalars: dict[str, Any] = {
        name: float(getattr(metrics, name).mean()) for name in ("loss", "distinct1", "distinct2", "repeated4")
    }
    lists = {name: _rounded(getattr(metrics, name).mean(0)) for name in ("words", "follow")}
    return UnsteeredResult(presence=_rounded(metrics.shares.mean(0)[concepts]), **lists, **scalars)


def dose_result(dose: float, metrics: TextMetrics, unsteered: TextMetrics, concepts: torch.Tensor) -> DoseResult:
    """What is kept of one dose; `concepts` are the chosen concepts' numbers, int64 `[concepts]`."""
    moved = leak(metrics.shares, unsteered.shares.mean(0), concepts)
    kept = ("words", "follow", "loss", "distinct1", "distinct2", "repeated4")
    rest = {name: _rounded(getattr(metrics, name)) for name in kept}
    return DoseResult(dose=dose, presence=_rounded(metrics.shares[:, concepts]), leak=_rounded(moved), **rest)


def examples_at(context: "StudyContext", dose: float, unsteered: torch.Tensor, steered: torch.Tensor) -> list[Example]:
    """One text of each concept."""
    n_prompts, prompt_tokens = context.prompts.shape
    examples = []
    for place, concept in enumerate(context.concepts):
        row = place * n_prompts + place % n_prompts
        before, after = unsteered[row].tolist(), steered[row].tolist()
        parts = (before[:prompt_tokens], before[prompt_tokens:], after[prompt_tokens:])
        texts = dict(zip(("prompt", "unsteered", "steered"), map(context.decode, parts), strict=True))
        examples.append(Example(concept=concept.concept, dose=dose, **texts))
    return examples


def _rounded(values: torch.Tensor) -> list[Any]:
    return values.double().round(decimals=DIGITS).tolist()

"""What is kept of one method, student and seed: figures of each dose and concept, ready for JSON."""

from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, Field

from cocomix.steering.study.judge import Found, leak

if TYPE_CHECKING:
    from cocomix.steering.study.material import Material

DIGITS = 6
"""Decimals kept."""
GAINS = ("presence", "words", "follow")
"""Figures of a concept looked for in texts: by the teacher's SAE, by its tokens, by the tokens that follow it."""
QUALITY = ("loss", "distinct1", "distinct2", "repeated4", "leak")
"""Figures of a group of texts that have nothing to do with the concept that is looked for in them."""


class Dose(BaseModel):
    """One dose. Texts are in groups, one for each concept that was steered; judged are all chosen concepts."""

    dose: float
    presence: list[list[float]] = Field(description="[steered][judged]: share of positions, by the teacher's SAE")
    words: list[list[float]] = Field(description="[steered][judged]: share of tokens that are the judged concept's")
    follow: list[list[float]] = Field(description="[steered][judged]: share of tokens that follow the judged concept")
    loss: list[float] = Field(description="[steered]: nats a token, under the independent model")
    distinct1: list[float]
    distinct2: list[float]
    repeated4: list[float]
    leak: list[float]


class Unsteered(BaseModel):
    """The same model's text without steering, from as many rows, all of them together."""

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


class Part(BaseModel):
    """One method, student and seed."""

    unsteered: Unsteered
    at: list[Dose]
    examples: list[Example] = Field(description="at one dose, one for each concept; of some methods none")

    def judged_on_others(self, order: list[int]) -> "Part":
        """The same texts, those of concept order[i] judged on concept i."""
        at = []
        for one in self.at:
            moved: dict[str, Any] = {name: [getattr(one, name)[i] for i in order] for name in (*GAINS, *QUALITY)}
            at.append(one.model_copy(update=moved))
        return self.model_copy(update={"at": at, "examples": []})


def part_of(unsteered: Found, own: torch.Tensor, at: list[Dose], examples: list[Example]) -> Part:
    """What is kept, from what was found in the unsteered text and at each dose."""
    base: dict[str, Any] = {
        name: float(getattr(unsteered, name).mean()) for name in ("loss", "distinct1", "distinct2", "repeated4")
    }
    base |= {name: _rounded(getattr(unsteered, name).mean(0)) for name in ("words", "follow")}
    base |= {"presence": _rounded(unsteered.shares.mean(0)[own])}
    return Part(unsteered=Unsteered.model_validate(base), at=at, examples=examples)


def dose_of(dose: float, found: Found, unsteered: Found, own: torch.Tensor) -> Dose:
    """What is kept of one dose; `own` are the concepts' numbers, int64 `[concepts]`."""
    moved = leak(found.shares, unsteered.shares.mean(0), own)
    kept = ("words", "follow", "loss", "distinct1", "distinct2", "repeated4")
    rest = {name: _rounded(getattr(found, name)) for name in kept}
    return Dose(dose=dose, presence=_rounded(found.shares[:, own]), leak=_rounded(moved), **rest)


def examples_of(material: "Material", dose: float, unsteered: torch.Tensor, steered: torch.Tensor) -> list[Example]:
    """One text of each concept."""
    each, cut = material.prompts.shape
    examples = []
    for place, one in enumerate(material.concepts):
        row = place * each + place % each
        before, after = unsteered[row].tolist(), steered[row].tolist()
        texts = [material.decode(ids) for ids in (before[:cut], before[cut:], after[cut:])]
        shown = {"prompt": texts[0], "unsteered": texts[1], "steered": texts[2]}
        examples.append(Example(concept=one.concept, dose=dose, **shown))
    return examples


def _rounded(values: torch.Tensor) -> list[Any]:
    return values.double().round(decimals=DIGITS).tolist()

"""What a student makes of a text, token by token: measured here, shown elsewhere.

Strengths are logits in multiples of the position's largest logit magnitude, the unit that steering's strengths have.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import BaseModel, Field

from cocomix.concepts import ConceptLabels
from cocomix.errors import CocomixError
from cocomix.steer import Ablate, steered


class PredictedConcept(BaseModel):
    """A concept among the student's largest at a position."""

    concept: int
    name: str | None = None
    logit: float
    strength: float = Field(description="logit over the position's largest logit magnitude")
    used: bool = Field(description="among the K that are mixed in")
    agreed: bool | None = Field(description="among the teacher's labels there; null where there are none")


class Odds(BaseModel):
    """A next token."""

    id: int
    token: str
    probability: float
    without: float | None = Field(default=None, description="probability with the chosen concept ablated")


class TokenReading(BaseModel):
    """One position."""

    id: int
    token: str
    loss: float | None = Field(description="-log of the probability this token had, nats; null for the first")
    loss_without: float | None = Field(default=None, description="the same with the chosen concept ablated")
    concepts: list[PredictedConcept] = Field(description="largest logit first")
    labels: list[int] | None = Field(description="the teacher's labels, best first; null where there are none")
    next: list[Odds] = Field(description="likeliest next tokens, with no concept ablated")
    chosen: PredictedConcept | None = Field(default=None, description="the chosen concept here")


class Reading(BaseModel):
    """A text as the student sees it."""

    concept: int | None = Field(description="the chosen concept, whose ablation is shown")
    name: str | None = Field(description="its name")
    n_concepts: int
    tokens: list[TokenReading]


@contextmanager
def ablated(student: Any, concept: int) -> Iterator[None]:
    """Within: `concept` is kept out of what the student mixes in, at every position."""
    with steered(student, {concept: Ablate()}):
        yield


@torch.no_grad()
def read_text(
    student: Any,
    ids: Sequence[int],
    decode: Callable[[Sequence[int]], str],
    *,
    top: int = 5,
    concept: int | None = None,
    labels: ConceptLabels | None = None,
    name: Callable[[int], str | None] = lambda _: None,
) -> Reading:
    """Concepts, losses and next-token odds of every token.

    Args:
        student: a model that predicts concepts, in evaluation mode.
        ids: the text's tokens.
        decode: text of token ids.
        top: concepts and next tokens of each position.
        concept: one to follow, and to ablate for comparison.
        labels: the teacher's, of the same tokens, `[1, seq, K_attr]`.
        name: a concept's name, if it has one.

    Raises:
        CocomixError: no token, more than the model has positions, no such concept, or a student without concepts.
    """
    positions, n_concepts = student.config.max_position_embeddings, getattr(student.config, "num_concepts", 0)
    if not ids:
        raise CocomixError("the text is empty; give some words")
    if len(ids) > positions:
        raise CocomixError(
            f"the text has {len(ids)} tokens and the model {positions} positions; shorten it by {len(ids) - positions}"
        )
    tokens = torch.tensor([list(ids)], device=student.device)
    output = student(input_ids=tokens, use_cache=False)
    logits = getattr(output, "concept_logits", None)
    if logits is None:
        raise CocomixError("this student predicts no concepts; use one trained with the objective cocomix")
    if concept is not None and not 0 <= concept < n_concepts:
        raise CocomixError(f"there is no concept {concept}; the student's are 0 to {n_concepts - 1}")
    z = logits[0].to(torch.promote_types(logits.dtype, torch.float32))
    strength = z / z.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(z.dtype).tiny)
    log_p = _log_probabilities(output.logits)
    without = None
    if concept is not None:
        with ablated(student, concept):
            without = _log_probabilities(student(input_ids=tokens, use_cache=False).logits)
    used = z.topk(student.config.concept_top_k).indices
    largest = z.topk(min(top, n_concepts)).indices.tolist()
    likeliest = log_p.topk(min(top, log_p.shape[-1])).indices.tolist()
    taught = None if labels is None else labels.targets()[0].tolist()

    def predicted(place: int, which: int) -> PredictedConcept:
        here = _labels_at(taught, place)
        return PredictedConcept(
            concept=which,
            name=name(which),
            logit=float(z[place, which]),
            strength=float(strength[place, which]),
            used=bool((used[place] == which).any()),
            agreed=None if here is None else which in here,
        )

    def odds(place: int, token: int) -> Odds:
        other = None if without is None else float(without[place, token].exp())
        return Odds(id=token, token=decode([token]), probability=float(log_p[place, token].exp()), without=other)

    def loss(of: torch.Tensor | None, place: int) -> float | None:
        return None if of is None or place == 0 else -float(of[place - 1, ids[place]])

    return Reading(
        concept=concept,
        name=None if concept is None else name(concept),
        n_concepts=n_concepts,
        tokens=[
            TokenReading(
                id=token,
                token=decode([token]),
                loss=loss(log_p, place),
                loss_without=loss(without, place),
                concepts=[predicted(place, which) for which in largest[place]],
                labels=_labels_at(taught, place),
                next=[odds(place, one) for one in likeliest[place]],
                chosen=None if concept is None else predicted(place, concept),
            )
            for place, token in enumerate(ids)
        ],
    )


def _labels_at(taught: list[list[int]] | None, place: int) -> list[int] | None:
    """The labels of a position, where it carries any."""
    return None if taught is None or min(taught[place]) < 0 else taught[place]


def _log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """`[seq, vocab]` of logits `[1, seq, vocab]`, in float32 or better."""
    return logits[0].to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)

"""Read a text with a student: concepts, losses and likely next tokens, token by token; and print that.

Strengths are logits in multiples of the position's largest logit magnitude, the unit that steering's strengths have.
In the terminal, all that colour says is also said in words or bars, so a pipe loses nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from pydantic import BaseModel, Field
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cocomix.analysis.naming import printable, visible
from cocomix.labels.attribution import ConceptLabels
from cocomix.model.interventions import Ablate, steered
from cocomix.model.vector_replacements import ZeroVector, mixes_vector, vector_replaced
from cocomix.utils.errors import CocomixError


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
    channel: float | None = Field(
        default=None,
        description="nats of the token that come through the channel: loss with the vector zeroed, less the loss; null"
        " for the first, and for a student that mixes no vector in",
    )
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


def check_length(ids: Sequence[int], positions: int) -> None:
    """Check that a model with `positions` positions can read a text.

    Raises:
        CocomixError: no token, or too many.
    """
    if not ids:
        raise CocomixError("the text is empty; give some words")
    if len(ids) > positions:
        raise CocomixError(
            f"the text has {len(ids)} tokens and the model {positions} positions; shorten it by {len(ids) - positions}"
        )


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
    """Concepts, losses and next-token odds of every token; of a student without concepts, the last two.

    Args:
        student: a causal LM in evaluation mode.
        ids: the text's tokens.
        decode: text of token ids.
        top: concepts and next tokens of each position.
        concept: one to follow, and to ablate for comparison.
        labels: the teacher's, of the same tokens, `[1, seq, K_attr]`.
        name: a concept's name, if it has one.

    Raises:
        CocomixError: no token, more than the model has positions, or a concept that the student does not have.
    """
    check_length(ids, student.config.max_position_embeddings)
    tokens = torch.tensor([list(ids)], device=student.device)
    output = student(input_ids=tokens, use_cache=False)
    logits = getattr(output, "concept_logits", None)
    n_concepts = 0 if logits is None else logits.shape[-1]
    if concept is not None and not 0 <= concept < n_concepts:
        raise CocomixError(
            f"there is no concept {concept}; the student's are 0 to {n_concepts - 1}"
            if n_concepts
            else "this student predicts no concepts; use one trained with the objective cocomix"
        )
    log_p = _log_probabilities(output.logits)
    without = None
    if concept is not None:
        with ablated(student, concept):
            without = _log_probabilities(student(input_ids=tokens, use_cache=False).logits)
    zeroed = None
    if mixes_vector(student):
        with vector_replaced(student, ZeroVector()):
            zeroed = _log_probabilities(student(input_ids=tokens, use_cache=False).logits)
    label_ids: Sequence[list[int] | None] = [None] * len(ids)
    if labels is not None:
        label_ids = [None if min(row) < 0 else row for row in labels.targets()[0].tolist()]
    concepts: list[list[PredictedConcept]] = [[] for _ in ids]
    if logits is not None:
        concepts = _predicted(logits[0], student.config.concept_top_k, top, concept, label_ids, name)
    chosen = [None if concept is None else row.pop() for row in concepts]
    text = cache(lambda token: decode([token]))
    odds = _odds(log_p, without, top, text)
    losses, losses_without, losses_zeroed = (_losses(one, ids) for one in (log_p, without, zeroed))
    through = [None if b is None or a is None else b - a for a, b in zip(losses, losses_zeroed, strict=True)]
    return Reading(
        concept=concept,
        name=None if concept is None else name(concept),
        n_concepts=n_concepts,
        tokens=[
            TokenReading(
                id=token,
                token=text(token),
                loss=losses[place],
                loss_without=losses_without[place],
                channel=through[place],
                concepts=concepts[place],
                labels=label_ids[place],
                next=odds[place],
                chosen=chosen[place],
            )
            for place, token in enumerate(ids)
        ],
    )


def _predicted(
    logits: torch.Tensor,
    top_k: int,
    top: int,
    concept: int | None,
    label_ids: Sequence[list[int] | None],
    name: Callable[[int], str | None],
) -> list[list[PredictedConcept]]:
    """The `top` largest of `logits` `[seq, C]` at each position and, last, `concept`, if one is chosen."""
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    ids = z.topk(min(top, z.shape[-1])).indices
    if concept is not None:
        ids = torch.cat([ids, torch.full_like(ids[:, :1], concept)], dim=-1)
    mixed = torch.zeros_like(z, dtype=torch.bool).scatter(-1, z.topk(top_k).indices, True)
    values, used = z.gather(-1, ids), mixed.gather(-1, ids)
    strengths = values / z.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(z.dtype).tiny)
    rows = zip(ids.tolist(), values.tolist(), strengths.tolist(), used.tolist(), label_ids, strict=True)
    return [
        [
            PredictedConcept(
                concept=number,
                name=name(number),
                logit=logit,
                strength=strength,
                used=is_used,
                agreed=None if labels is None else number in labels,
            )
            for number, logit, strength, is_used in zip(*row, strict=True)
        ]
        for *row, labels in rows
    ]


def _odds(log_p: torch.Tensor, without: torch.Tensor | None, top: int, text: Callable[[int], str]) -> list[list[Odds]]:
    """The likeliest next tokens at each position, by log-probabilities `[seq, vocab]`."""
    ids = log_p.topk(min(top, log_p.shape[-1])).indices
    likely = log_p.gather(-1, ids).exp().tolist()
    other = [[None] * ids.shape[-1]] * len(ids) if without is None else without.gather(-1, ids).exp().tolist()
    return [
        [Odds(id=token, token=text(token), probability=p, without=q) for token, p, q in zip(*row, strict=True)]
        for row in zip(ids.tolist(), likely, other, strict=True)
    ]


def _losses(log_p: torch.Tensor | None, ids: Sequence[int]) -> list[float | None]:
    """-log of the probability each token had, by log-probabilities `[seq, vocab]`; none of the first."""
    if log_p is None:
        return [None] * len(ids)
    after = torch.tensor(ids[1:], dtype=torch.long, device=log_p.device)
    return [None, *(-log_p[:-1].gather(-1, after[:, None])[:, 0]).tolist()]


def _log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """`[seq, vocab]` of logits `[1, seq, vocab]`, in float32 or better."""
    return logits[0].to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


BARS = " ▁▂▃▄▅▆▇█"
COLOUR = (255, 170, 0)


def print_reading(reading: Reading, console: Console) -> None:
    """A row for each token; with a chosen concept, the text shaded by it and the odds without it."""
    if reading.concept is not None:
        title = f"concept {reading.concept}" + (f" ({reading.name})" if reading.name else "")
        console.print(Text(f"{title}, stronger is brighter:"), soft_wrap=True)
        console.print(Text.assemble(*(_shaded(token) for token in reading.tokens)), soft_wrap=True)
        console.print()
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("token", no_wrap=True)
    table.add_column("loss", justify="right", no_wrap=True)
    through = any(token.channel is not None for token in reading.tokens)
    if through:
        table.add_column("channel", justify="right", no_wrap=True)
    if reading.concept is None:
        table.add_column("next tokens", ratio=1)
        table.add_column("concepts, strength", ratio=2)
    else:
        table.add_column("without", justify="right", no_wrap=True)
        table.add_column(f"concept {reading.concept}", no_wrap=True)
        table.add_column("next tokens, with → without", ratio=1)
    for token in reading.tokens:
        cells = [Text(_token_cell(token.token)), Text(_number(token.loss))]
        cells += [Text(_number(token.channel, "+"))] if through else []
        if token.chosen is None:
            table.add_row(*cells, _joined(map(_odds_text, token.next)), _joined(map(_concept, token.concepts)))
        else:
            table.add_row(
                *cells, Text(_number(token.loss_without)), _bar(token.chosen), _joined(map(_odds_text, token.next))
            )
    console.print(table)
    console.print(Text(_legend(reading), style="dim"), soft_wrap=True)


def _joined(parts) -> Text:
    return Text("  ").join(list(parts))


def _token_cell(token: str) -> str:
    """A token for a cell, a leading space shown."""
    return ("·" if token.startswith(" ") and token.strip() else "") + visible(token)


def _odds_text(odds: Odds) -> Text:
    after = "" if odds.without is None else f"→{odds.without:.0%}"
    return Text(f"{_token_cell(odds.token)} {odds.probability:.0%}{after}")


def _concept(predicted: PredictedConcept) -> Text:
    name = str(predicted.concept) + (f" ({predicted.name})" if predicted.name else "")
    agreed = predicted.agreed
    return Text(f"{name} {predicted.strength:.2f}{'✓' if agreed else ''}", style="green" if agreed else "")


def _bar(predicted: PredictedConcept) -> Text:
    marks = ("*" if predicted.used else "") + ("✓" if predicted.agreed else "")
    return Text(f"{_level(predicted)} {predicted.strength:+.2f}{marks}")


def _level(predicted: PredictedConcept) -> str:
    return BARS[round(max(0.0, min(1.0, predicted.strength)) * (len(BARS) - 1))]


def _shaded(token: TokenReading) -> Text:
    assert token.chosen is not None
    share = max(0.0, min(1.0, token.chosen.strength)) if token.chosen.used else 0.0
    red, green, blue = (round(part * share) for part in COLOUR)
    text = printable(token.token)
    if share == 0:
        return Text(text)
    return Text(text, style=f"{'black' if share > 0.5 else 'white'} on rgb({red},{green},{blue})")


def _number(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.2f}"


def _legend(reading: Reading) -> str:
    legend = "loss: nats of the token"
    if any(token.channel is not None for token in reading.tokens):
        legend += "; channel: what zeros for the vector would cost it"
    legend += "; strength: logit over the position's largest magnitude"
    legend += "" if reading.concept is None else "; *: mixed in"
    if any(token.labels is not None for token in reading.tokens):
        return legend + "; ✓: the teacher's attribution agrees"
    return legend + "; no teacher's labels to compare with"

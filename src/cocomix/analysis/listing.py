"""Rows of concepts: sorted and searched over all of them at once, so that 32,768 answer as one keeps typing."""

import re
from collections.abc import Callable

import numpy as np
from pydantic import BaseModel, Field

from cocomix.analysis.atlas_record import Atlas, share
from cocomix.analysis.record import ConceptName, Names
from cocomix.utils.errors import CocomixError

_NUMBER = re.compile(r"c?(\d+)")


class ConceptRow(BaseModel):
    """One concept in short."""

    concept: int
    name: str | None
    edited: bool
    stability: float | None = Field(description="do two halves of the text name it alike, 0 to 1")
    predicted: float = Field(description="share of positions it is predicted at")
    true: float | None = Field(description="share of labelled positions it is true at; null without labels")
    precision: float | None
    recall: float | None


class Listing(BaseModel):
    """Some of the concepts that were asked for."""

    total: int = Field(description="how many there are")
    concepts: list[ConceptRow]


class Catalogue:
    """All concepts of an atlas under their names, ready to be listed."""

    def __init__(self, atlas: Atlas, names: Names) -> None:
        known = [names.of(concept) for concept in range(atlas.n_concepts)]
        self._names = [one.name for one in known]
        self._edited = [one.edited for one in known]
        self._stability = np.array([np.nan if one.stability is None else one.stability for one in known])
        self._tokens = [_tokens(one) for one in known]
        self._predicted = atlas.predicted / max(1, atlas.positions)
        self._true = share(atlas.true, np.full(atlas.n_concepts, atlas.labelled))
        self._precision, self._recall = atlas.precision(), atlas.recall()
        self._in_order: dict[str, np.ndarray] = {}

    def rename(self, name: ConceptName) -> None:
        """Take in what a concept is called from now on."""
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
        wanted = q.strip().casefold()
        if wanted:
            order = order[self._matches(wanted)[order]]
            number = _NUMBER.fullmatch(wanted)
            if number and int(number[1]) < len(self._names):
                order = np.concatenate(([int(number[1])], order[order != int(number[1])]))
        return Listing(total=len(order), concepts=[self._row(one) for one in order[offset : offset + limit].tolist()])

    def _matches(self, wanted: str) -> np.ndarray:
        pairs = zip(self._names, self._tokens, strict=True)
        return np.array(
            [wanted in tokens or (name is not None and wanted in name.casefold()) for name, tokens in pairs], dtype=bool
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


SORTS: dict[str, Callable[[Catalogue], np.ndarray]] = {
    "predicted": lambda catalogue: catalogue._falling("predicted"),
    "true": lambda catalogue: catalogue._falling("true"),
    "recall": lambda catalogue: catalogue._falling("recall"),
    "precision": lambda catalogue: catalogue._falling("precision"),
    "stability": lambda catalogue: catalogue._falling("stability"),
    "number": lambda catalogue: np.arange(len(catalogue._names)),
    "name": Catalogue._by_name,
}
"""Orders of all concepts, int64 `[C]`; each is found once."""


def _tokens(name: ConceptName) -> str:
    """All distinguishing tokens, a line each, as they are searched."""
    return "\n".join(one.token for one in [*name.tokens, *name.next_tokens]).casefold()


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)

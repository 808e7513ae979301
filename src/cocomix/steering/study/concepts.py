"""Which concepts are steered, chosen before anything is generated, and the words each is known by."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from cocomix.analysis.naming import OF_THE_BEST, STABLE, ConceptName, Names, TokenScore
from cocomix.evaluation.perplexity import window_subset
from cocomix.steering.score import Activity, ranked_concepts
from cocomix.utils.errors import CocomixError

NO_TEXT = "�"
"""What bytes that are no character by themselves decode to; such tokens cannot be told apart by their text."""


class Concept(NamedTuple):
    """One that is steered."""

    concept: int
    name: str
    words: list[int]
    """its distinguishing tokens, best first: those with at least OF_THE_BEST of the best one's score"""
    follow: list[int]
    """the same of the tokens after those it is active at; may be none"""
    share: float
    """of validation positions at which it is active"""
    strength: float
    """mean of the latent over those"""


def chosen_concepts(
    found: Activity, names: Names, decode: Callable[[Sequence[int]], str], *, vocab_size: int, wanted: int
) -> list[Concept]:
    """Up to `wanted` concepts, evenly spread over the ranking by frequency of those that qualify.

    These have distinguishing tokens on which two halves of the training text agree, and are neither too rare nor too
    frequent in validation text (`cocomix.steering.score`).

    Args:
        decode: text of token ids.

    Raises:
        CocomixError: fewer than two; one alone would have no control.
    """
    if wanted < 2:
        raise CocomixError("steering needs at least 2 concepts, each is another's control; raise --concepts")
    ids = _ids_by_text(decode, vocab_size)
    usable = {number: words for number in ranked_concepts(found) if (words := _words(names.of(number), ids))}
    ranking = list(usable)
    if len(ranking) < 2:
        raise CocomixError(
            f"only {len(ranking)} concepts have distinguishing tokens and are neither too rare nor too frequent to"
            " measure; run `cocomix name` with more --tokens, or use an SAE with more latents"
        )
    chosen = [ranking[place] for place in window_subset(len(ranking), wanted)]
    return [
        Concept(
            number,
            names.name(number) or f"concept {number}",
            usable[number],
            _ids(names.of(number).next_tokens, ids),
            float(found.share[number]),
            float(found.strength[number]),
        )
        for number in chosen
    ]


def derangement(n: int, generator: torch.Generator) -> list[int]:
    """A permutation of 0 to n - 1, drawn at random, that leaves nothing in its place; `n` is at least 2."""
    while True:
        order = torch.randperm(n, generator=generator).tolist()
        if all(place != other for place, other in enumerate(order)):
            return order


def _words(about: ConceptName, ids: dict[str, list[int]]) -> list[int]:
    """Ids of a concept's distinguishing tokens; none where the halves of the text disagree on them."""
    if about.stability is None or about.stability < STABLE:
        return []
    return _ids(about.next_tokens if about.kind == "next" else about.tokens, ids)


def _ids(listed: Sequence[TokenScore], ids: dict[str, list[int]]) -> list[int]:
    """Ids of the tokens that tell nearly as much as the best one."""
    kept = [one.token for one in listed if one.score >= OF_THE_BEST * listed[0].score]
    return [token for text in kept for token in ids.get(text, [])]


def _ids_by_text(decode: Callable[[Sequence[int]], str], vocab_size: int) -> dict[str, list[int]]:
    ids: dict[str, list[int]] = {}
    for token in range(vocab_size):
        text = decode([token])
        if NO_TEXT not in text:
            ids.setdefault(text, []).append(token)
    return ids

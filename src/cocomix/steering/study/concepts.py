"""Which concepts are steered, chosen before anything is generated, from validation text alone.

A chosen concept is neither so rare that nothing can be measured nor so frequent that it says little. The named ones
(`choose_named_concepts`) also have distinguishing tokens, by which they can be recognised without the SAE.
"""

from collections.abc import Callable, Container, Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from cocomix.analysis.naming import OF_THE_BEST, STABLE, ConceptName, Names, TokenScore
from cocomix.analysis.token_statistics import StrongestPlaces
from cocomix.data.shards import TokenShards
from cocomix.evaluation.perplexity import window_subset
from cocomix.model.teacher import hidden_at
from cocomix.sae.sae import TopKSAE
from cocomix.utils.errors import CocomixError

RAREST, MOST_FREQUENT = 0.002, 0.1
"""Shares of validation positions between which a chosen concept is active."""
WINDOWS, BATCH = 128, 8
"""Validation windows in which concepts are looked for, evenly spread, and how many at a time."""
NO_TEXT = "�"
"""What bytes that are no character by themselves decode to; such tokens cannot be told apart by their text."""


class ConceptActivity(NamedTuple):
    """How active concepts are in validation text, float64 `[C]`."""

    share: torch.Tensor
    """share of positions at which each is active"""
    strength: torch.Tensor
    """mean of the latent over those positions; 0 where there are none"""


class Concept(NamedTuple):
    """A concept that is steered."""

    concept: int
    name: str
    words: list[int]
    """its distinguishing tokens, best first: those with at least OF_THE_BEST of the best one's score; may be empty"""
    follow: list[int]
    """distinguishing tokens of the positions after those it is active at, chosen likewise; may be empty"""
    share: float
    """share of validation positions at which it is active"""
    strength: float
    """mean of the latent over those"""


def spread_windows(shards: TokenShards, count: int, seq_len: int) -> torch.Tensor:
    """Up to `count` windows spread evenly over the shards, int64 `[windows, seq_len]`.

    Raises:
        CocomixError: the shards hold no whole window.
    """
    return _read_windows(shards, _spread_indices(shards, count, seq_len), seq_len)


@torch.no_grad()
def concept_activity(
    teacher: PreTrainedModel,
    sae: TopKSAE,
    shards: TokenShards,
    *,
    layer: int,
    seq_len: int,
    strongest: StrongestPlaces | None = None,
) -> ConceptActivity:
    """How often and how strongly each concept is active, on WINDOWS windows spread evenly over the shards.

    Args:
        layer: the teacher's block (0-based) after which the SAE reads.
        strongest: collects the places where each concept is most active; windows are numbered as in the shards.

    Raises:
        CocomixError: the shards hold no whole window.
    """
    counts, positions = torch.zeros(sae.n_latents, dtype=torch.long), 0
    sums = torch.zeros(sae.n_latents, dtype=torch.double)
    for windows in _spread_indices(shards, WINDOWS, seq_len).split(BATCH):
        ids = _read_windows(shards, windows, seq_len)
        latents = sae.encode(hidden_at(teacher, ids.to(teacher.device), layer))
        on = (latents.values > 0).cpu()
        on[:, : shards.special.first_position] = False
        active, values = latents.ids.cpu()[on], latents.values.cpu()[on].double()
        counts += torch.bincount(active, minlength=sae.n_latents)
        sums += torch.bincount(active, values, minlength=sae.n_latents)
        positions += on[:, shards.special.first_position :, 0].numel()
        if strongest is not None:
            row, position, _ = on.nonzero(as_tuple=True)
            strongest.add(torch.stack([active, windows[row], position]).numpy(), values.numpy())
    return ConceptActivity(counts.double() / positions, sums / counts.clamp_min(1))


def choose_concepts(activity: ConceptActivity, count: int) -> list[Concept]:
    """Up to `count` concepts without words, evenly spread over the ranking by frequency of those that qualify.

    These are active at RAREST to MOST_FREQUENT of the positions.

    Raises:
        CocomixError: fewer than two; one alone would have no control.
    """
    if count < 2:
        raise CocomixError("steering needs at least 2 concepts, each is another's control; raise steering.concepts")
    ranking = ranked_concepts(activity)
    if len(ranking) < 2:
        raise CocomixError(
            f"{len(ranking)} of the SAE's {len(activity.share)} concepts are active in {RAREST:.1%} to"
            f" {MOST_FREQUENT:.0%} of the validation positions, too few to compare; use an SAE with more latents or"
            " fewer dead ones"
        )
    return [_concept(number, activity) for number in _spread(ranking, count)]


def choose_named_concepts(
    activity: ConceptActivity,
    names: Names,
    decode: Callable[[Sequence[int]], str],
    *,
    vocab_size: int,
    count: int,
    among: Container[int] | None = None,
) -> list[Concept]:
    """As `choose_concepts`, of the concepts with distinguishing tokens on which two halves of the training text agree.

    Args:
        decode: text of token ids.
        among: only concepts in this are chosen; None: all may be.

    Raises:
        CocomixError: fewer than two; one alone would have no control.
    """
    if count < 2:
        raise CocomixError("steering needs at least 2 concepts, each is another's control; raise --concepts")
    ids = ids_by_text(decode, vocab_size)
    ranking = [number for number in ranked_concepts(activity) if among is None or number in among]
    usable = {number: words for number in ranking if (words := own_tokens(names.of(number), ids))}
    if len(usable) < 2:
        raise CocomixError(
            f"only {len(usable)} concepts have distinguishing tokens and are neither too rare nor too frequent to"
            " measure; name concepts from more text (the option --tokens), or use an SAE with more latents"
        )
    return [
        _concept(number, activity)._replace(
            name=names.name(number) or f"concept {number}",
            words=usable[number],
            follow=_ids(names.of(number).next_tokens, ids),
        )
        for number in _spread(list(usable), count)
    ]


def ranked_concepts(activity: ConceptActivity) -> list[int]:
    """Concepts that are neither rarer than RAREST nor more frequent than MOST_FREQUENT, the most frequent first."""
    share = activity.share
    order = share.argsort(descending=True, stable=True).tolist()
    return [concept for concept in order if RAREST <= share[concept] <= MOST_FREQUENT]


def derangement(n: int, generator: torch.Generator) -> list[int]:
    """A permutation of 0 to n - 1, drawn at random, that leaves nothing in its place; `n` is at least 2."""
    while True:
        order = torch.randperm(n, generator=generator).tolist()
        if all(place != other for place, other in enumerate(order)):
            return order


def _spread_indices(shards: TokenShards, count: int, seq_len: int) -> torch.Tensor:
    indices = window_subset(shards.n_windows(seq_len), count)
    if not len(indices):
        raise CocomixError(
            f"{shards.folder} has fewer tokens than one window of {seq_len}; add text to that split or lower seq_len"
        )
    return torch.as_tensor(indices)


def _read_windows(shards: TokenShards, windows: torch.Tensor, seq_len: int) -> torch.Tensor:
    return torch.from_numpy(shards.windows(windows.numpy(), seq_len))


def _spread(ranking: list[int], count: int) -> list[int]:
    return [ranking[place] for place in window_subset(len(ranking), count)]


def _concept(number: int, activity: ConceptActivity) -> Concept:
    share, strength = float(activity.share[number]), float(activity.strength[number])
    return Concept(number, f"concept {number}", [], [], share, strength)


def own_tokens(name: ConceptName, ids: dict[str, list[int]]) -> list[int]:
    """Ids of a concept's distinguishing tokens, best first; none where the halves of the text disagree on them.

    Args:
        ids: as `ids_by_text` makes them.
    """
    if name.stability is None or name.stability < STABLE:
        return []
    return _ids(name.next_tokens if name.kind == "next" else name.tokens, ids)


def _ids(tokens: Sequence[TokenScore], ids: dict[str, list[int]]) -> list[int]:
    """Ids of the tokens whose score is close to the best one's."""
    texts = [token.token for token in tokens if token.score >= OF_THE_BEST * tokens[0].score]
    return [token for text in texts for token in ids.get(text, [])]


def ids_by_text(decode: Callable[[Sequence[int]], str], vocab_size: int) -> dict[str, list[int]]:
    """Ids of the tokens that decode to each text; bytes that are no text by themselves are left out."""
    ids: dict[str, list[int]] = {}
    for token in range(vocab_size):
        text = decode([token])
        if NO_TEXT not in text:
            ids.setdefault(text, []).append(token)
    return ids

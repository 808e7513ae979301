"""Which tokens set a concept's positions apart from all positions, whether two halves of the text agree on it, and
where concepts are strongest.

Token v stands at a share p of all positions and at a share q of those where the concept is active; q is drawn towards
p as by PRIOR further positions, so that a token seen once or twice proves little. Its score is q log(q / p), the nats
it adds to the divergence of the concept's tokens from all tokens: high for a token that is both frequent there and
rare elsewhere. Plain log-odds would put any token that never occurs elsewhere first, however seldom it is there.

Pairs of a concept and a token are counted sparsely (`PairCounts`), because nearly all of the C x vocabulary pairs
never occur. `observe` goes through a text with a teacher and its autoencoder; `StrongestPlaces` is the one way to keep
the strongest places of all concepts while a text goes by.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from cocomix.data.shards import TokenShards
from cocomix.evaluation.perplexity import window_subset
from cocomix.model.documents import document_positions
from cocomix.model.teacher import hidden_at
from cocomix.sae.positions import NOTHING, LeftOut
from cocomix.sae.sae import TopKSAE
from cocomix.utils.errors import CocomixError

PENDING_PAIRS = 8_000_000
"""Pairs held before they are counted; 64 MB."""


class PairCounts:
    """Positions at which a concept is active and a token stands, for all pairs that occur.

    Attributes:
        tokens: positions at which each token stands, whatever is active there, int64 `[vocab]`.
    """

    def __init__(self, n_concepts: int, vocab_size: int) -> None:
        self.n_concepts, self.vocab_size = n_concepts, vocab_size
        self.tokens = np.zeros(vocab_size, dtype=np.int64)
        self._keys, self._counts = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        self._pending: list[np.ndarray] = []

    def add(self, concepts: np.ndarray, active: np.ndarray, tokens: np.ndarray) -> None:
        """Count positions: concepts int64 `[n, K]`, those that are active bool `[n, K]`, tokens int64 `[n]`."""
        self.tokens += np.bincount(tokens, minlength=self.vocab_size)
        self._pending.append((concepts * self.vocab_size + tokens[:, None])[active])
        if sum(map(len, self._pending)) > PENDING_PAIRS:
            self._count()

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys (concept * vocabulary + token), ascending, and the positions of each, both int64 `[pairs]`."""
        self._count()
        return self._keys, self._counts

    def concepts(self) -> np.ndarray:
        """Positions at which each concept is active, int64 `[C]`."""
        keys, counts = self.pairs()
        return _sums(keys // self.vocab_size, counts, self.n_concepts)

    def at(self, concepts: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Positions of pairs, int64 of any one shape; 0 for a pair that does not occur."""
        return look_up(*self.pairs(), concepts * self.vocab_size + tokens)

    def __add__(self, other: "PairCounts") -> "PairCounts":
        both = PairCounts(self.n_concepts, self.vocab_size)
        both.tokens = self.tokens + other.tokens
        both._keys, both._counts = _merged(*self.pairs(), *other.pairs())
        return both

    def _count(self) -> None:
        if self._pending:
            new = np.unique(np.concatenate(self._pending), return_counts=True)
            self._keys, self._counts = _merged(self._keys, self._counts, *new)
            self._pending = []


def look_up(keys: np.ndarray, values: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """`values` of the `queries` among ascending `keys`, in the shape of `queries`; 0 for a key that is missing."""
    if not len(keys):
        return np.zeros(queries.shape, dtype=values.dtype)
    places = np.searchsorted(keys, queries).clip(max=len(keys) - 1)
    return np.where(keys[places] == queries, values[places], 0)


def _merged(*keys_and_counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts of two sets of keys as those of their union."""
    a, of_a, b, of_b = keys_and_counts
    keys, place = np.unique(np.concatenate((a, b)), return_inverse=True)
    return keys, _sums(place, np.concatenate((of_a, of_b)), len(keys))


def _sums(groups: np.ndarray, counts: np.ndarray, n_groups: int) -> np.ndarray:
    return np.bincount(groups, weights=counts, minlength=n_groups).astype(np.int64)  # exact below 2^53


PRIOR = 20.0
"""Positions with the tokens of the whole text that each concept is given in advance."""
COMPARED = 10
"""Tokens of each half's ranking that are compared."""


class Contrasts(NamedTuple):
    """Scores of all pairs of a concept and a token that occur."""

    n_concepts: int
    vocab_size: int
    keys: np.ndarray
    """concept * vocabulary + token, ascending, int64 `[pairs]`"""
    scores: np.ndarray
    """nats, 0 where the token is not more frequent than elsewhere, float64 `[pairs]`"""

    def at(self, keys: np.ndarray) -> np.ndarray:
        """Scores of `keys` `[n]`, 0 for a pair that does not occur, float64 `[n]`."""
        return look_up(self.keys, self.scores, keys)


def contrast_scores(pairs: PairCounts) -> Contrasts:
    """Scores of all pairs that were counted."""
    keys, counts = pairs.pairs()
    concept, token = np.divmod(keys, pairs.vocab_size)
    overall = (pairs.tokens / max(1, pairs.tokens.sum()))[token]
    with_concept = (counts + PRIOR * overall) / (pairs.concepts()[concept] + PRIOR)
    scores = (with_concept * np.log(with_concept / overall)).clip(min=0)
    return Contrasts(pairs.n_concepts, pairs.vocab_size, keys, scores)


def best_tokens(contrasts: Contrasts, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` tokens that most distinguish each concept, best first, and their scores, both `[C, count]`.

    Tokens are int64 and -1 where there are no more with a positive score, which is then 0.
    """
    positive = contrasts.scores > 0
    keys, scores = contrasts.keys[positive], contrasts.scores[positive]
    concept, token = np.divmod(keys, contrasts.vocab_size)
    order, rank = ranked(concept, scores)
    chosen = order[rank < count]
    place = concept[chosen], rank[rank < count]
    tokens = np.full((contrasts.n_concepts, count), -1, dtype=np.int64)
    values = np.zeros((contrasts.n_concepts, count))
    tokens[place], values[place] = token[chosen], scores[chosen]
    return tokens, values


def agreement(first: Contrasts, second: Contrasts) -> np.ndarray:
    """How far two halves agree on each concept's tokens, 0 to 1, float64 `[C]`.

    Of the tokens among the best COMPARED of either half: the sum of the smaller score over the sum of the larger.
    """
    keys = np.unique(np.concatenate([_best_keys(first), _best_keys(second)]))
    scores = np.stack([first.at(keys), second.at(keys)])
    concept = keys // first.vocab_size
    smaller, larger = (np.bincount(concept, weights, first.n_concepts) for weights in (scores.min(0), scores.max(0)))
    return np.divide(smaller, larger, out=np.zeros(first.n_concepts), where=larger > 0)


def _best_keys(contrasts: Contrasts) -> np.ndarray:
    tokens, _ = best_tokens(contrasts, COMPARED)
    concept, rank = np.nonzero(tokens >= 0)
    return concept * contrasts.vocab_size + tokens[concept, rank]


def ranked(group: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An order by group and falling value, ties by place, and the rank of each within its group, from 0, both `[n]`."""
    order = np.lexsort((-value, group))
    ordered = group[order]
    return order, np.arange(len(order)) - np.searchsorted(ordered, ordered)


PENDING_STRENGTHS = 500_000
"""Places held before the weaker ones are dropped."""


class StrongestPlaces:
    """The strongest places of each concept, at most one a window; of equal ones the better by ties, then the earlier.

    Args:
        per_concept: places kept of each.
        carried: further numbers that a place brings along.
    """

    def __init__(self, per_concept: int, carried: int = 0) -> None:
        self._per_concept = per_concept
        self._places = [np.empty((3 + carried, 0), dtype=np.int64)]
        self._strengths, self._ties = [np.empty(0)], [np.empty(0)]

    def add(self, places: np.ndarray, strengths: np.ndarray, ties: np.ndarray | None = None) -> None:
        """Consider further places.

        Args:
            places: int64 `[3 + carried, n]`, whose first rows are concept, window and position.
            strengths: `[n]`.
            ties: what decides between equal strengths, larger first, `[n]`; None: nothing does.
        """
        self._places.append(places)
        self._strengths.append(strengths)
        self._ties.append(np.zeros(len(strengths)) if ties is None else ties)
        if sum(map(len, self._strengths[1:])) > PENDING_STRENGTHS:
            self._drop()

    def found(self) -> tuple[np.ndarray, np.ndarray]:
        """The places kept, int64 `[3 + carried, places]`, and their strengths, float64 `[places]`.

        They are in order of concept, strongest first.
        """
        self._drop()
        return self._places[0], self._strengths[0]

    def _drop(self) -> None:
        if len(self._strengths) == 1:
            return
        places = np.concatenate(self._places, axis=1)
        strengths, ties = np.concatenate(self._strengths), np.concatenate(self._ties)
        order = np.lexsort((-ties, -strengths, places[1], places[0]))
        windows = places[:2, order]  # of each concept
        first = np.ones(len(order), dtype=bool)
        first[1:] = (windows[:, 1:] != windows[:, :-1]).any(0)
        order = order[first]
        order = order[np.argsort(-ties[order], kind="stable")]
        by_strength, rank = ranked(places[0, order], strengths[order])
        kept = order[by_strength[rank < self._per_concept]]
        self._places, self._strengths, self._ties = [places[:, kept]], [strengths[kept]], [ties[kept]]


BATCH = 16
"""Windows of a forward pass."""
ITSELF, NEXT = "token", "next"
"""What is counted: the token a concept is active at, and the one after it."""


class Occurrences:
    """Counts and strongest places of C concepts in windows of tokens.

    Attributes:
        halves: counts of `ITSELF` and `NEXT`, in even and in odd windows.
        windows, positions: seen so far.
    """

    def __init__(self, n_concepts: int, vocab_size: int, *, passages: int = 5) -> None:
        self.n_concepts, self.vocab_size = n_concepts, vocab_size
        kinds = (ITSELF, NEXT)
        self.halves = {kind: (PairCounts(n_concepts, vocab_size), PairCounts(n_concepts, vocab_size)) for kind in kinds}
        self.windows = self.positions = 0
        self._strongest = StrongestPlaces(passages)

    def add(self, windows: np.ndarray, ids: np.ndarray, concepts: np.ndarray, values: np.ndarray) -> None:
        """Count some windows.

        Args:
            windows: their numbers in the shards, int64 `[windows]`.
            ids: tokens, int64 `[windows, seq]`.
            concepts: int64 `[windows, seq, K]`.
            values: activations `[windows, seq, K]`; one that is not positive is none.
        """
        k = concepts.shape[-1]
        active = values > 0
        odd = (self.windows + np.arange(len(ids))) % 2
        for half in (0, 1):
            in_half = odd == half
            rows, on, tokens = concepts[in_half], active[in_half], ids[in_half]
            self.halves[ITSELF][half].add(rows.reshape(-1, k), on.reshape(-1, k), tokens.ravel())
            before = rows[:, :-1].reshape(-1, k), on[:, :-1].reshape(-1, k)
            self.halves[NEXT][half].add(*before, tokens[:, 1:].ravel())
        self.windows += len(ids)
        self.positions += ids.size
        row, position, _ = np.nonzero(active)
        self._strongest.add(np.stack([concepts[active], windows[row], position]), values[active])

    def counts(self) -> np.ndarray:
        """Positions at which each concept is active in either half, int64 `[2, C]`."""
        return np.stack([half.concepts() for half in self.halves[ITSELF]])

    def strongest(self) -> tuple[np.ndarray, np.ndarray]:
        """The most active places of all concepts, at most one a window: int64 `[3, places]`, strengths `[places]`.

        The rows are concept, window and position; places are in order of concept, strongest first.
        """
        return self._strongest.found()


@torch.no_grad()
def observe(
    teacher: PreTrainedModel,
    sae: TopKSAE,
    shards: TokenShards,
    *,
    layer: int,
    seq_len: int,
    tokens: int,
    left_out: LeftOut = NOTHING,
    progress: Callable[..., Any] | None = None,
) -> Occurrences:
    """Encode about `tokens` tokens of `shards`, in evenly spread windows of `seq_len`.

    Args:
        layer: the teacher's block (0-based) after which the SAE reads.
        left_out: positions at which no concept counts.
        progress: called with the windows done, and how many there are.

    Raises:
        CocomixError: the shards hold fewer than two windows.
    """
    chosen = window_subset(shards.n_windows(seq_len), max(2, -(-tokens // seq_len)))
    if len(chosen) < 2:
        raise CocomixError(
            f"{shards.folder} has fewer tokens than two windows of {seq_len}, so no name could be checked; add text"
        )
    seen = Occurrences(sae.n_latents, shards.vocab_size)
    device = next(teacher.parameters()).device
    for start in range(0, len(chosen), BATCH):
        windows = chosen[start : start + BATCH]
        ids = shards.windows(windows, seq_len)
        read = torch.from_numpy(ids).to(device)
        hidden, positions = hidden_at(teacher, read, layer), document_positions(teacher, read)
        latents = sae.encode(hidden)
        values = latents.values.cpu().double().numpy()
        values[~left_out.kept(hidden, positions=positions).cpu().numpy()] = 0
        values[~LeftOut(shards.special.first_position).kept(hidden, positions=positions).cpu().numpy()] = 0
        seen.add(windows, ids, latents.ids.cpu().numpy(), values)
        if progress is not None:
            progress(seen.windows, len(chosen), {})
    return seen

"""Which tokens set a concept's positions apart from all positions, and whether two halves of the text agree on it.

Token v stands at a share p of all positions and at a share q of those where the concept is active; q is drawn towards
p as by PRIOR further positions, so that a token seen once or twice proves little. Its score is q log(q / p), the nats
it adds to the divergence of the concept's tokens from all tokens: high for a token that is both frequent there and
rare elsewhere. Plain log-odds would put any token that never occurs elsewhere first, however seldom it is there.
"""

from typing import NamedTuple

import numpy as np

from cocomix.analysis.counts import PairCounts, looked_up

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
        return looked_up(self.keys, self.scores, keys)


def contrasts(pairs: PairCounts) -> Contrasts:
    """Scores of all pairs that were counted."""
    keys, counts = pairs.pairs()
    concept, token = np.divmod(keys, pairs.vocab_size)
    elsewhere = (pairs.tokens / max(1, pairs.tokens.sum()))[token]
    here = (counts + PRIOR * elsewhere) / (pairs.concepts()[concept] + PRIOR)
    scores = (here * np.log(here / elsewhere)).clip(min=0)
    return Contrasts(pairs.n_concepts, pairs.vocab_size, keys, scores)


def best_tokens(found: Contrasts, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """The `wanted` tokens that most distinguish each concept, best first, and their scores, both `[C, wanted]`.

    Tokens are int64 and -1 where there are no more with a positive score, which is then 0.
    """
    positive = found.scores > 0
    keys, scores = found.keys[positive], found.scores[positive]
    concept, token = np.divmod(keys, found.vocab_size)
    order, rank = ranked(concept, scores)
    chosen = order[rank < wanted]
    place = concept[chosen], rank[rank < wanted]
    tokens = np.full((found.n_concepts, wanted), -1, dtype=np.int64)
    values = np.zeros((found.n_concepts, wanted))
    tokens[place], values[place] = token[chosen], scores[chosen]
    return tokens, values


def agreement(first: Contrasts, second: Contrasts) -> np.ndarray:
    """How far two halves agree on each concept's tokens, 0 to 1, float64 `[C]`.

    Of the tokens among the best COMPARED of either half: the sum of the smaller score over the sum of the larger.
    """
    keys = np.unique(np.concatenate([_best_keys(first), _best_keys(second)]))
    scores = np.stack([first.at(keys), second.at(keys)])
    concept = keys // first.vocab_size
    smaller, larger = (np.bincount(concept, one, first.n_concepts) for one in (scores.min(0), scores.max(0)))
    return np.divide(smaller, larger, out=np.zeros(first.n_concepts), where=larger > 0)


def _best_keys(found: Contrasts) -> np.ndarray:
    tokens, _ = best_tokens(found, COMPARED)
    concept, rank = np.nonzero(tokens >= 0)
    return concept * found.vocab_size + tokens[concept, rank]


def ranked(group: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An order by group and falling value, ties by place, and the rank of each within its group, from 0, both `[n]`."""
    order = np.lexsort((-value, group))
    ordered = group[order]
    return order, np.arange(len(order)) - np.searchsorted(ordered, ordered)

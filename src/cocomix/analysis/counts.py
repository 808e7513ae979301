"""How often a concept and a token meet: counted sparsely, since nearly all of the C x vocabulary pairs never do."""

import numpy as np

PENDING = 8_000_000
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
        if sum(map(len, self._pending)) > PENDING:
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
        return looked_up(*self.pairs(), concepts * self.vocab_size + tokens)

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


def looked_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """`values` of the `wanted` among ascending `keys`, in the shape of `wanted`; 0 for what is not there."""
    if not len(keys):
        return np.zeros(wanted.shape, dtype=values.dtype)
    places = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)


def _merged(*keys_and_counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts of two sets of keys as those of their union."""
    a, of_a, b, of_b = keys_and_counts
    keys, place = np.unique(np.concatenate((a, b)), return_inverse=True)
    return keys, _sums(place, np.concatenate((of_a, of_b)), len(keys))


def _sums(groups: np.ndarray, counts: np.ndarray, n_groups: int) -> np.ndarray:
    return np.bincount(groups, weights=counts, minlength=n_groups).astype(np.int64)  # exact below 2^53

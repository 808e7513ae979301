"""Where concepts are strongest, kept while a text goes by."""

import numpy as np

from cocomix.analysis.token_statistics import ranked

PENDING = 500_000
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
        """Take in places.

        Args:
            places: int64 `[3 + carried, n]`, whose first rows are concept, window and position.
            strengths: `[n]`.
            ties: what decides between equal strengths, larger first, `[n]`; None: nothing does.
        """
        self._places.append(places)
        self._strengths.append(strengths)
        self._ties.append(np.zeros(len(strengths)) if ties is None else ties)
        if sum(map(len, self._strengths[1:])) > PENDING:
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
        of = places[:2, order]
        first = np.ones(len(order), dtype=bool)
        first[1:] = (of[:, 1:] != of[:, :-1]).any(0)
        order = order[first]
        order = order[np.argsort(-ties[order], kind="stable")]
        by_strength, rank = ranked(places[0, order], strengths[order])
        kept = order[by_strength[rank < self._per_concept]]
        self._places, self._strengths, self._ties = [places[:, kept]], [strengths[kept]], [ties[kept]]

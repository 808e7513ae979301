"""Where concepts are strongest, kept while a text goes by."""

import numpy as np

from cocomix.names.contrast import ranked

PENDING = 500_000
"""Places held before the weaker ones are dropped."""


class StrongestPlaces:
    """The strongest places of each concept, at most one a window; of equal ones the earlier.

    Args:
        per_concept: places kept of each.
        carried: further numbers that a place brings along.
    """

    def __init__(self, per_concept: int, carried: int = 0) -> None:
        self._per_concept = per_concept
        self._places = [np.empty((3 + carried, 0), dtype=np.int64)]
        self._strengths = [np.empty(0)]

    def add(self, places: np.ndarray, strengths: np.ndarray) -> None:
        """Take in places: int64 `[3 + carried, n]`, whose first rows are concept, window and position; and `[n]`."""
        self._places.append(places)
        self._strengths.append(strengths)
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
        places, strengths = np.concatenate(self._places, axis=1), np.concatenate(self._strengths)
        order = np.lexsort((-strengths, places[1], places[0]))
        places, strengths = places[:, order], strengths[order]
        first = np.ones(len(strengths), dtype=bool)
        first[1:] = (places[:2, 1:] != places[:2, :-1]).any(0)
        places, strengths = places[:, first], strengths[first]
        order, rank = ranked(places[0], strengths)
        kept = order[rank < self._per_concept]
        self._places, self._strengths = [places[:, kept]], [strengths[kept]]

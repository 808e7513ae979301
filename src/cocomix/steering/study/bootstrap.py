"""Means over seeds and concepts, and how far they would move with other ones.

Seeds and concepts are drawn anew, with replacement and independently of each other, and everything is computed from
the same draws: so the interval of a difference between two methods is that of paired data. Three seeds say little
about the spread over seeds, and the intervals are then a little narrow; with one seed they are over concepts alone.
"""

from typing import Any

import numpy as np

DRAWS = 2000
INTERVAL = (2.5, 97.5)
"""Percentiles of the 95 % interval."""


class Resampling:
    """How often each seed and each concept is in each draw; the first draw is the data themselves.

    Attributes:
        seeds, concepts: weights that sum to 1 in each draw, float64 `[1 + DRAWS, seeds]` and `[1 + DRAWS, concepts]`.
    """

    def __init__(self, n_seeds: int, n_concepts: int, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.seeds, self.concepts = (_weights(generator, n) for n in (n_seeds, n_concepts))

    def means(self, values: np.ndarray) -> np.ndarray:
        """Of `values` `[seeds, concepts, ...]`: the mean of each draw, `[1 + DRAWS, ...]`."""
        return np.einsum("rs,rc,sc...->r...", self.seeds, self.concepts, values, optimize=True)


def _weights(generator: np.random.Generator, n: int) -> np.ndarray:
    drawn = generator.multinomial(n, np.full(n, 1 / n), DRAWS)
    return np.concatenate([np.ones((1, n)), drawn]) / n


def interval(draws: np.ndarray) -> dict[str, Any]:
    """`mean` of the data, `low` and `high` of the 95 % interval, from `[1 + DRAWS]` as `Resampling.means` has them."""
    low, high = np.percentile(draws[1:], INTERVAL)
    return {"mean": float(draws[0]), "low": float(low), "high": float(high)}

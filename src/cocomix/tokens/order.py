"""Which windows make up which batch: a pure function of (seed, step), so resuming needs no iterator state."""

from functools import lru_cache

import numpy as np


def batch_order(n_windows: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Window indices of the batch at `step` (0-based), int64 `[batch_size]`.

    Each epoch is its own permutation of all windows, and a batch may span two epochs, so every window is seen
    equally often. The order depends on the seed alone, not on the number of processes.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    epochs, places = np.divmod(positions, n_windows)
    order = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        order[chosen] = _permutation(n_windows, seed, int(epoch))[places[chosen]]
    return order


@lru_cache(maxsize=4)
def _permutation(n_windows: int, seed: int, epoch: int) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch])))
    return generator.permutation(n_windows)

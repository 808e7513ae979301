"""Which windows make up which batch: a pure function of (seed, step), so resuming needs no iterator state."""

from functools import lru_cache

import numpy as np

TABLE = 1 << 24
"""Up to so many windows an epoch's permutation is a table (64 MB at most); above, it is computed place by place."""
ROUNDS = 8


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
        if n_windows <= TABLE:
            order[chosen] = _permutation(n_windows, seed, int(epoch))[places[chosen]]
        else:
            order[chosen] = permuted(places[chosen], n_windows, seed, int(epoch))
    return order


@lru_cache(maxsize=2)  # a batch spans two epochs at most, one after the other
def _permutation(n_windows: int, seed: int, epoch: int) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch])))
    return generator.permutation(n_windows).astype(np.uint32)


def permuted(places: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """Where a permutation of 0..n-1 takes `places`, int64, without a table.

    A Feistel network permutes the numbers of the next even number of bits, whatever its round function (Luby and
    Rackoff 1988); a number that lands outside 0..n-1 goes through it again until it is inside (cycle walking, Black
    and Rogaway 2002), which four times at most on average suffices for.

    Args:
        places: int64, 0..n-1, any shape.
    """
    half = np.uint64((max(n - 1, 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.random.SeedSequence([seed, epoch]).generate_state(ROUNDS, np.uint64)
    images = places.astype(np.uint64).ravel()
    outside = np.arange(images.size)
    while outside.size:
        left, right = images[outside] >> half, images[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        images[outside] = (left << half) | right
        outside = outside[images[outside] >= n]
    return images.astype(np.int64).reshape(places.shape)


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every input bit changes half the output bits."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))

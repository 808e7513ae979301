"""Dividing the batches of a measurement among the processes of a launch."""

from collections.abc import Iterator

import numpy as np

from cocomix.utils.processes import rank, world_size


def batches(windows: np.ndarray, size: int, *, shared: bool) -> Iterator[tuple[np.ndarray, bool]]:
    """Batches of at most `size` windows for this process, and whether each counts.

    Shared, every process gets equally many, since a forward pass of a sharded model is everybody's: who has none left
    repeats the first one, which then does not count. Else each process gets all of them.
    """
    starts = range(0, len(windows), size)
    mine, step = (rank(), world_size()) if shared else (0, 1)
    for turn in range(0, len(starts), step):
        counts = turn + mine < len(starts)
        start = starts[turn + mine if counts else 0]
        yield windows[start : start + size], counts

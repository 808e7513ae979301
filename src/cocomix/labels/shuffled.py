"""Labels moved to other positions, a control: the same labels as often as before, and nothing to do with the text."""

import numpy as np

from cocomix.labels.store import LabelReader


class ShuffledLabels(LabelReader):
    """The labels of another source, each window's those of another window, at positions in another order.

    Both orders are fixed, and follow from `seed` and the window's number alone: every epoch, every process and a
    resumed training see the same. Labels of one position stay together.

    Args:
        labels: the source.
        n_windows: windows of the split.
        seed: of the orders.
    """

    def __init__(self, labels: LabelReader, n_windows: int, seed: int = 0) -> None:
        self.labels, self.seed, self.n_labels = labels, seed, labels.n_labels
        self.where = f"{labels.where}, shuffled"
        self.window_of = np.random.default_rng(seed).permutation(n_windows)

    def begin_step(self, step: int, total: int) -> None:
        self.labels.begin_step(step, total)

    def read(self, windows: np.ndarray, seq_len: int) -> np.ndarray:
        found = self.labels.read(self.window_of[windows], seq_len)
        orders = [np.random.default_rng((self.seed, 1, int(window))).permutation(seq_len) for window in windows]
        return np.stack([one[order] for one, order in zip(found, orders, strict=True)])

    def labelled(self, windows: np.ndarray) -> np.ndarray:
        return self.labels.labelled(self.window_of[windows])

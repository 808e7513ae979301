"""What training and evaluation need of labels, wherever they come from: a store, or the concept model itself."""

from abc import ABC, abstractmethod

import numpy as np


class LabelReader(ABC):
    """Labels of the windows of one token stream.

    Attributes:
        n_labels: labels a position, K_attr.
        where: what to call them in a message.
    """

    n_labels: int
    where: str

    @abstractmethod
    def read(self, windows: np.ndarray, seq_len: int) -> np.ndarray:
        """Labels of `windows`, int64 `[len, seq_len, n_labels]`, best first, -100 where there are none.

        Raises:
            CocomixError: `seq_len` is not the length the labels are for.
        """

    @abstractmethod
    def labelled(self, windows: np.ndarray) -> np.ndarray:
        """Number of labelled positions in each of `windows`, int64 `[len]`.

        All processes of a launch ask for the same windows at the same time, before each reads its share of them.
        """

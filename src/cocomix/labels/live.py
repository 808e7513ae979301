"""Labels made while they are needed: no store, the same labels."""

import numpy as np
import torch

from cocomix.data.shards import TokenShards
from cocomix.labels.label_reader import LabelReader
from cocomix.labels.labeler import ConceptLabeller
from cocomix.utils.distributed import sum_over_processes
from cocomix.utils.errors import CocomixError
from cocomix.utils.processes import rank, world_size


class LiveLabels(LabelReader):
    """Labels by `labeller`, which has one sign, of windows of `shards`, made anew each time they are asked for.

    Asked how many labels a batch has, the processes of a launch label their shares of it, which are kept until the
    next batch: reading them then costs nothing more.
    """

    def __init__(self, shards: TokenShards, labeller: ConceptLabeller, *, seq_len: int) -> None:
        self.shards, self.labeller, self.seq_len = shards, labeller, seq_len
        self.n_labels = labeller.n_labels
        (self.sign,) = labeller.names
        self.where = f"the live labels {labeller.rule}/{self.sign}"
        self._held: dict[int, np.ndarray] = {}

    def read(self, windows: np.ndarray, seq_len: int) -> np.ndarray:
        if seq_len != self.seq_len:
            raise CocomixError(f"{self.where} are for windows of {self.seq_len} tokens, not {seq_len}")
        made = {window: self._held[window] for window in windows.tolist() if window in self._held}
        missing = np.array([window for window in windows.tolist() if window not in made], dtype=np.int64)
        made |= dict(zip(missing.tolist(), self._make(missing), strict=True))
        return np.stack([made[window] for window in windows.tolist()])

    def labelled(self, windows: np.ndarray) -> np.ndarray:
        shares = np.array_split(np.arange(len(windows)), world_size())
        mine = shares[rank()]
        made = self._make(windows[mine])
        self._held = dict(zip(windows[mine].tolist(), made, strict=True))
        counts = torch.zeros(len(windows), dtype=torch.int64)
        counts[torch.from_numpy(mine)] = torch.from_numpy((made[..., 0] >= 0).sum(-1))
        return sum_over_processes(counts).numpy()

    def _make(self, windows: np.ndarray) -> np.ndarray:
        if not len(windows):
            return np.empty((0, self.seq_len, self.n_labels), dtype=np.int64)
        ids = torch.from_numpy(self.shards.windows(windows, self.seq_len))
        return self.labeller(ids)[self.sign].targets().numpy()

"""Batches from token shards and, where there are any, their concept labels."""

import time

import numpy as np
import torch

from cocomix.data.shards import TokenShards
from cocomix.labels.store import LabelReader, LabelStore


class BatchSource:
    """Reads windows, their labels and the teacher's logits; memory-mapped, so a step copies just what it needs.

    Args:
        labels: concept labels, stored or live, if the objective reads them.
        logits: the teacher's most likely tokens and their log-probabilities, if it reads those.

    Attributes:
        waited: seconds spent reading so far, making live labels included.
    """

    def __init__(
        self, shards: TokenShards, seq_len: int, labels: LabelReader | None = None, logits: LabelStore | None = None
    ) -> None:
        self.shards, self.seq_len, self.labels, self.logits = shards, seq_len, labels, logits
        self.n_windows = shards.n_windows(seq_len)
        self.waited = 0.0

    def label_density(self, indices: np.ndarray) -> float | None:
        """Labelled positions a window over windows `indices`; None where there are no labels.

        All processes of a launch ask for the whole batch at the same time; each then reads its share of it.
        """
        if self.labels is None:
            return None
        started = time.perf_counter()
        density = float(self.labels.labelled(indices).mean())
        self.waited += time.perf_counter() - started
        return density

    def __call__(
        self, indices: np.ndarray, device: torch.device, label_density: float | None = None
    ) -> dict[str, torch.Tensor]:
        """`input_ids` int64 `[batch, seq]`; with labels also `concept_labels` int64 `[batch, seq, k]`, -100: none.

        With stored logits also `teacher_ids` int64 and `teacher_log_probs` float32, `[batch, seq, k]`.

        Args:
            label_density: that of the whole batch, if `indices` are a part of it. `concept_weight` then makes up for
                labels that are spread unevenly: the part's own density over the batch's.
        """
        started = time.perf_counter()
        batch = {"input_ids": torch.from_numpy(self.shards.windows(indices, self.seq_len))}
        if self.labels is not None:
            ids = self.labels.read(indices, self.seq_len)
            batch["concept_labels"] = torch.from_numpy(ids)
            batch["concept_weight"] = torch.tensor(1.0)
            if label_density is not None:
                here = (ids[..., 0] >= 0).sum() / len(indices)
                weight = here / label_density if label_density else 0.0
                batch["concept_weight"] = torch.tensor(weight, dtype=torch.float32)
        if self.logits is not None:
            batch["teacher_ids"] = torch.from_numpy(self.logits.read(indices, self.seq_len))
            batch["teacher_log_probs"] = torch.from_numpy(self.logits.read_scores(indices, self.seq_len))
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        self.waited += time.perf_counter() - started
        return batch

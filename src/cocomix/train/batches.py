"""Training batches of tokens, concept labels and teacher logits."""

import time

import numpy as np
import torch

from cocomix.data.document_windows import DocumentWindows
from cocomix.data.shards import TokenShards
from cocomix.labels.store import LabelReader, LabelStore


class BatchSource:
    """Reads windows of tokens, their labels and the teacher's logits; memory-mapped, so a step copies only its own.

    Args:
        labels: concept labels, from a store or computed live, if the objective needs them.
        logits: the teacher's most likely tokens and their log-probabilities, if the objective needs them.

    Attributes:
        waited: seconds spent reading so far, including the computation of live labels.
    """

    def __init__(
        self,
        shards: TokenShards | DocumentWindows,
        seq_len: int,
        labels: LabelReader | None = None,
        logits: LabelStore | None = None,
    ) -> None:
        self.shards, self.seq_len, self.labels, self.logits = shards, seq_len, labels, logits
        self.n_windows = shards.n_windows(seq_len)
        self.waited = 0.0

    def begin_step(self, step: int, total: int) -> None:
        """Called before the batches of a step, 0-based, of a training of `total` steps are read."""
        if self.labels is not None:
            self.labels.begin_step(step, total)

    def label_density(self, indices: np.ndarray) -> float | None:
        """Labelled positions per window over windows `indices`; None without labels.

        All processes call it with the whole batch at the same time; each then reads its share of the batch.
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
        """Batch of windows `indices`: `input_ids` int64 `[batch, seq]`.

        With labels also `concept_labels` int64 `[batch, seq, k]`, -100 where there are none, and where these have
        weights `concept_label_weights` float32 of the same shape. With stored logits also
        `teacher_ids` int64 and `teacher_log_probs` float32, `[batch, seq, k]`. Where windows are padded also `padding`,
        bool `[batch, seq]`.

        Args:
            label_density: that of the whole batch, if `indices` are a part of it. `concept_weight` is then the density
                of the part over that of the batch, which corrects for labels that are distributed unevenly.
        """
        started = time.perf_counter()
        batch = {"input_ids": torch.from_numpy(self.shards.windows(indices, self.seq_len))}
        if isinstance(self.shards, DocumentWindows):
            lengths = self.shards.bounds(indices).lengths
            batch["padding"] = torch.from_numpy(np.arange(self.seq_len) >= lengths[:, None])
        if self.labels is not None:
            ids = self.labels.read(indices, self.seq_len)
            batch["concept_labels"] = torch.from_numpy(ids)
            weights = self.labels.weights(indices, ids)
            if weights is not None:
                batch["concept_label_weights"] = torch.from_numpy(weights)
            batch["concept_weight"] = torch.tensor(1.0)
            if label_density is not None:
                part_density = (ids[..., 0] >= 0).sum() / len(indices)
                weight = part_density / label_density if label_density else 0.0
                batch["concept_weight"] = torch.tensor(weight, dtype=torch.float32)
        if self.logits is not None:
            batch["teacher_ids"] = torch.from_numpy(self.logits.read(indices, self.seq_len))
            batch["teacher_log_probs"] = torch.from_numpy(self.logits.read_scores(indices, self.seq_len))
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        self.waited += time.perf_counter() - started
        return batch

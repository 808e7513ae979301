"""Concept recall: the share of the teacher's concept labels that a student predicts; and their cross entropy."""

from typing import Any

import numpy as np
import torch

from cocomix.data.shards import TokenShards
from cocomix.evaluation.perplexity import sharded_batches, window_subset
from cocomix.labels.predictability import concept_counts, log_marginal, looked_up, mean_over_labels
from cocomix.labels.store import LabelReader
from cocomix.utils.distributed import sum_over_processes
from cocomix.utils.env import autocast
from cocomix.utils.errors import CocomixError


@torch.no_grad()
def concept_recall(
    model: Any,
    shards: TokenShards,
    labels: LabelReader,
    *,
    seq_len: int,
    batch_size: int,
    max_windows: int | None = None,
    precision: str = "fp32",
    sharded: bool = False,
) -> dict[str, float]:
    """Recall@K_attr: share of a position's K_attr labels that are among the student's K_attr largest concept logits.

    Args:
        precision: "fp32", or "bf16" for autocast.
        sharded: the processes of a launch divide the windows. All must call this, and all get the result.

    Returns:
        `recall`, `baseline` (recall of always predicting the K_attr most frequent labels of the same positions) and
        `positions` (labelled positions counted).

    Raises:
        CocomixError: no position has labels.
    """
    device = next(model.parameters()).device
    windows = window_subset(shards.n_windows(seq_len), max_windows)
    totals = torch.zeros(2, dtype=torch.int64)  # hits, positions
    frequency = torch.zeros(model.config.num_concepts, dtype=torch.int64)
    k = labels.n_labels
    for indices, counts in sharded_batches(windows, batch_size, sharded=sharded):
        target = torch.from_numpy(labels.read(indices, seq_len)).to(device)
        ids = torch.from_numpy(shards.windows(indices, seq_len)).to(device)
        with autocast(device, precision):
            logits = model(input_ids=ids, use_cache=False).concept_logits
        valid = (target >= 0).all(-1) & counts
        predicted = logits[valid].topk(k, dim=-1).indices
        hits = (predicted[:, :, None] == target[valid][:, None, :]).sum()
        totals += torch.stack((hits, valid.sum())).cpu()
        frequency += torch.bincount(target[valid].flatten(), minlength=len(frequency)).cpu()
    if sharded:
        totals, frequency = sum_over_processes(totals), sum_over_processes(frequency)
    hits, positions = (int(total) for total in totals)
    if not positions:
        raise CocomixError(f"no position of {labels.where} is labelled; lower the labels' k or use another rule")
    n_labels = positions * k
    return {
        "recall": hits / n_labels,
        "baseline": int(frequency.topk(min(k, len(frequency))).values.sum()) / n_labels,
        "positions": positions,
    }


@torch.no_grad()
def concept_nats(
    model: Any,
    shards: TokenShards,
    labels: LabelReader,
    counts: np.ndarray,
    *,
    seq_len: int,
    batch_size: int,
    max_windows: int | None = None,
) -> dict[str, Any]:
    """Cross entropy of concept labels under a student's prediction and under their marginal, in nats a label.

    Args:
        counts: how often each concept is a label of the training text (`training_counts`), int64 `[C]`.

    Returns:
        `concept_loss`, `marginal` (of always predicting the frequencies in the training text), `nats` (marginal -
        concept_loss) and `interval` (its 95 % bootstrap interval over windows).

    Raises:
        CocomixError: no position has labels.
    """
    device = next(model.parameters()).device
    marginal = log_marginal(counts)
    predicted, expected, targets, numbers = [], [], [], []
    for indices, _ in sharded_batches(window_subset(shards.n_windows(seq_len), max_windows), batch_size, sharded=False):
        read = labels.read(indices, seq_len)
        logits = model(input_ids=torch.from_numpy(shards.windows(indices, seq_len)).to(device), use_cache=False)
        scores = logits.concept_logits.float()
        chosen = scores.gather(-1, torch.from_numpy(np.maximum(read, 0)).to(device))
        log_probs = (chosen - scores.logsumexp(-1, keepdim=True)).double().cpu().numpy()
        used = (read >= 0).any(-1)
        targets.append(read[used])
        predicted.append(np.where(read >= 0, log_probs, 0.0)[used])
        expected.append(looked_up(marginal, read[used]))
        numbers.append(np.broadcast_to(indices[:, None], used.shape)[used])
    of_labels = np.concatenate(targets)
    if not len(of_labels):
        raise CocomixError(f"no position of {labels.where} is labelled; lower the labels' k or use another rule")
    by_student, by_marginal = np.concatenate(predicted), np.concatenate(expected)
    n_labels = (of_labels >= 0).sum()
    gain = mean_over_labels(by_student - by_marginal, of_labels, np.concatenate(numbers))
    return {
        "concept_loss": -float(by_student.sum() / n_labels),
        "marginal": -float(by_marginal.sum() / n_labels),
        "nats": gain.mean,
        "interval": [gain.low, gain.high],
    }


def training_counts(
    labels: LabelReader, n_windows: int, n_concepts: int, *, seq_len: int, max_windows: int = 1024
) -> np.ndarray:
    """How often each concept is a label in evenly spread training windows, int64 `[C]`."""
    counts = np.zeros(n_concepts, dtype=np.int64)
    for indices in np.array_split(chosen := window_subset(n_windows, max_windows), -(-len(chosen) // 64)):
        counts += concept_counts(labels.read(indices, seq_len), n_concepts)
    return counts

"""Concept recall: the share of the teacher's concept labels that a student predicts."""

from typing import Any

import torch

from cocomix.data.shards import TokenShards
from cocomix.evaluation.perplexity import sharded_batches, window_subset
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

"""How many of the teacher's concept labels a student predicts."""

from typing import Any

import torch

from cocomix.data.shards import TokenShards
from cocomix.evaluation.perplexity import batches, window_subset
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
    shared: bool = False,
) -> dict[str, float]:
    """recall@K_attr: share of a position's K_attr labels among the student's K_attr largest concept logits.

    Args:
        precision: "fp32", or "bf16" for autocast.
        shared: the processes of a launch divide the windows; all must call, and all get the result.

    Returns:
        `recall`, `baseline` (recall of always naming the K_attr most frequent labels of the same positions) and
        `positions` (labelled positions counted).
    """
    device = next(model.parameters()).device
    windows = window_subset(shards.n_windows(seq_len), max_windows)
    found = torch.zeros(2, dtype=torch.int64)  # hits, positions
    frequency = torch.zeros(model.config.num_concepts, dtype=torch.int64)
    k = labels.n_labels
    for part, counts in batches(windows, batch_size, shared=shared):
        truth = torch.from_numpy(labels.read(part, seq_len)).to(device)
        ids = torch.from_numpy(shards.windows(part, seq_len)).to(device)
        with autocast(device, precision):
            logits = model(input_ids=ids, use_cache=False).concept_logits
        valid = (truth >= 0).all(-1) & counts
        predicted = logits[valid].topk(k, dim=-1).indices
        hits = (predicted[:, :, None] == truth[valid][:, None, :]).sum()
        found += torch.stack((hits, valid.sum())).cpu()
        frequency += torch.bincount(truth[valid].flatten(), minlength=len(frequency)).cpu()
    if shared:
        found, frequency = sum_over_processes(found), sum_over_processes(frequency)
    hits, positions = (int(one) for one in found)
    if not positions:
        raise CocomixError(f"no position of {labels.where} is labelled; lower the labels' k or use another rule")
    named = positions * k
    return {
        "recall": hits / named,
        "baseline": int(frequency.topk(min(k, len(frequency))).values.sum()) / named,
        "positions": positions,
    }

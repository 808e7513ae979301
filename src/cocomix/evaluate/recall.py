"""How many of the teacher's concept labels a student predicts."""

from typing import Any

import numpy as np
import torch

from cocomix.concepts.label_reader import LabelReader
from cocomix.errors import CocomixError
from cocomix.evaluate.perplexity import window_subset
from cocomix.tokens import TokenShards


@torch.no_grad()
def concept_recall(
    model: Any,
    shards: TokenShards,
    labels: LabelReader,
    *,
    seq_len: int,
    batch_size: int,
    max_windows: int | None = None,
) -> dict[str, float]:
    """recall@K_attr: share of a position's K_attr labels among the student's K_attr largest concept logits.

    Returns:
        `recall`, `baseline` (recall of always naming the K_attr most frequent labels of the same positions) and
        `positions` (labelled positions counted).
    """
    device = next(model.parameters()).device
    windows = window_subset(shards.n_windows(seq_len), max_windows)
    hits, positions = 0, 0
    frequency = np.zeros(model.config.num_concepts, dtype=np.int64)
    k = labels.n_labels
    for start in range(0, len(windows), batch_size):
        part = windows[start : start + batch_size]
        truth = torch.from_numpy(labels.read(part, seq_len)).to(device)
        ids = torch.from_numpy(shards.windows(part, seq_len)).to(device)
        logits = model(input_ids=ids, use_cache=False).concept_logits
        valid = (truth >= 0).all(-1)
        predicted = logits[valid].topk(k, dim=-1).indices
        hits += int((predicted[:, :, None] == truth[valid][:, None, :]).sum())
        positions += int(valid.sum())
        frequency += np.bincount(truth[valid].flatten().cpu().numpy(), minlength=len(frequency))
    if not positions:
        raise CocomixError(f"no position of {labels.where} is labelled; lower the labels' k or use another rule")
    named = positions * k
    return {
        "recall": hits / named,
        "baseline": float(np.sort(frequency)[-k:].sum()) / named,
        "positions": positions,
    }

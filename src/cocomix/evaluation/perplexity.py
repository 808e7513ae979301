"""Perplexity over fixed windows, summed in float64."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from cocomix.data.shards import TokenShards
from cocomix.evaluation.shares import batches
from cocomix.utils.distributed import sum_over_processes
from cocomix.utils.errors import CocomixError
from cocomix.utils.precision import autocast


def window_subset(n_windows: int, wanted: int | None) -> np.ndarray:
    """All windows, or `wanted` of them spread evenly, int64."""
    if wanted is None or wanted >= n_windows:
        return np.arange(n_windows, dtype=np.int64)
    return np.unique(np.linspace(0, n_windows - 1, wanted).round().astype(np.int64))


@torch.no_grad()
def perplexity(
    model: Any,
    shards: TokenShards,
    *,
    seq_len: int,
    batch_size: int,
    max_windows: int | None = None,
    precision: str = "fp32",
    shared: bool = False,
) -> dict[str, float]:
    """exp of the mean next-token loss over the `seq_len - 1` targets of each window.

    Args:
        model: any causal LM whose output has `.logits` `[batch, seq, vocab]`; it is left in its mode.
        max_windows: measure on this many windows, evenly spread; None is all.
        precision: "fp32", or "bf16" for autocast.
        shared: the processes of a launch divide the windows; all must call, and all get the result.

    Returns:
        `loss` (nats a token), `perplexity`, `tokens` (targets counted).

    Raises:
        CocomixError: the shards hold less than one window.
    """
    device = next(model.parameters()).device
    windows = window_subset(shards.n_windows(seq_len), max_windows)
    total, count = 0.0, 0
    for part, counts in batches(windows, batch_size, shared=shared):
        ids = torch.from_numpy(shards.windows(part, seq_len)).to(device)
        with autocast(device, precision):
            logits = model(input_ids=ids, use_cache=False).logits
        losses = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
        total += float(losses.double().sum()) * counts
        count += losses.numel() * counts
    if shared:
        total, count = sum_over_processes(torch.tensor([total, count], dtype=torch.float64)).tolist()
    if not count:
        raise CocomixError(
            f"{shards.folder} has fewer tokens than one window of {seq_len}; add text to that split or lower seq_len"
        )
    loss = total / count
    return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf, "tokens": int(count)}

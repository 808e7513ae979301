"""Does the channel matter? A student's loss with the vector that it mixes in replaced by others, on the same windows.

- `zero`: no vector. What it costs is what the blocks above take from the channel in all.
- `mean`: one vector everywhere. What it costs is what they take beyond a constant.
- `shuffled`: the vector of another window at the same place. What it costs is what they take that is about this text.
- `labels`: the labels' concepts as the largest of its K (`model/forced_concepts.py`). What it gains is what a head that
  named the labels would bring this student, as it was trained.

Each is compared with the student as it is, window by window, so the intervals are paired.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from cocomix.data.shards import TokenShards
from cocomix.evaluation.perplexity import sharded_batches, window_subset
from cocomix.labels.store import LabelReader
from cocomix.model.forced_concepts import concepts_forced
from cocomix.model.vector_replacements import (
    MeanVector,
    ShuffledVector,
    VectorMean,
    VectorReplacement,
    ZeroVector,
    mixed_predictor,
    vector_replaced,
)
from cocomix.utils.distributed import sum_over_processes
from cocomix.utils.env import as_float64, autocast
from cocomix.utils.errors import CocomixError

VARIANTS = ("zero", "shuffled", "mean", "labels")
"""What stands in the vector's place."""


@torch.no_grad()
def channel_certificate(
    model: Any,
    shards: TokenShards,
    *,
    seq_len: int,
    batch_size: int,
    max_windows: int | None = None,
    labels: LabelReader | None = None,
    precision: str = "fp32",
    sharded: bool = False,
) -> dict[str, Any]:
    """Losses of `model` as it is and with each of `VARIANTS` in its vector's place.

    A batch holds windows from all over the split, because those of one text would be shuffled among themselves, and
    two at least.

    Args:
        model: a student that mixes a vector in; its train or eval mode is left as it is.
        max_windows: measure this many windows, spread evenly; None: all.
        labels: of the same shards, for a student that predicts their concepts; None: no `labels` variant.
        precision: "fp32", or "bf16" for autocast.
        sharded: the processes of a launch divide the windows. All must call this, and all get the result.

    Returns:
        `windows`, `tokens` (targets of each variant), `loss` (as it is, nats a token) and `variants`: by name None, or
        `loss`, `difference` to the student as it is, and `ci95` of the difference, `[low, high]`.

    Raises:
        CocomixError: the model mixes no vector in, or the shards hold fewer than two windows.
    """
    mixed_predictor(model)
    windows, n_batches = _spread(window_subset(shards.n_windows(seq_len), max_windows), max(batch_size, 2))
    if not n_batches:
        raise CocomixError(
            f"{shards.folder} has fewer than two windows of {seq_len} tokens, and vectors are shuffled between windows;"
            " add text to that split or lower seq_len"
        )
    names = ["as it is", *(name for name in VARIANTS if name != "labels" or labels is not None)]
    device = next(model.parameters()).device
    losses = torch.zeros(len(names), len(windows), dtype=torch.float64)
    mean = VectorMean()

    def batches() -> Iterator[tuple[slice, torch.Tensor, bool]]:
        for number, counts in sharded_batches(np.arange(n_batches), 1, sharded=sharded):
            part = slice(int(number[0]), None, n_batches)
            yield part, torch.from_numpy(shards.windows(windows[part], seq_len)).to(device), counts

    for part, ids, counts in batches():
        with mean.gathering(model) if counts else nullcontext():
            losses[0, part] += _window_losses(model, ids, precision) * counts
    # A process may have had no batch that counts, and no vector's width from one.
    total, count = mean.total + torch.zeros(model.config.hidden_size, dtype=torch.float64), torch.tensor(mean.count)
    if sharded:
        total, count = sum_over_processes(total), sum_over_processes(count)
    replacements: dict[str, VectorReplacement] = {
        "zero": ZeroVector(),
        "shuffled": ShuffledVector(),
        "mean": MeanVector(total / count),
    }
    for part, ids, counts in batches():
        for row, name in enumerate(names[1:], 1):
            change: AbstractContextManager[None]
            if name in replacements:
                change = vector_replaced(model, replacements[name])
            else:
                assert labels is not None
                change = concepts_forced(model, torch.from_numpy(labels.read(windows[part], seq_len)).to(device))
            with change:
                losses[row, part] += _window_losses(model, ids, precision) * counts
    if sharded:
        losses = sum_over_processes(losses)
    found = {name: _compared(losses[row], losses[0]) for row, name in enumerate(names[1:], 1)}
    return {
        "windows": len(windows),
        "tokens": len(windows) * (seq_len - 1),
        "loss": float(losses[0].mean()),
        "variants": {name: found.get(name) for name in VARIANTS},
    }


def _spread(windows: np.ndarray, size: int) -> tuple[np.ndarray, int]:
    """Windows, one left out if a batch would have it alone, and the number n of batches `windows[i::n]`."""
    if len(windows) % 2 and size == 2:
        windows = windows[:-1]
    if len(windows) < 2:
        return windows[:0], 0
    return windows, math.ceil(len(windows) / size)


def _window_losses(model: Any, ids: torch.Tensor, precision: str) -> torch.Tensor:
    """Mean next-token loss of each window of `ids` `[batch, seq]`, float64 `[batch]`, on the CPU."""
    with autocast(ids.device, precision):
        logits = model(input_ids=ids, use_cache=False).logits
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    return as_float64(losses).view(len(ids), -1).mean(1).cpu()


def _compared(losses: torch.Tensor, base: torch.Tensor) -> dict[str, Any]:
    """Loss and paired difference to `base`, with a 95 % interval over windows (Student's t)."""
    from scipy.stats import t  # takes half a second

    differences = losses - base
    half = float(t.ppf(0.975, len(base) - 1) * differences.std() / math.sqrt(len(base)))
    middle = float(differences.mean())
    return {"loss": float(losses.mean()), "difference": middle, "ci95": [middle - half, middle + half]}

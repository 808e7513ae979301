"""Label a whole split: run the teacher over fixed windows once and fill a label store.

Windows are the ones training reads, so a position's label has seen exactly the context the student will have.
Every process of a torchrun launch takes every world-size-th batch of windows; a killed run continues where its
store's bitmap says it stopped.
"""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from cocomix.concepts.attribution import attribute_active
from cocomix.concepts.labels import select_active
from cocomix.concepts.sae import TopKSAE
from cocomix.concepts.store import LabelStore
from cocomix.tokens import TokenShards
from cocomix.train.distributed import barrier, is_main, rank, world_size


def label_split(
    teacher: PreTrainedModel,
    sae: TopKSAE,
    shards: TokenShards,
    folder: Path,
    *,
    layer: int,
    rule: str,
    sign: str,
    k: int,
    seq_len: int,
    batch_size: int,
    lineage: dict[str, Any],
    precision: str = "fp32",
    progress: Callable[[int, int, dict[str, Any]], None] | None = None,
) -> dict[str, float]:
    """Fill `folder` with the labels of every whole window of `shards`.

    Args:
        lineage: checksums and settings the labels depend on; see `LabelStore`.
        precision: "fp32", or "bf16" for autocast in the teacher's forward and backward passes.

    Returns:
        `seconds`, `tokens`, `tokens_per_second` of this process's part, and `valid_share`, the share of
        positions that carry labels.
    """
    n_windows = shards.n_windows(seq_len)
    if is_main() and not folder.exists():
        LabelStore.create(
            folder,
            n_tokens=shards.n_tokens,
            seq_len=seq_len,
            n_labels=k,
            n_latents=sae.n_latents,
            lineage=lineage,
        )
    barrier()
    store = LabelStore.open_for_write(folder)
    device = next(teacher.parameters()).device
    starts = range(rank() * batch_size, n_windows, world_size() * batch_size)
    begun, labelled = time.perf_counter(), 0
    for number, start in enumerate(starts):
        windows = np.arange(start, min(start + batch_size, n_windows))
        if not store.is_done(windows):
            ids = torch.from_numpy(shards.windows(windows, seq_len)).to(device)
            with _autocast(device, precision):
                active = attribute_active(teacher, sae, ids, layer=layer, rule=rule, sign=sign)
            chosen = select_active(active, k)
            store.write(
                start, chosen.ids.cpu().numpy(), chosen.scores.float().cpu().numpy(), chosen.valid.cpu().numpy()
            )
            labelled += ids.numel()
        if progress is not None:
            progress(number + 1, len(starts), {})
    seconds = time.perf_counter() - begun
    store.flush()
    barrier()
    if is_main():
        store.finish()
    barrier()
    return {
        "seconds": seconds,
        "tokens": n_windows * seq_len,
        "tokens_per_second": labelled / seconds if labelled else 0.0,
        "valid_share": LabelStore.open(folder).valid_share(),
    }


def _autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()

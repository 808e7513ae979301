"""Label a whole split: run the teacher over fixed windows once and fill a label store.

Windows are the ones training reads, so a position's label has seen exactly the context the student will have.
Every process of a torchrun launch takes every world-size-th batch of windows; a killed run continues where its
store's bitmap says it stopped.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from cocomix.clock import Stopwatch
from cocomix.concepts.attribution import attribute_active, with_sign
from cocomix.concepts.labels import select_active
from cocomix.concepts.sae import TopKSAE
from cocomix.concepts.store import LabelStore
from cocomix.tokens import TokenShards
from cocomix.train.distributed import barrier, is_main, rank, world_size
from cocomix.train.precision import autocast


def label_split(
    teacher: PreTrainedModel,
    sae: TopKSAE,
    shards: TokenShards,
    folder: Path,
    *,
    layer: int,
    rule: str,
    signs: Sequence[str],
    k: int,
    seq_len: int,
    batch_size: int,
    lineage: dict[str, Any],
    precision: str = "fp32",
    progress: Callable[[int, int, dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Fill `folder/SIGN` with the labels of every whole window of `shards`, for each sign from one attribution pass.

    Args:
        lineage: checksums and settings the labels depend on; see `LabelStore`.
        precision: "fp32", or "bf16" for autocast in the teacher's forward and backward passes.

    Returns:
        `seconds` (interrupted attempts included), `tokens`, `tokens_per_second`, and `valid_share`, for
        each sign the share of positions that carry labels.
    """
    n_windows = shards.n_windows(seq_len)
    if is_main():
        for sign in signs:
            if not LabelStore.begun(folder / sign):
                LabelStore.create(
                    folder / sign,
                    n_tokens=shards.n_tokens,
                    seq_len=seq_len,
                    n_labels=k,
                    n_latents=sae.n_latents,
                    lineage={**lineage, "sign": sign},
                )
    barrier()
    stores = {sign: LabelStore.open_for_write(folder / sign) for sign in signs}
    device = next(teacher.parameters()).device
    starts = range(rank() * batch_size, n_windows, world_size() * batch_size)
    watch = Stopwatch(folder / "seconds.json", writes=is_main())
    try:
        for number, start in enumerate(starts):
            windows = np.arange(start, min(start + batch_size, n_windows))
            if not all(store.is_done(windows) for store in stores.values()):
                ids = torch.from_numpy(shards.windows(windows, seq_len)).to(device)
                with autocast(device, precision):
                    signed = attribute_active(teacher, sae, ids, layer=layer, rule=rule, sign="signed")
                for sign, store in stores.items():
                    chosen = select_active(with_sign(signed, rule, sign), k)
                    store.write(start, *(part.cpu().numpy() for part in chosen))
            watch.tick()
            if progress is not None:
                progress(number + 1, len(starts), {})
        for store in stores.values():
            store.flush()
    finally:
        watch.keep()
    seconds = watch.seconds
    barrier()
    if is_main():
        for store in stores.values():
            store.finish()
    barrier()
    return {
        "seconds": seconds,
        "tokens": n_windows * seq_len,
        "tokens_per_second": n_windows * seq_len / seconds,
        "valid_share": {sign: LabelStore.open(folder / sign).valid_share() for sign in signs},
    }

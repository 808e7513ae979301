"""Label a whole split: run the teacher over fixed windows once and fill a store, with concepts or with its logits.

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
from cocomix.concepts.labels import ConceptLabels, select_active
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
    device = next(teacher.parameters()).device

    def label(ids: torch.Tensor) -> dict[str, ConceptLabels]:
        with autocast(device, precision):
            signed = attribute_active(teacher, sae, ids, layer=layer, rule=rule, sign="signed")
        return {sign: select_active(with_sign(signed, rule, sign), k) for sign in signs}

    figures = fill_stores(
        folder,
        shards,
        label,
        {sign: {**lineage, "sign": sign} for sign in signs},
        n_labels=k,
        n_ids=sae.n_latents,
        seq_len=seq_len,
        batch_size=batch_size,
        device=device,
        progress=progress,
    )
    return figures | {"valid_share": {sign: LabelStore.open(folder / sign).valid_share() for sign in signs}}


def store_logits(
    teacher: PreTrainedModel,
    shards: TokenShards,
    folder: Path,
    *,
    k: int,
    seq_len: int,
    batch_size: int,
    lineage: dict[str, Any],
    precision: str = "fp32",
    progress: Callable[[int, int, dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Fill `folder/top` with the teacher's `k` most likely next tokens of every position and their log-probabilities.

    The store is a `LabelStore` whose ids are tokens and whose scores are log-probabilities in nats; every position is
    valid. Returns `seconds`, `tokens` and `tokens_per_second`.
    """
    device = next(teacher.parameters()).device

    @torch.no_grad()
    def likeliest(ids: torch.Tensor) -> dict[str, ConceptLabels]:
        with autocast(device, precision):
            logits = teacher(input_ids=ids, use_cache=False).logits
        top = logits[..., : shards.vocab_size].float().log_softmax(-1).topk(k, dim=-1)
        return {"top": ConceptLabels(top.indices, top.values, torch.ones_like(ids, dtype=torch.bool))}

    return fill_stores(
        folder,
        shards,
        likeliest,
        {"top": lineage},
        n_labels=k,
        n_ids=shards.vocab_size,
        seq_len=seq_len,
        batch_size=batch_size,
        device=device,
        progress=progress,
    )


def fill_stores(
    folder: Path,
    shards: TokenShards,
    make: Callable[[torch.Tensor], dict[str, ConceptLabels]],
    lineages: dict[str, dict[str, Any]],
    *,
    n_labels: int,
    n_ids: int,
    seq_len: int,
    batch_size: int,
    device: torch.device,
    progress: Callable[[int, int, dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Fill the stores `folder/NAME` for each name in `lineages` with what `make` returns for windows of tokens."""
    n_windows = shards.n_windows(seq_len)
    if is_main():
        for name, lineage in lineages.items():
            if not LabelStore.begun(folder / name):
                LabelStore.create(
                    folder / name,
                    n_tokens=shards.n_tokens,
                    seq_len=seq_len,
                    n_labels=n_labels,
                    n_latents=n_ids,
                    lineage=lineage,
                )
    barrier()
    stores = {name: LabelStore.open_for_write(folder / name) for name in lineages}
    starts = range(rank() * batch_size, n_windows, world_size() * batch_size)
    watch = Stopwatch(folder / "seconds.json", writes=is_main())
    try:
        for number, start in enumerate(starts):
            windows = np.arange(start, min(start + batch_size, n_windows))
            if not all(store.is_done(windows) for store in stores.values()):
                made = make(torch.from_numpy(shards.windows(windows, seq_len)).to(device))
                for name, store in stores.items():
                    store.write(start, *(part.cpu().numpy() for part in made[name]))
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
    return {"seconds": seconds, "tokens": n_windows * seq_len, "tokens_per_second": n_windows * seq_len / seconds}

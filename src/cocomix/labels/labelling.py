"""Label a whole split: run the concept model over fixed windows once and fill stores with what is made of them.

Windows are the ones training reads, so a position's label has seen exactly the context the student will have.
Processes of a torchrun launch share the windows that are missing, in contiguous ranges that end between blocks of
the store's files; a killed run goes on from the store's marks, with however many processes.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cocomix.data.shards import TokenShards
from cocomix.labels.labeler import Labeller
from cocomix.labels.store import SHARD_TOKENS, LabelStore
from cocomix.labels.store_layout import StoreLayout
from cocomix.labels.store_writer import LabelWriter, ShardSummary
from cocomix.utils.clock import Stopwatch
from cocomix.utils.distributed import StopRequest, barrier, sum_over_processes
from cocomix.utils.errors import Interrupted
from cocomix.utils.processes import is_main, rank, world_size


def label_split(
    labeller: Labeller,
    shards: TokenShards,
    folder: Path,
    *,
    seq_len: int,
    lineage: dict[str, Any],
    scores: bool = False,
    shard_tokens: int = SHARD_TOKENS,
    progress: Callable[[int, int, dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Fill `folder/NAME` with the labels of every whole window of `shards`, for each of the labeller's names.

    Args:
        lineage: checksums and settings the labels depend on, see `LabelStore`; `sign`, the name, is added.
        scores: keep scores, too.
        shard_tokens: tokens behind each of the stores' files, at most.

    Returns:
        `seconds` (interrupted attempts included), `tokens`, `tokens_per_second`, and `valid_share`, for each name
        the share of positions that carry labels.

    Raises:
        Interrupted: a signal asked to stop; what is done is kept.
    """
    watch = Stopwatch(folder / "seconds.json", writes=is_main())
    unfinished = [name for name in labeller.names if not LabelStore.finished(folder / name)]
    barrier()  # all have looked before the first one changes anything
    if is_main():
        for name in unfinished:
            LabelStore.create(
                folder / name,
                n_tokens=shards.n_tokens,
                seq_len=seq_len,
                n_labels=labeller.n_labels,
                n_latents=labeller.n_ids,
                lineage={**lineage, "sign": name},
                shard_tokens=shard_tokens,
                scores=scores,
            )
    barrier()
    stores = {name: LabelWriter(folder / name) for name in unfinished}
    if stores:
        try:
            _fill(stores, labeller, shards, seq_len, watch, progress)
        finally:
            watch.keep()
        for store in stores.values():
            _finish(store)
    tokens, seconds = shards.n_windows(seq_len) * seq_len, watch.seconds
    barrier()
    shares = {name: LabelStore.open(folder / name).valid_share() for name in labeller.names}
    return {"seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / seconds, "valid_share": shares}


def _fill(
    stores: dict[str, LabelWriter],
    labeller: Labeller,
    shards: TokenShards,
    seq_len: int,
    watch: Stopwatch,
    progress: Callable[[int, int, dict[str, Any]], None] | None,
) -> None:
    """Write this process's share of what is missing in any of `stores`."""
    done = np.stack([_done_anywhere(store) for store in stores.values()]).all(0)
    mine = my_share(np.flatnonzero(~done), next(iter(stores.values())).layout)
    batches = np.split(mine, range(labeller.batch_size, len(mine), labeller.batch_size))
    with StopRequest() as stop:
        for number, windows in enumerate(batches):
            if len(windows):
                made = labeller(torch.from_numpy(shards.windows(windows, seq_len)))
                for name, store in stores.items():
                    ids, scores, valid = (field.numpy() for field in made[name])
                    for run in runs(windows):
                        store.write(int(windows[run.start]), ids[run], scores[run], valid[run])
            watch.tick()
            if progress is not None:
                progress(number + 1, len(batches), {})
            if stop.received is not None:
                raise Interrupted(
                    f"stopped after {number + 1} of {len(batches)} batches of labels; the same command goes on from"
                    " here",
                    by_user=stop.received == "SIGINT",
                )
    for store in stores.values():
        store.close()


def _finish(store: LabelWriter) -> None:
    """Sum the shards up, each process some of them, and let the first one write the manifest."""
    barrier()
    layout = store.layout
    mine = store.summarise(range(rank(), layout.n_shards, world_size()))
    kinds = len(layout.dtypes)
    digests = torch.zeros(layout.n_shards, kinds, 32, dtype=torch.uint8)
    labelled = torch.zeros(layout.n_shards, dtype=torch.int64)
    for shard, summary in mine.items():
        labelled[shard] = summary.labelled
        for kind, entry in enumerate(summary.files):
            digests[shard, kind] = torch.tensor(list(bytes.fromhex(entry["sha256"])))
    digests, labelled = sum_over_processes(digests), sum_over_processes(labelled)
    if is_main():
        store.publish(
            {
                shard: ShardSummary(
                    [
                        {"file": name, "bytes": size, "sha256": bytes(digests[shard, kind].tolist()).hex()}
                        for kind, (name, size) in enumerate(layout.files(shard).items())
                    ],
                    int(labelled[shard]),
                )
                for shard in range(layout.n_shards)
            }
        )
    barrier()


def _done_anywhere(store: LabelWriter) -> np.ndarray:
    """Windows that are done, bool `[n_windows]`; the processes check the marks together."""
    mine = torch.from_numpy(store.done(rank(), world_size()).astype(np.int32))
    return sum_over_processes(mine).numpy() > 0


def my_share(missing: np.ndarray, layout: StoreLayout) -> np.ndarray:
    """Those of the windows `missing` (ascending) that this process writes: whole blocks, as many as each other one."""
    blocks = layout.blocks(missing)
    mine = np.array_split(np.unique(blocks), world_size())[rank()]
    return missing[np.isin(blocks, mine)]


def runs(windows: np.ndarray) -> Iterator[slice]:
    """Where in `windows` (ascending) those lie that follow each other without a gap."""
    edges = [0, *(np.flatnonzero(np.diff(windows) != 1) + 1).tolist(), len(windows)]
    for start, end in itertools.pairwise(edges):
        yield slice(start, end)

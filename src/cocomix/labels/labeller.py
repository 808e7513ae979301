"""What is made of windows of tokens: concept labels by one rule, or the teacher's likeliest next tokens.

A window's labels must not depend on the windows beside it: then one process, two, a resumed one and a student that
labels while it trains all get the same. So every pass has exactly `batch_size` windows, short ones filled up by
repetition: libraries choose a matrix product's kernel, and with it the order of its sums, by shape, and the reference
rule's mean loss divides by the number of windows. Precision is the labeller's own, whatever autocast it is called
under. `batch_size` itself is one of the settings that labels depend on.
"""

import contextlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from cocomix.data.shards import TokenShards
from cocomix.labels.attribution import ConceptLabels, attribute_active, select_active, with_sign
from cocomix.labels.store import SHARD_TOKENS, LabelReader, LabelStore, LabelWriter, ShardSummary, StoreLayout
from cocomix.sae.sae import TopKSAE
from cocomix.utils.console import Stopwatch, is_main, rank, world_size
from cocomix.utils.distributed import StopRequest, barrier, sum_over_processes
from cocomix.utils.env import autocast
from cocomix.utils.errors import CocomixError, Interrupted


class Labeller(ABC):
    """Makes sets of labels, each under its name.

    Args:
        teacher: the concept model.
        n_labels: labels a position.
        n_ids: ids are below it.
        batch_size: windows a pass.
        precision: "fp32", or "bf16" for autocast in the teacher's passes.
    """

    names: Sequence[str]

    def __init__(self, teacher: PreTrainedModel, *, n_labels: int, n_ids: int, batch_size: int, precision: str) -> None:
        self.teacher, self.n_labels, self.n_ids = teacher, n_labels, n_ids
        self.batch_size, self.precision = batch_size, precision
        self.device = next(teacher.parameters()).device

    def __call__(self, ids: torch.Tensor) -> dict[str, ConceptLabels]:
        """Labels of windows `ids` int64 `[windows, seq]`, at least one and any number of them, on the CPU."""
        parts = [self._pass(part) for part in ids.split(self.batch_size)]
        return {
            name: ConceptLabels(*(torch.cat(fields) for fields in zip(*(part[name] for part in parts), strict=True)))
            for name in self.names
        }

    @abstractmethod
    def make(self, ids: torch.Tensor) -> dict[str, ConceptLabels]:
        """Labels of one pass, `ids` int64 `[batch_size, seq]` on the teacher's device."""

    def _pass(self, ids: torch.Tensor) -> dict[str, ConceptLabels]:
        missing = self.batch_size - len(ids)
        full = torch.cat([ids, ids[-1:].expand(missing, -1)]) if missing else ids
        own = autocast(self.device, self.precision)
        if isinstance(own, contextlib.nullcontext):
            own = torch.autocast(self.device.type, enabled=False)
        with own:
            made = self.make(full.to(self.device))
        return {
            name: ConceptLabels(*(field[: len(ids)].detach().cpu() for field in labels))
            for name, labels in made.items()
        }


class ConceptLabeller(Labeller):
    """Concept labels by one rule, a set for each sign from one attribution pass.

    Args:
        sae: autoencoder of the teacher's residual stream after block `layer` (0-based).
        rule, signs: see `cocomix.labels.attribution`.
        k: labels a position K_attr.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        sae: TopKSAE,
        *,
        layer: int,
        rule: str,
        signs: Sequence[str],
        k: int,
        batch_size: int = 16,
        precision: str = "fp32",
    ) -> None:
        super().__init__(teacher, n_labels=k, n_ids=sae.n_latents, batch_size=batch_size, precision=precision)
        self.sae, self.layer, self.rule, self.names = sae, layer, rule, signs

    def make(self, ids: torch.Tensor) -> dict[str, ConceptLabels]:
        signed = attribute_active(self.teacher, self.sae, ids, layer=self.layer, rule=self.rule, sign="signed")
        return {sign: select_active(with_sign(signed, self.rule, sign), self.n_labels) for sign in self.names}


class TopTokens(Labeller):
    """The teacher's `k` likeliest next tokens of every position; scores are their log-probabilities in nats.

    Args:
        vocab_size: tokens there are; a published teacher may have spare rows beyond them.
    """

    names = ("top",)

    def __init__(
        self, teacher: PreTrainedModel, *, k: int, vocab_size: int, batch_size: int = 16, precision: str = "fp32"
    ) -> None:
        super().__init__(teacher, n_labels=k, n_ids=vocab_size, batch_size=batch_size, precision=precision)

    @torch.no_grad()
    def make(self, ids: torch.Tensor) -> dict[str, ConceptLabels]:
        logits = self.teacher(input_ids=ids, use_cache=False).logits
        top = logits[..., : self.n_ids].float().log_softmax(-1).topk(self.n_labels, dim=-1)
        return {"top": ConceptLabels(top.indices, top.values, torch.ones_like(ids, dtype=torch.bool))}


# Label a whole split: run the concept model over fixed windows once and fill stores with what is made of them.
#
# Windows are the ones training reads, so a position's label has seen exactly the context the student will have.
# Processes of a torchrun launch share the windows that are missing, in contiguous ranges that end between blocks of
# the store's files; a killed run goes on from the store's marks, with however many processes.


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


# Labels made while they are needed: no store, the same labels.


class LiveLabels(LabelReader):
    """Labels by `labeller`, which has one sign, of windows of `shards`, made anew each time they are asked for.

    Asked how many labels a batch has, the processes of a launch label their shares of it, which are kept until the
    next batch: reading them then costs nothing more.
    """

    def __init__(self, shards: TokenShards, labeller: ConceptLabeller, *, seq_len: int) -> None:
        self.shards, self.labeller, self.seq_len = shards, labeller, seq_len
        self.n_labels = labeller.n_labels
        (self.sign,) = labeller.names
        self.where = f"the live labels {labeller.rule}/{self.sign}"
        self._held: dict[int, np.ndarray] = {}

    def read(self, windows: np.ndarray, seq_len: int) -> np.ndarray:
        if seq_len != self.seq_len:
            raise CocomixError(f"{self.where} are for windows of {self.seq_len} tokens, not {seq_len}")
        made = {window: self._held[window] for window in windows.tolist() if window in self._held}
        missing = np.array([window for window in windows.tolist() if window not in made], dtype=np.int64)
        made |= dict(zip(missing.tolist(), self._make(missing), strict=True))
        return np.stack([made[window] for window in windows.tolist()])

    def labelled(self, windows: np.ndarray) -> np.ndarray:
        shares = np.array_split(np.arange(len(windows)), world_size())
        mine = shares[rank()]
        made = self._make(windows[mine])
        self._held = dict(zip(windows[mine].tolist(), made, strict=True))
        counts = torch.zeros(len(windows), dtype=torch.int64)
        counts[torch.from_numpy(mine)] = torch.from_numpy((made[..., 0] >= 0).sum(-1))
        return sum_over_processes(counts).numpy()

    def _make(self, windows: np.ndarray) -> np.ndarray:
        if not len(windows):
            return np.empty((0, self.seq_len, self.n_labels), dtype=np.int64)
        ids = torch.from_numpy(self.shards.windows(windows, self.seq_len))
        return self.labeller(ids)[self.sign].targets().numpy()

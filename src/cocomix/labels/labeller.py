"""Labellers: they compute concept labels, or the teacher's most likely next tokens, for windows of tokens.

`label_split` writes the labels of a whole split to stores. `LiveLabels` computes the same labels during training,
without a store.

Choices:
- A window's labels do not depend on the other windows of its batch, so one process, several, a resumed one and
  `LiveLabels` all give the same. Every pass has exactly `batch_size` windows; a shorter batch is filled up by repeating
  its last window. Libraries choose the kernel of a matrix product, and so the order of its sums, by shape, and the
  reference rule's mean loss divides by the number of windows. So `batch_size` is a setting that labels depend on.
- Precision is the labeller's setting; an autocast around the call has no effect.
- `label_split` reads the windows that training reads, so a position is labelled with exactly the context the student
  sees. A concept model with a tokenizer of its own reads in `DocumentWindows`, which overlap; a position is labelled in
  one of them.
- Processes of a torchrun launch divide the missing windows into contiguous ranges that end between blocks of the
  store's files. A killed run resumes from the store's marks, with any number of processes.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from cocomix.data.document_windows import DocumentWindows, WindowBounds
from cocomix.data.shards import TokenShards
from cocomix.labels.attribution import (
    RULES,
    ActiveAttribution,
    ConceptLabels,
    attribute_active,
    select_active,
    with_sign,
)
from cocomix.labels.store import (
    SHARD_TOKENS,
    LabelReader,
    LabelStore,
    LabelWriter,
    ShardSummary,
    StoreLayout,
    remove_marks,
)
from cocomix.model.documents import document_rule
from cocomix.sae.positions import NOTHING, LeftOut
from cocomix.sae.sae import TopKSAE
from cocomix.utils.console import Stopwatch, is_main, rank, world_size
from cocomix.utils.distributed import StopRequest, barrier, sum_over_processes
from cocomix.utils.env import autocast
from cocomix.utils.errors import CocomixError, Interrupted


class Labeller(ABC):
    """Base class of labellers, which compute one or more named sets of labels in a pass.

    Args:
        teacher: the concept model.
        n_labels: labels per position.
        n_ids: number of possible ids; ids are below it.
        batch_size: windows per pass.
        precision: "fp32", or "bf16" for autocast in the teacher's passes.
    """

    names: Sequence[str]

    def __init__(self, teacher: PreTrainedModel, *, n_labels: int, n_ids: int, batch_size: int, precision: str) -> None:
        self.teacher, self.n_labels, self.n_ids = teacher, n_labels, n_ids
        self.batch_size, self.precision = batch_size, precision
        self.device = next(teacher.parameters()).device

    def __call__(self, ids: torch.Tensor, bounds: WindowBounds | None = None) -> dict[str, ConceptLabels]:
        """Labels of one or more windows `ids` int64 `[windows, seq]`, on the CPU.

        Args:
            bounds: positions that are labelled; None: all.
        """
        if bounds is None:
            parts = [self._labels_of_batch(batch) for batch in ids.split(self.batch_size)]
            return {name: _joined([part[name] for part in parts]) for name in self.names}
        # Windows with other positions to label take another pass: last bits must not depend on what else is in a batch.
        order = np.argsort(bounds.first, kind="stable")
        edges = np.flatnonzero(np.diff(bounds.first[order])) + 1
        parts = []
        for kind in np.split(order, edges):
            for rows in np.split(kind, range(self.batch_size, len(kind), self.batch_size)):
                part = WindowBounds(bounds.first[rows], bounds.lengths[rows])
                parts.append(self._labels_of_batch(ids[torch.from_numpy(rows)], part))
        back = torch.from_numpy(np.argsort(order, kind="stable"))
        joined = {name: _joined([part[name] for part in parts]) for name in self.names}
        return {name: ConceptLabels(*(field[back] for field in labels)) for name, labels in joined.items()}

    @abstractmethod
    def make(self, ids: torch.Tensor, bounds: WindowBounds | None = None) -> dict[str, ConceptLabels]:
        """Labels of exactly one pass, `ids` int64 `[batch_size, seq]` on the teacher's device.

        Args:
            bounds: positions whose labels are used, beginning at the same place in all windows; others may be anything.
        """

    def _labels_of_batch(self, ids: torch.Tensor, bounds: WindowBounds | None = None) -> dict[str, ConceptLabels]:
        rows = torch.arange(self.batch_size).clamp_max(len(ids) - 1)
        full = None if bounds is None else WindowBounds(*(field[rows.numpy()] for field in bounds))
        # autocast() does nothing for fp32; the outer context switches a caller's autocast off.
        with torch.autocast(self.device.type, enabled=False), autocast(self.device, self.precision):
            batch = ids[rows].to(self.device)
            label_sets = self.make(batch) if full is None else self.make(batch, full)
        found = {
            name: ConceptLabels(*(field[: len(ids)].detach().cpu() for field in labels))
            for name, labels in label_sets.items()
        }
        if bounds is None:
            return found
        used = torch.from_numpy(bounds.used(ids.shape[1]))
        return {name: labels._replace(valid=labels.valid & used) for name, labels in found.items()}


def _joined(parts: Sequence[ConceptLabels]) -> ConceptLabels:
    return ConceptLabels(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


class ConceptLabeller(Labeller):
    """Concept labels by one attribution rule; one pass gives a set of labels for each sign.

    Args:
        sae: autoencoder of the teacher's residual stream after block `layer` (0-based).
        rule, signs: see `cocomix.labels.attribution`.
        k: labels per position K_attr.
        first_position: positions of a window before it get no labels: that of a beginning-of-text token. A teacher that
            reads windows document by document sees one at the beginning of each.
        left_out: other positions without labels, since the autoencoder is not for their hidden states.
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
        first_position: int = 0,
        left_out: LeftOut = NOTHING,
    ) -> None:
        super().__init__(teacher, n_labels=k, n_ids=sae.n_latents, batch_size=batch_size, precision=precision)
        self.sae, self.layer, self.rule, self.names = sae, layer, rule, signs
        self.first_position, self.left_out = first_position, left_out

    def make(self, ids: torch.Tensor, bounds: WindowBounds | None = None) -> dict[str, ConceptLabels]:
        signed = self.signed(ids, bounds)
        return {sign: select_active(with_sign(signed, self.rule, sign), self.n_labels) for sign in self.names}

    def signed(self, ids: torch.Tensor, bounds: WindowBounds | None) -> ActiveAttribution:
        """Scores of all active concepts of exactly one pass, which the labels are chosen from; see `make`."""
        padding = mask = None
        if bounds is not None:
            lengths = torch.from_numpy(bounds.lengths).to(ids.device)
            padding = torch.arange(ids.shape[1], device=ids.device) >= lengths[:, None]
            if RULES[self.rule].sees_later_positions:  # other rules never see the padding
                mask = (~padding).long()
        signed = attribute_active(
            self.teacher,
            self.sae,
            ids,
            layer=self.layer,
            rule=self.rule,
            sign="signed",
            attention_mask=mask,
            first=0 if bounds is None else int(bounds.first[0]),
            left_out=self.left_out,
            padding=padding,
        )
        signed.valid[:, : self.first_position] = False
        documents = document_rule(self.teacher.config)
        if documents is not None and self.first_position:
            signed.valid[documents.begins(ids)] = False
        return signed


class ActiveScores(ConceptLabeller):
    """`signed` scores of all active concepts, in place of the labels chosen from them: for comparing labels."""

    def make(self, ids: torch.Tensor, bounds: WindowBounds | None = None) -> dict[str, ConceptLabels]:
        signed = self.signed(ids, bounds)
        return {name: ConceptLabels(signed.ids, signed.scores, signed.valid) for name in self.names}


class TopTokens(Labeller):
    """The teacher's `k` most likely next tokens at every position; scores are log-probabilities in nats.

    Args:
        vocab_size: number of tokens; a published teacher may have spare rows in its head beyond them.
    """

    names = ("top",)

    def __init__(
        self, teacher: PreTrainedModel, *, k: int, vocab_size: int, batch_size: int = 16, precision: str = "fp32"
    ) -> None:
        super().__init__(teacher, n_labels=k, n_ids=vocab_size, batch_size=batch_size, precision=precision)

    @torch.no_grad()
    def make(self, ids: torch.Tensor, bounds: WindowBounds | None = None) -> dict[str, ConceptLabels]:
        logits = self.teacher(input_ids=ids, use_cache=False).logits
        top = logits[..., : self.n_ids].float().log_softmax(-1).topk(self.n_labels, dim=-1)
        return {"top": ConceptLabels(top.indices, top.values, torch.ones_like(ids, dtype=torch.bool))}


def label_split(
    labeller: Labeller,
    shards: TokenShards | DocumentWindows,
    folder: Path,
    *,
    seq_len: int,
    lineage: dict[str, Any],
    scores: bool = False,
    shard_tokens: int = SHARD_TOKENS,
    progress: Callable[[int, int, dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Label a whole split: write the labels of every window of `shards` to a store `folder/NAME` for each label set.

    Args:
        lineage: checksums and settings the labels depend on, see `LabelStore`; the name of the set is added as `sign`.
        scores: also store scores.
        shard_tokens: maximum number of tokens per shard of a store.
        progress: called as `progress(batch, batches, {})` after each batch.

    Returns:
        `seconds` (including interrupted attempts), `tokens`, `tokens_per_second`, and `valid_share`, the share of
        labelled positions in each set.

    Raises:
        Interrupted: a signal asked to stop; finished windows are kept.
    """
    watch = Stopwatch(folder / "seconds.json", writes=is_main())
    unfinished = [name for name in labeller.names if not LabelStore.finished(folder / name)]
    barrier()  # every process has checked before the first one creates a store
    if is_main():
        for name in set(labeller.names) - set(unfinished):
            remove_marks(folder / name)
        for name in unfinished:
            LabelStore.create(
                folder / name,
                n_tokens=shards.labelled_tokens(seq_len),
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
    shards: TokenShards | DocumentWindows,
    seq_len: int,
    watch: Stopwatch,
    progress: Callable[[int, int, dict[str, Any]], None] | None,
) -> None:
    """Write this process's share of the windows that are missing in any of `stores`."""
    done = np.stack([_done_by_any_process(store) for store in stores.values()]).all(0)
    share = share_of_process(np.flatnonzero(~done), next(iter(stores.values())).layout)
    batches = np.split(share, range(labeller.batch_size, len(share), labeller.batch_size))
    with StopRequest() as stop:
        for number, windows in enumerate(batches):
            if len(windows):
                bounds = shards.bounds(windows) if isinstance(shards, DocumentWindows) else None
                label_sets = labeller(torch.from_numpy(shards.windows(windows, seq_len)), bounds)
                for name, store in stores.items():
                    ids, scores, valid = (field.numpy() for field in label_sets[name])
                    for run in contiguous_runs(windows):
                        store.write(int(windows[run.start]), ids[run], scores[run], valid[run])
            watch.tick()
            if progress is not None:
                progress(number + 1, len(batches), {})
            if stop.received is not None:
                raise Interrupted(
                    f"stopped after {number + 1} of {len(batches)} batches of labels; rerun the same command to resume",
                    by_user=stop.received == "SIGINT",
                )
    for store in stores.values():
        store.close()


def _finish(store: LabelWriter) -> None:
    """Compute checksums of the shards, each process for its share, and write the manifest in the main process."""
    barrier()
    layout = store.layout
    summaries = store.summarise(range(rank(), layout.n_shards, world_size()))
    kinds = len(layout.dtypes)
    digests = torch.zeros(layout.n_shards, kinds, 32, dtype=torch.uint8)
    labelled = torch.zeros(layout.n_shards, dtype=torch.int64)
    for shard, summary in summaries.items():
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


def _done_by_any_process(store: LabelWriter) -> np.ndarray:
    """Windows that are done, bool `[n_windows]`; each process checks its share of the marks."""
    checked = torch.from_numpy(store.done(rank(), world_size()).astype(np.int32))
    return sum_over_processes(checked).numpy() > 0


def share_of_process(missing: np.ndarray, layout: StoreLayout) -> np.ndarray:
    """The windows of `missing` (ascending) that this process writes: whole blocks, about as many in each process."""
    blocks = layout.blocks(missing)
    share = np.array_split(np.unique(blocks), world_size())[rank()]
    return missing[np.isin(blocks, share)]


def contiguous_runs(windows: np.ndarray) -> Iterator[slice]:
    """Slices of `windows` (ascending) whose window numbers follow each other without a gap."""
    edges = [0, *(np.flatnonzero(np.diff(windows) != 1) + 1).tolist(), len(windows)]
    for start, end in itertools.pairwise(edges):
        yield slice(start, end)


class LiveLabels(LabelReader):
    """Labels computed during training, without a store: those `label_split` would write.

    `labelled` computes the labels of this process's share of the batch and keeps them until the next batch, so that
    `read` need not compute them again.

    Args:
        labeller: with one sign.
    """

    def __init__(self, shards: TokenShards, labeller: ConceptLabeller, *, seq_len: int) -> None:
        self.shards, self.labeller, self.seq_len = shards, labeller, seq_len
        self.n_labels = labeller.n_labels
        (self.sign,) = labeller.names
        self.where = f"the live labels {labeller.rule}/{self.sign}"
        self._cached: dict[int, np.ndarray] = {}

    def read(self, windows: np.ndarray, seq_len: int) -> np.ndarray:
        if seq_len != self.seq_len:
            raise CocomixError(f"{self.where} are for windows of {self.seq_len} tokens, not {seq_len}")
        labels = {window: self._cached[window] for window in windows.tolist() if window in self._cached}
        missing = np.array([window for window in windows.tolist() if window not in labels], dtype=np.int64)
        labels |= dict(zip(missing.tolist(), self._compute(missing), strict=True))
        return np.stack([labels[window] for window in windows.tolist()])

    def labelled(self, windows: np.ndarray) -> np.ndarray:
        shares = np.array_split(np.arange(len(windows)), world_size())
        share = shares[rank()]
        labels = self._compute(windows[share])
        self._cached = dict(zip(windows[share].tolist(), labels, strict=True))
        counts = torch.zeros(len(windows), dtype=torch.int64)
        counts[torch.from_numpy(share)] = torch.from_numpy((labels[..., 0] >= 0).sum(-1))
        return sum_over_processes(counts).numpy()

    def _compute(self, windows: np.ndarray) -> np.ndarray:
        if not len(windows):
            return np.empty((0, self.seq_len, self.n_labels), dtype=np.int64)
        ids = torch.from_numpy(self.shards.windows(windows, self.seq_len))
        return self.labeller(ids)[self.sign].targets().numpy()

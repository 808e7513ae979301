"""`cocomix pack build`: a pack from the stages of a run, which are done first if they are not.

The pack is written beside its place and renamed when complete, so there is never half a pack. Labels come from the
stores of `teacher-labels/`; of a set that is still being made, from the windows that are done. What was written is read
again and compared with the stores before it counts.
"""

import importlib.metadata
import lzma
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from cocomix.analysis.naming import read_names
from cocomix.data.byte_offsets import UNKNOWN
from cocomix.data.corpus import Corpus
from cocomix.data.document_windows import DocumentWindows
from cocomix.data.text_ends import END, ENDS, read_ends
from cocomix.labels.labeller import ActiveScores
from cocomix.labels.pack_codec import LISTS, Rows, SetLayout, to_rows, write_ends, write_set
from cocomix.labels.store import PENDING, LabelStore, LabelWriter
from cocomix.model.documents import document_positions
from cocomix.model.loading import as_run, model_config
from cocomix.model.teacher import hidden_at
from cocomix.pipeline.attempts import partial_folder
from cocomix.pipeline.label_stages import AlignedLabelStage, TeacherLabelStage
from cocomix.pipeline.pack import (
    FORMAT,
    LABELS,
    MANIFEST,
    NAMES,
    SAE,
    SPLITS,
    Pack,
    PackCorpus,
    PackLabels,
    PackManifest,
    PackRounding,
    PackSae,
    PackSplit,
    PackTeacher,
    tensors_checksum,
    text_checksum,
    vocabulary_checksum,
)
from cocomix.pipeline.pack_agreement import Agreement, compare, stored_labels
from cocomix.pipeline.run import Run
from cocomix.pipeline.stage import Stage
from cocomix.pipeline.trained import sae_stage
from cocomix.sae.metrics import Reconstruction
from cocomix.sae.positions import LeftOut
from cocomix.sae.sae import TopKSAE
from cocomix.utils.console import Stopwatch, console
from cocomix.utils.env import git_commit, machine
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import make_folder, move, sha256, sync_tree, write_sealed
from cocomix.utils.integrity import LOCK, NOTE
from cocomix.utils.packages import PACKAGE

MEASURED_BATCHES = 2
"""Passes of the teacher that say how many labels the rounded autoencoder changes."""
SHOWN_TOKENS, SHOWN_PASSAGES = 5, 2
"""Tokens and passages of each concept that a pack keeps."""


def pack_sources(run: Run, layer: int | None = None) -> list[TeacherLabelStage]:
    """The label sets of a run that go into a pack: those of one autoencoder.

    Args:
        layer: block of that autoencoder; None: `sae.layer`.

    Raises:
        CocomixError: it has none, or they are not at a concept model's own tokens.
    """
    if run.config.pack is not None:
        raise CocomixError("these settings take their labels from a pack; give those that it was built from")
    stage = sae_stage(run, layer)
    made = [labels.source for labels in run.labels.values() if isinstance(labels, AlignedLabelStage)]
    found = [source for source in made if source.sae is stage]
    if made and not found:
        raise CocomixError(
            f"no labels are of the autoencoder of block {stage.layer}; set labels.NAME.layer={stage.layer}, or give"
            " --layer with another block"
        )
    if not found:
        raise CocomixError(
            "a pack holds labels at the tokens of a published concept model with a tokenizer of its own; set"
            " teacher.pretrained, teacher.tokenizer=own and some labels"
        )
    return found


def needed_stages(run: Run, layer: int | None = None) -> list[Stage]:
    """The stages that a pack is made from, in their order; students and their tokens are none of them."""
    return [run.corpus, run.teacher, run.teacher_tokens, run.sae, *pack_sources(run, layer)]


class PackOptions(NamedTuple):
    """How a pack is written."""

    name: str
    licence: str | None = None
    """of the concept model; None: as the metadata of its package say"""
    corpus: str | None = None
    """what its corpus is called there; None: as its source"""
    layer: int | None = None
    """block whose autoencoder and labels it holds; None: `sae.layer`"""
    windows: int | None = None
    """labels of the first so many windows of each split only; None: all"""
    replace: bool = False
    add: bool = False
    """add the run's corpus to the pack that is there, of the same teacher and autoencoder"""
    command: str = ""


def build_pack(run: Run, folder: Path, options: PackOptions) -> Pack:
    """Write the pack of a run whose stages are done, but for labels, of which there may be a part.

    Raises:
        CocomixError: a stage is missing, no window is labelled, or `folder` is in use.
    """
    there = (folder / MANIFEST).is_file()
    if options.add and not there:
        raise CocomixError(f"there is no pack in {folder} to add to; leave --add out")
    if folder.exists() and not ((options.replace or options.add) and there):
        raise CocomixError(
            f"{folder} exists; give another --output, or --replace or --add if it is a pack that you mean"
        )
    make_folder(folder.parent)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        if options.add:
            shutil.copytree(folder, temporary, ignore=shutil.ignore_patterns(NOTE, LOCK))
        _Builder(run, temporary, options).write()
        sync_tree(temporary)
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            move(folder, old)
        move(temporary, folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Pack(folder)


class _Source(NamedTuple):
    """The labels of a split by one sign, or the part of them that is there."""

    store: LabelStore
    done: np.ndarray
    """whether each window has been labelled, bool `[n_windows]`"""


class _Builder:
    def __init__(self, run: Run, folder: Path, options: PackOptions) -> None:
        self.run, self.folder, self.options = run, folder, options
        self.sources = pack_sources(run, options.layer)
        self.stage = sae_stage(run, options.layer)
        self.sae = self.stage.model()

    def write(self) -> None:
        make_folder(self.folder)
        about = self._about_pack() if not self.options.add else self._same_pack()
        corpus = self._write_corpus([one.name for one in about.corpora])
        others = tuple(one for one in about.corpora if one.name != corpus.name)
        about = about.model_copy(update={"corpora": (*others, corpus)})
        self._write_manifest(about)
        pack = Pack(self.folder)
        self._compare_with_stores(pack, corpus)
        rounding = about.sae.rounding
        changed = self._changed_labels(pack, corpus)
        shares = {
            "labels_changed_share": {name: agreed.changed_share for name, agreed in changed.items()},
            "labels_other_share": {name: agreed.other_share for name, agreed in changed.items()},
        }
        rounding = rounding.model_copy(update={name: getattr(rounding, name) | one for name, one in shares.items()})
        self._write_manifest(about.model_copy(update={"sae": about.sae.model_copy(update={"rounding": rounding})}))

    def _same_pack(self) -> PackManifest:
        """What the pack says that a corpus is added to.

        Raises:
            CocomixError: it is damaged, or of another teacher or autoencoder.
        """
        pack = Pack(self.folder)
        pack.check()
        about = pack.about
        own, theirs = self.sae.state_dict(), pack.sae().state_dict()
        same = tensors_checksum(self.stage.model_folder) == about.sae.checksum or (
            own.keys() == theirs.keys() and all(torch.equal(own[name].cpu(), theirs[name]) for name in own)
        )
        same = same and (self.stage.layer, self.run.teacher.seq_len) == (
            about.sae.layer,
            about.teacher.seq_len,
        )
        same = same and (about.sae.skip_first, about.sae.skip_norm) == tuple(self.stage.left_out)
        if not same or tensors_checksum(self.run.teacher.folder / "model") != about.teacher.checksum:
            raise CocomixError(
                f"the run has another concept model, autoencoder or layer than the pack {about.name}; take the pack's:"
                f" teacher.pretrained={about.teacher.source} sae.pretrained=PACK/{SAE} sae.layer={about.sae.layer}"
                f" teacher.seq_len={about.teacher.seq_len}"
            )
        command = {"command": f"{about.lineage.get('command')}; {self.options.command}"}
        return about.model_copy(update={"lineage": about.lineage | command})

    def _write_sae(self) -> None:
        half = self.stage.model().half()
        if not all(torch.isfinite(tensor).all() for tensor in half.state_dict().values()):
            half = self.stage.model()  # its numbers do not fit into half precision
        about = {"layer": self.stage.layer, "model": self.run.config.teacher.pretrained}
        bos = self.run.teacher_tokens.special.bos_id is not None
        context = self.stage.figures.get("context_size", self.stage.seq_len)
        half.cpu().save_pretrained(self.folder / SAE, **about, prepend_bos=bos, context_size=context)

    def _rounded(self) -> TopKSAE:
        return TopKSAE.from_pretrained(self.folder / SAE).float().eval().requires_grad_(False)

    def _write_names(self) -> bool:
        names = read_names(self.run.folder, self.stage.checksum(), self.stage.names_file)
        if names.found is None:
            return False
        concepts = [names.of(concept) for concept in range(len(names.found.concepts))]
        kept = [
            concept.model_copy(
                update={
                    "tokens": concept.tokens[:SHOWN_TOKENS],
                    "next_tokens": concept.next_tokens[:SHOWN_TOKENS],
                    "passages": concept.passages[:SHOWN_PASSAGES],
                }
            )
            for concept in concepts
        ]
        content = names.found.model_copy(update={"concepts": kept}).model_dump_json(exclude_defaults=False)
        (self.folder / NAMES).write_bytes(lzma.compress(content.encode()))
        return True

    def _write_corpus(self, taken: list[str]) -> PackCorpus:
        settings = self.run.config.corpus.model_dump(mode="json")
        name = self.options.corpus or ("mix" if settings["mix"] else settings["source"])
        if name in taken:
            raise CocomixError(f"the pack has labels of a corpus {name!r} already; give --corpus another name")
        splits, sets = {}, {source.set_name: _Measured({}, {}) for source in self.sources}
        for split in SPLITS:
            splits[split] = self._write_split(split, self.folder / LABELS / name / split, sets)
        if not any(split.labelled_windows for split in splits.values()):
            raise CocomixError(f"no window is labelled yet; run {self.sources[0].command_line} for a while first")
        windows = splits["train"].labelled_windows
        labels = tuple(self._about_labels(source, windows, sets[source.set_name]) for source in self.sources)
        return PackCorpus(name=name, settings=settings, splits=splits, labels=labels)

    def _write_split(self, split: str, folder: Path, sets: "dict[str, _Measured]") -> PackSplit:
        make_folder(folder)
        tokens = self.run.teacher_tokens
        ends = np.array(read_ends(tokens.folder / ENDS / f"{split}.bin")).astype(np.int64)
        write_ends(folder / "ends.xz", ends, unknown=UNKNOWN, end=END)
        windows = self.sources[0].windows(split)
        layout = SetLayout(len(ends), self.sae.n_latents, 1)
        done = np.ones(windows.n_windows(windows.seq_len), dtype=bool)
        if self.options.windows is not None:
            done[self.options.windows :] = False
        parts = [{sign: _source(source, split, sign) for sign in _signs(source)} for source in self.sources]
        for part in parts:
            for one in part.values():
                done &= one.done
        before: list[list[np.ndarray]] = [[] for _ in layout.blocks()]
        covered = 0
        for source, part in zip(self.sources, parts, strict=True):
            layout = layout._replace(k=source.config.k)
            blocks = [self._rows(block, windows, part, done, source.config.k) for block in layout.blocks()]
            path = folder / f"{source.set_name}.xz"
            write_set(path, layout, list(zip(blocks, map(list, before), strict=True)))
            for slots, rows in zip(before, blocks, strict=True):
                slots.append(rows.slots)
            covered = sum(int((rows.flags >> 7).sum()) for rows in blocks)
            measured = sets[source.set_name]
            measured.bits[split] = 8 * path.stat().st_size / max(1, covered)
            measured.valid[split] = {
                sign: sum(int(((rows.flags >> LISTS.index(sign)) & 1).sum()) for rows in blocks) / max(1, covered)
                for sign in part
            }
        text, _ = text_checksum(Corpus(self.run.corpus.folder / "text"), split)
        covered_share = covered / max(1, windows.n_used())
        return PackSplit(
            text=text,
            documents=len(windows.documents),
            tokens=len(ends),
            positions=windows.n_used(),
            windows=len(done),
            labelled_windows=int(done.sum()),
            covered_share=covered_share,
            located=tokens.figures["located"][split],
        )

    @staticmethod
    def _rows(block: slice, windows: DocumentWindows, part: dict[str, _Source], done: np.ndarray, k: int) -> Rows:
        window, place = windows.locate(np.arange(block.start, block.stop))
        covered = (window >= 0) & done[np.maximum(window, 0)]
        labels = {}
        for sign, one in part.items():
            labels[sign] = np.full((len(window), k), -100, dtype=np.int64)
            if covered.any():
                labels[sign][covered], _ = one.store.at(window[covered], place[covered])
        return to_rows(labels, covered)

    def _about_labels(self, source: TeacherLabelStage, windows: int, measured: "_Measured") -> PackLabels:
        """What is said of a set; the cost is that of `windows` labelled windows of the training split."""
        per_token = source.flops_per_token(
            model_config(self.run.teacher.folder / "model", self.run.teacher.redo_hint),
            self.sae.n_latents,
            self.sae.k,
        )
        tokens, folder = windows * source.seq_len, source.folder
        if not source.done():
            folder = partial_folder(source.run_dir, source.name, source.fingerprint)
            seconds = Stopwatch(folder / "train" / "seconds.json", writes=False).seconds
        else:
            train = source.figures["train"]
            seconds = train["seconds"] * tokens / max(1, train["tokens"])
        return PackLabels(
            name=source.set_name,
            rule=source.config.rule,
            signs=tuple(_signs(source)),
            k=source.config.k,
            batch_size=source.config.batch_size,
            precision=source.config.precision,
            valid_share=measured.valid,
            bits=measured.bits,
            seconds=seconds,
            flops=per_token * tokens,
            tokens=tokens,
        )

    @torch.no_grad()
    def _rounding(self, teacher: Any) -> PackRounding:
        """What rounding changes, on validation windows."""
        sae, rounded, left_out = self.sae, self._rounded(), self.stage.left_out
        full, half = Reconstruction(sae), Reconstruction(rounded.to(sae.encoder_weight.device))
        changed = 0
        for ids in self.stage.validation(ROUNDING_WINDOWS):
            hidden = hidden_at(teacher, ids, self.stage.layer)
            hidden = left_out.select(hidden, positions=document_positions(teacher, ids))
            full.add(hidden)
            half.add(hidden)
            before, after = (_active(one, hidden) for one in (sae, rounded))
            changed += int((before != after).any(-1).sum())
        dtype = TopKSAE.from_pretrained(self.folder / SAE).encoder_weight.dtype
        return PackRounding(
            dtype=str(dtype).removeprefix("torch."),
            positions=full.tokens,
            active_changed_share=changed / max(1, full.tokens),
            explained_variance_before=full.figures()["explained_variance"],
            explained_variance_after=half.figures()["explained_variance"],
        )

    def _compare_with_stores(self, pack: Pack, corpus: PackCorpus) -> None:
        """Refuse to publish labels that do not come back from the pack."""
        for split in SPLITS:
            for source, labels in zip(self.sources, corpus.labels, strict=True):
                stored = stored_labels(pack, corpus, split, labels)
                windows = source.windows(split)
                places = np.flatnonzero(stored.covered)
                for sign in labels.signs if len(places) else ():
                    store = _source(source, split, sign).store
                    for start in range(0, len(places), 1 << 18):
                        part = places[start : start + (1 << 18)]
                        expected, _ = store.at(*windows.locate(part))
                        if (stored.ids[sign][part] != expected).any():
                            raise CocomixError(f"the labels {source.name} were not written as they are; report this")

    def _changed_labels(self, pack: Pack, corpus: PackCorpus) -> dict[str, Agreement]:
        """How labels agree with those that the rounded autoencoder makes, by corpus, set and sign."""
        rounded, found = self._rounded(), {}
        split = next(split for split in reversed(SPLITS) if corpus.splits[split].labelled_windows)
        for source, labels in zip(self.sources, corpus.labels, strict=True):
            windows = source.windows(split)
            stored = stored_labels(pack, corpus, split, labels)
            labelled = labelled_windows(windows, stored.covered)
            count = min(len(labelled), MEASURED_BATCHES * labels.batch_size)
            chosen = labelled[np.linspace(0, len(labelled) - 1, count).astype(np.int64)]
            labeller = score_labeller(
                self.run.teacher.model(labels.precision),
                rounded,
                labels,
                layer=self.stage.layer,
                first_position=self.run.teacher_tokens.special.first_position,
                left_out=self.stage.left_out,
            )
            for sign, agreed in compare(stored, labeller, windows, chosen, labels.k).items():
                name = f"{corpus.name}/{labels.name}/{sign}"
                found[name] = agreed
                _report(f"{name} with the autoencoder as the pack has it", agreed)
        return found

    def _about_pack(self) -> PackManifest:
        """What a new pack says, without its corpora; autoencoder and names are written."""
        run, options, teacher = self.run, self.options, self.run.teacher.model()
        self._write_sae()
        names = self._write_names()
        source = run.config.teacher.pretrained or ""
        config = model_config(run.teacher.folder / "model", run.teacher.redo_hint).to_dict()
        return PackManifest(
            format=FORMAT,
            name=options.name,
            title=run.config.title,
            teacher=PackTeacher(
                source=source,
                description=run.teacher.figures["description"],
                checksum=tensors_checksum(run.teacher.folder / "model"),
                licence=options.licence or _licence(source),
                architecture={name: config[name] for name in ARCHITECTURE if name in config},
                parameters=run.teacher.figures["parameters"],
                tokenizer=vocabulary_checksum(run.teacher_tokens.tokenizer()),
                seq_len=run.teacher.seq_len,
                bos=run.config.teacher.bos,
                run_as=as_run(teacher),
            ),
            sae=PackSae(
                layer=self.stage.layer,
                n_latents=self.sae.n_latents,
                k=self.sae.k,
                d_model=self.sae.d_model,
                checksum=tensors_checksum(self.stage.model_folder),
                settings=run.config.sae.model_dump(mode="json"),
                skip_first=self.stage.left_out.first,
                skip_norm=self.stage.left_out.norm,
                figures={name: value for name, value in self.stage.figures.items() if name != "layers"},
                rounding=self._rounding(teacher),
            ),
            names=names,
            corpora=(),
            lineage={
                "command": options.command,
                "stages": {stage.name: stage.fingerprint for stage in needed_stages(run, self.options.layer)},
                "commit": git_commit(),
                "machine": machine(),
            },
            files=[],
        )

    def _write_manifest(self, about: PackManifest) -> None:
        files = [
            {"file": path.relative_to(self.folder).as_posix(), "bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and path.name not in (MANIFEST, NOTE, LOCK)
        ]
        content = about.model_copy(update={"files": files}).model_dump(mode="json")
        write_sealed(self.folder / MANIFEST, content, durable=True)


class _Measured(NamedTuple):
    bits: dict[str, float]
    valid: dict[str, dict[str, float]]


ROUNDING_WINDOWS = 64
"""Validation windows on which rounding is measured."""
ARCHITECTURE = (
    "model_type", "architectures", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "intermediate_size", "tie_word_embeddings", "n_embd", "n_layer", "n_head",
)  # fmt: skip
"""Of the concept model's config.json."""


def _active(sae: TopKSAE, hidden: torch.Tensor) -> torch.Tensor:
    """The active latents of each hidden state in order, -1 for missing ones, int64 `[n, K]`."""
    latents = sae.encode(hidden)
    return torch.where(latents.values > 0, latents.ids, -1).sort(-1).values


def _signs(source: TeacherLabelStage) -> list[str]:
    return [sign for sign in LISTS if sign in source.config.signs]


def _source(source: TeacherLabelStage, split: str, sign: str) -> _Source:
    """The labels of a split, finished or not."""
    if source.done():
        store = source.reader(split, sign)
        return _Source(store, np.ones(store.layout.n_windows, dtype=bool))
    folder = partial_folder(source.run_dir, source.name, source.fingerprint) / split / sign
    if LabelStore.finished(folder):
        store = LabelStore.open(folder)
        return _Source(store, np.ones(store.layout.n_windows, dtype=bool))
    if (folder / PENDING).exists():
        writer = LabelWriter(folder)
        return _Source(LabelStore(folder, writer.layout, 0), writer.done())
    windows = source.windows(split)
    none: Any = None  # no window is done, so nothing is read
    return _Source(none, np.zeros(windows.n_windows(windows.seq_len), dtype=bool))


def labelled_windows(windows: DocumentWindows, covered: np.ndarray) -> np.ndarray:
    """Windows with a position that is covered, int64, in order."""
    window, _ = windows.locate(np.flatnonzero(covered))
    return np.unique(window)


def score_labeller(
    teacher: Any, sae: TopKSAE, labels: PackLabels, *, layer: int, first_position: int, left_out: LeftOut
) -> ActiveScores:
    """What makes scores with `sae` as the label set `labels` was made."""
    return ActiveScores(
        teacher,
        sae.to(next(teacher.parameters()).device),
        layer=layer,
        rule=labels.rule,
        signs=labels.signs,
        k=labels.k,
        batch_size=labels.batch_size,
        precision=labels.precision,
        first_position=first_position,
        left_out=left_out,
    )


def _report(what: str, agreed: Agreement) -> None:
    console.print(
        f"  {what}: {agreed.same / max(1, agreed.positions):.2%} of {agreed.positions:,} positions labelled the same,"
        f" {agreed.close / max(1, agreed.positions):.2%} close, {agreed.other_share:.2%} otherwise",
        highlight=False,
    )


def _licence(source: str) -> str | None:
    """What the metadata of the package of a concept model say."""
    if not source.startswith(PACKAGE):
        return None
    module = source.removeprefix(PACKAGE).partition(".")[0]
    for name in importlib.metadata.packages_distributions().get(module, []):
        stated = importlib.metadata.metadata(name)
        return next((stated[field] for field in ("License-Expression", "License") if field in stated), None)
    return None

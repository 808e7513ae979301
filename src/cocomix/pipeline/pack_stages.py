"""The stages of a run that takes teacher, autoencoder and labels from a concept pack.

No teacher is loaded and nothing is labelled: `sae` is the pack's autoencoder, and `labels/NAME` aligns the pack's
labels to the students' tokens. The teacher's own stages are there for whoever wants its labels of a new text (`cocomix
train teacher`), and nothing waits for them.
"""

from pathlib import Path
from typing import Any

import numpy as np

from cocomix.analysis.naming import write_found
from cocomix.data.byte_offsets import ByteOffsets
from cocomix.data.corpus import Corpus
from cocomix.data.text_ends import END
from cocomix.labels.alignment import StreamLabels, align, find_places
from cocomix.pipeline.config import PackConfig, RunConfig
from cocomix.pipeline.label_stages import PLACES, AlignedLabelStage
from cocomix.pipeline.pack import SPLITS, Pack, PackCorpus, PackLabels, open_pack, tensors_checksum, text_checksum
from cocomix.pipeline.pack_agreement import stored_labels
from cocomix.pipeline.sae_stage import SaeStage
from cocomix.pipeline.stage import Stage
from cocomix.pipeline.teacher_stage import TeacherStage
from cocomix.report.page import write_sae_page
from cocomix.utils.console import is_main
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import sha256


class PackTeacherStage(TeacherStage):
    """The concept model that a pack's labels were made with, loaded only when it is asked for."""

    def __init__(self, run_dir: Path, config: RunConfig, *stages: Any) -> None:
        super().__init__(run_dir, config, *stages)
        self.pack = _section(config)

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        figures = super().work(folder, progress)
        if is_main():
            section = self.pack
            expected = open_pack(section.source, section.checksum).about.teacher.checksum
            if tensors_checksum(folder / "model") != expected:
                raise CocomixError(
                    f"the concept model {self.config.pretrained} has other weights than that of the pack"
                    f" {section.source}; give teacher.pretrained with intact ones of the same model"
                )
        return figures


class PackSaeStage(SaeStage):
    """The pack's autoencoder, in float32, with the quality that the pack says."""

    def __init__(self, run_dir: Path, config: RunConfig, *stages: Any) -> None:
        super().__init__(run_dir, config, *stages)
        self.pack, self.inputs = _section(config), []

    def settings(self) -> dict[str, Any]:
        return {"pack": self.pack.checksum}

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        pack = open_pack(self.pack.source, self.pack.checksum)
        if is_main():
            pack.check()
        about, sae = pack.about, pack.sae()
        figures = about.sae.figures | {"teacher": about.teacher.run_as}
        figures |= {
            "described_teacher": {"description": about.teacher.description, "parameters": about.teacher.parameters},
            "rounding": about.sae.rounding.model_dump(mode="json"),
        }
        if is_main():
            origin = {"layer": about.sae.layer, "model": about.teacher.source, "source": about.name}
            sae.save_pretrained(folder / "model", **origin)
            write_sae_page(figures, folder / "quality.html")
            names = pack.names()
            if names is not None:
                checksum = sha256(*sorted((folder / "model").glob("*.safetensors")))
                write_found(self.run_dir, names.model_copy(update={"sae": checksum}))
        return figures


def _section(config: RunConfig) -> PackConfig:
    assert config.pack is not None, "these are the stages of a run with a pack"
    return config.pack


class PackLabelStage(AlignedLabelStage):
    """The pack's labels at the students' tokens: an ordinary store, which students read like any other."""

    needs_teacher = False

    def __init__(self, run_dir: Path, name: str, config: RunConfig, teacher: TeacherStage, sae: SaeStage) -> None:
        tokens = teacher.tokens
        inputs = [tokens.corpus, tokens, sae]
        Stage.__init__(self, run_dir, f"labels/{name}", f"cocomix label --name {name}", inputs)
        self._read(name, config, teacher, sae)
        self.seq_len, self.tokens, self.pack = config.seq_len, tokens, _section(config)

    def settings(self) -> dict[str, Any]:
        labels = {"rule": self.config.rule, "signs": list(self.config.signs), "k": self.config.k}
        return {"pack": self.pack.checksum, "seq_len": self.seq_len} | labels

    def sources(self) -> list[Stage]:
        return []

    def describe(self, figures: dict[str, Any]) -> str:
        share = figures["train"]["covered_share"]
        covered = "" if share == 1 else f"; the pack covers {share:.1%} of the text"
        return f"{super().describe(figures)}{covered}"

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        self.tokens.check_lengths(self.seq_len)
        pack = open_pack(self.pack.source, self.pack.checksum)
        pack.check()
        text = Corpus(self.tokens.corpus.folder / "text")
        texts = {split: text_checksum(text, split) for split in SPLITS}
        corpus = pack.corpus({split: checksum for split, (checksum, _) in texts.items()})
        labels = pack.labels(corpus, self.config.rule, self.config.k, self.config.signs)
        self._check_share(corpus.splits["train"].covered_share)
        figures: dict[str, Any] = {}
        for split in SPLITS:
            figures[split] = self._align(
                folder, split, pack, corpus, labels, texts[split][1], progress if split == "train" else None
            )
        if not any(figures["train"]["valid_share"].values()):
            raise CocomixError(
                f"no position of the students' tokens has labels, because the pack {self.pack.source} covers only"
                f" {corpus.splits['train'].covered_share:.1%} of the text, or no token of theirs ends where one of the"
                " concept model does; give a larger part of the pack, or another tokens.tokenizer"
            )
        tokens = max(1, labels.tokens)
        figures["train"] |= {"seconds": labels.seconds, "tokens_per_second": tokens / max(labels.seconds, 1e-9)}
        return figures | {"flops": labels.flops, "teacher": pack.about.teacher.run_as}

    def _align(
        self,
        folder: Path,
        split: str,
        pack: Pack,
        corpus: PackCorpus,
        labels: PackLabels,
        text_bytes: int,
        progress: Any,
    ) -> dict[str, Any]:
        ends = pack.ends(corpus, split, text_bytes)
        stream = _Stream(ends)
        places, shards = folder / PLACES / f"{split}.bin", self.tokens.shards(split)
        documents = Corpus(self.tokens.corpus.folder / "text").documents(split)
        located = find_places(places, shards, documents, ByteOffsets(self.tokens.tokenizer()), stream, ends)
        stored = stored_labels(pack, corpus, split, labels)
        n_latents = pack.about.sae.n_latents
        about = corpus.splits[split]
        return align(
            {sign: StreamLabels(stored.ids[sign], n_latents) for sign in self.config.signs},
            places,
            shards,
            folder / split,
            seq_len=self.seq_len,
            lineage=self.lineage(split),
            shard_tokens=self.shard_tokens,
            progress=progress,
        ) | {
            "located": located.located / max(1, located.tokens),
            "teacher_located": about.located,
            "covered_share": about.covered_share,
        }

    def _check_share(self, covered: float) -> None:
        if covered < self.pack.least_share:
            raise CocomixError(
                f"the pack {self.pack.source} covers {covered:.1%} of the training text, less than the"
                f" {self.pack.least_share:.1%} of pack.least_share; lower it, or give a larger part of the pack"
            )

    def reader(self, split: str, sign: str) -> Any:
        self._check_share(self.figures["train"]["covered_share"])
        return super().reader(split, sign)

    def lineage(self, split: str) -> dict[str, Any]:
        return {
            "pack": self.pack.checksum,
            "tokens": self.tokens.shards(split).fingerprint,
            "rule": self.config.rule,
            "k": self.config.k,
            "seq_len": self.seq_len,
        }

    def made_once(self) -> dict[str, float]:
        """What making them took the builder of the pack."""
        return {"seconds": self.figures["train"]["seconds"], "flops": self.figures["flops"]}


class _Stream:
    """The concept model's tokens by what they have read."""

    def __init__(self, ends: np.ndarray) -> None:
        self.n_tokens = len(ends)
        self.documents = np.concatenate([[0], np.flatnonzero(ends == END)[:-1] + 1]).astype(np.int64)

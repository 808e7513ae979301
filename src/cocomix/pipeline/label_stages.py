"""Where students get concept labels from, and the stages that store labels and the teacher's top logits.

Labels are stored once (`LabelStage`), or made by the concept model while students train (`LiveLabelSet`). Both use the
same labeller, so a student ends with the same weights either way. A store costs disk space, and its cost is charged to
its readers by the share they read. Live labels cost their passes again in every epoch of every student, and count as
training. Controls (`ControlSet`) have nothing to store and run no teacher.
"""

import math
import time
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PretrainedConfig, PreTrainedModel

from cocomix.data.byte_offsets import ByteOffsets
from cocomix.data.corpus import Corpus
from cocomix.data.document_windows import DocumentWindows
from cocomix.data.text_ends import ENDS, read_ends
from cocomix.labels.alignment import TextAligner, align_split, find_places
from cocomix.labels.attribution import ConceptLabels, attribute_active, labelling_flops, select_active
from cocomix.labels.controls import CONTROLS
from cocomix.labels.labeller import ConceptLabeller, LiveLabels, TopTokens, label_split
from cocomix.labels.schedule import (
    LabelPart,
    ScheduledLabels,
    describe_parts,
    label_phases,
    shares_of_training,
)
from cocomix.labels.store import LabelReader, LabelStore
from cocomix.model.flops import model_flops
from cocomix.model.loading import as_run, model_config
from cocomix.pipeline.config import LabelConfig, RunConfig
from cocomix.pipeline.sae_stage import SaeStage
from cocomix.pipeline.stage import Stage
from cocomix.pipeline.teacher_stage import TeacherStage
from cocomix.sae.sae import TopKSAE
from cocomix.utils.console import world_size
from cocomix.utils.errors import CocomixError


class LabelSet(ABC):
    """One named set of labels.

    Attributes:
        set_name: its name in the run's settings.
        config: its section of the run's settings.
        needed: stages that must be finished before it can be read.
        of_teacher: whether its labels are the SAE's concepts, where the teacher has them.
    """

    set_name: str
    config: LabelConfig
    teacher: TeacherStage
    sae: SaeStage
    seq_len: int
    needed: list[Stage]
    of_teacher: bool = True
    needs_teacher: bool = True
    """whether reading it needs the finished teacher, whose checksum is compared"""
    depends_on_progress: bool = False
    """whether what is read depends on the share of training done"""

    @property
    def signs(self) -> tuple[str, ...]:
        """Signs of which it has labels, the first one unless a student names another."""
        return self.config.signs

    @property
    def n_labels(self) -> int:
        """Labels per position K_attr."""
        return self.config.k

    @property
    def last(self) -> "LabelSet":
        """The set whose labels a student is taught last: this one, unless it is made of several."""
        return self

    @property
    def layer_setting(self) -> dict[str, int]:
        """The layer whose autoencoder they are of, for settings; nothing for the first one, as in earlier versions."""
        return {} if self.sae.layer == self.sae.config.layer else {"layer": self.sae.layer}

    def describe_labels(self, sign: str) -> str:
        """Rule and sign of its labels, in a few words."""
        layer = "".join(f", block {layer}" for layer in self.layer_setting.values())
        return f"{self.config.rule}/{sign}{layer}"

    def in_words(self, sign: str) -> str:
        """Rule and sign of its labels, as a model's card says them."""
        return f"rule {self.config.rule}" + (f", sign {sign}" if sign else "")

    @abstractmethod
    def reader(self, split: str, sign: str) -> LabelReader:
        """The labels of `split` with `sign`, checked against the tokens, teacher and SAE as they are now."""

    @abstractmethod
    def made_once(self) -> dict[str, float]:
        """`seconds` and `flops` spent before any training."""

    @abstractmethod
    def reader_settings(self) -> dict[str, Any]:
        """What of its settings a student's fingerprint must hold, beyond the stages it needs."""

    @abstractmethod
    def live_share(self, batch_size: int, processes: int) -> float:
        """Windows labelled for each one trained on, in steps of `batch_size` windows shared by `processes`.

        0 if labels are stored; above 1 where passes are filled up by repetition.
        """

    def labeller(self, signs: tuple[str, ...]) -> ConceptLabeller:
        """What makes the labels, with the finished teacher and SAE."""
        config = self.config
        return ConceptLabeller(
            self.teacher.model(config.precision),
            self.sae.model(),
            layer=self.sae.layer,
            rule=config.rule,
            signs=signs,
            k=config.k,
            batch_size=config.batch_size,
            precision=config.precision,
            first_position=self.sae.teacher_tokens.special.first_position,
            left_out=self.sae.left_out,
        )

    def flops_per_token(self, teacher: PretrainedConfig, n_latents: int, k: int) -> float:
        """Operations a labelled token of this set takes, by a concept model and an SAE of these shapes."""
        return labelling_flops(
            teacher, n_latents=n_latents, k=k, layer=self.sae.layer, rule=self.config.rule, seq_len=self.seq_len
        )

    def live_flops(self, batch_size: int) -> float:
        """Operations of labelling in every trained token, with the finished teacher and SAE; 0 if labels are stored."""
        share = self.live_share(batch_size, world_size())
        if not share:
            return 0.0
        shape = model_config(self.teacher.folder / "model", self.teacher.redo_hint)
        return share * self.flops_per_token(shape, self.sae.figures["n_latents"], self.sae.figures["k"])


class LiveLabelSet(LabelSet):
    """Labels made in every training step; nothing on disk."""

    def __init__(self, name: str, config: LabelConfig, teacher: TeacherStage, sae: SaeStage) -> None:
        self.set_name, self.config = name, config
        self.teacher, self.sae, self.seq_len = teacher, sae, sae.seq_len
        self.needed = [teacher, sae]

    def reader(self, split: str, sign: str) -> LabelReader:
        return LiveLabels(self.teacher.tokens.shards(split), self.labeller((sign,)), seq_len=self.seq_len)

    def made_once(self) -> dict[str, float]:
        return {"seconds": 0.0, "flops": 0.0}

    def reader_settings(self) -> dict[str, Any]:
        settings = self.config.model_dump(mode="json", exclude={"signs", "scores", "of", "layer"})
        return {"live_labels": settings | self.layer_setting}

    def live_share(self, batch_size: int, processes: int) -> float:
        share = math.ceil(batch_size / processes)
        passes = math.ceil(share / self.config.batch_size)
        return passes * self.config.batch_size / share


class ControlSet(LabelSet):
    """Labels of a control: from tokens, or those of another set in the wrong places; nothing on disk.

    Args:
        source: the set whose labels it moves, if it does.
    """

    of_teacher = False

    def __init__(
        self, name: str, config: RunConfig, teacher: TeacherStage, sae: SaeStage, source: LabelSet | None
    ) -> None:
        self.set_name, self.config, self.source = name, config.labels[name], source
        self.teacher, self.sae, self.seq_len = teacher, sae, config.seq_len
        self.needed = [sae] if source is None else source.needed

    @property
    def signs(self) -> tuple[str, ...]:
        return ("",) if self.source is None else self.source.signs

    @property
    def n_labels(self) -> int:
        return self.config.k if self.source is None else self.source.n_labels

    def describe_labels(self, sign: str) -> str:
        return self.config.rule if self.source is None else f"{self.config.rule} of {self.source.describe_labels(sign)}"

    def reader(self, split: str, sign: str) -> LabelReader:
        tokens, n_concepts = self.teacher.tokens, self.sae.figures["n_latents"]
        source = None if self.source is None else self.source.reader(split, sign)
        sizes = (self.seq_len, self.n_labels, n_concepts, tokens.special.first_position)
        return CONTROLS[self.config.rule].reader(source, tokens.shards(split), *sizes)

    def made_once(self) -> dict[str, float]:
        return {"seconds": 0.0, "flops": 0.0} if self.source is None else self.source.made_once()

    def reader_settings(self) -> dict[str, Any]:
        own = {"rule": self.config.rule} | ({"k": self.config.k} if self.source is None else {})
        if self.source is None:
            return {"label_control": own | self.layer_setting}
        return {"label_control": own} | self.source.reader_settings()

    def live_share(self, batch_size: int, processes: int) -> float:
        return 0.0 if self.source is None else self.source.live_share(batch_size, processes)

    def live_flops(self, batch_size: int) -> float:
        return 0.0 if self.source is None else self.source.live_flops(batch_size)

    def flops_per_token(self, teacher: PretrainedConfig, n_latents: int, k: int) -> float:
        return 0.0 if self.source is None else self.source.flops_per_token(teacher, n_latents, k)


class ScheduledLabelSet(LabelSet):
    """Several sets for one student, see `cocomix.labels.schedule`; what it is taught last says what its concepts are.

    Args:
        sets: one a part.
        parts: of the student's settings.
        seed: the student's.
    """

    def __init__(self, sets: list[LabelSet], parts: tuple[LabelPart, ...], *, by_position: bool, seed: int) -> None:
        self.sets, self.parts, self.by_position, self.seed = sets, parts, by_position, seed
        self.part_signs = [part.sign or labels.signs[0] for labels, part in zip(sets, parts, strict=True)]
        last = label_phases(parts)[-1]
        self._last = max(last.parts, key=lambda place: parts[place].share)
        final = sets[self._last]
        self.set_name, self.config = final.set_name, final.config
        self.teacher, self.sae, self.seq_len = final.teacher, final.sae, final.seq_len
        self.needed = list(dict.fromkeys(stage for labels in sets for stage in labels.needed))
        self.of_teacher = all(sets[place].of_teacher for place in last.parts)
        self.depends_on_progress = len(label_phases(parts)) > 1
        self._shares = list(zip(shares_of_training(parts), sets, strict=True))

    @property
    def signs(self) -> tuple[str, ...]:
        return (self.part_signs[self._last],)

    @property
    def n_labels(self) -> int:
        return self.sets[self._last].n_labels

    @property
    def last(self) -> LabelSet:
        return self.sets[self._last].last

    def describe_labels(self, sign: str) -> str:
        return describe_parts(self.parts, "position" if self.by_position else "window")

    def in_words(self, sign: str) -> str:
        return self.describe_labels(sign)

    def reader(self, split: str, sign: str) -> LabelReader:
        """The scheduled labels of the training split; of another one, those it is taught last."""
        if split != "train":
            return self.sets[self._last].reader(split, self.part_signs[self._last])
        readers = [labels.reader(split, own) for labels, own in zip(self.sets, self.part_signs, strict=True)]
        return self.scheduled(readers)

    def scheduled(self, readers: list[LabelReader]) -> LabelReader:
        """`readers` of the training split, one a part, as its parts say."""
        return ScheduledLabels(readers, self.parts, by_position=self.by_position, seq_len=self.seq_len, seed=self.seed)

    def made_once(self) -> dict[str, float]:
        """What all its sets took, each counted once and whole, however small its share of the training."""
        costs = [labels.made_once() for labels in {labels.set_name: labels for labels in self.sets}.values()]
        return {name: sum(cost[name] for cost in costs) for name in ("seconds", "flops")}

    def reader_settings(self) -> dict[str, Any]:
        return {"label_parts": [labels.reader_settings() for labels in self.sets]}

    def live_share(self, batch_size: int, processes: int) -> float:
        return sum(share * labels.live_share(batch_size, processes) for share, labels in self._shares)

    def live_flops(self, batch_size: int) -> float:
        return sum(share * labels.live_flops(batch_size) for share, labels in self._shares)

    def flops_per_token(self, teacher: PretrainedConfig, n_latents: int, k: int) -> float:
        """Operations a labelled token takes, as a mean over the live sets, by how often each is read."""
        live = [(share * labels.live_share(1, 1), labels) for share, labels in self._shares]
        total = sum(share for share, _ in live)
        each = sum(share * labels.flops_per_token(teacher, n_latents, k) for share, labels in live)
        return each / total if total else 0.0


class LabelStage(Stage, LabelSet):
    """Labels by one rule, a set for each sign, for the training and the validation split."""

    version = 3  # 2: sharded stores; 3: fused kernels, whose labels differ in last bits
    distributed = True
    splits = ("train", "val")
    times_read: ClassVar[int] = 1
    """how often each token is read, about, because windows overlap"""

    def __init__(self, run_dir: Path, name: str, config: RunConfig, teacher: TeacherStage, sae: SaeStage) -> None:
        super().__init__(run_dir, f"labels/{name}", f"cocomix label --name {name}", [teacher.tokens, teacher, sae])
        self._read(name, config, teacher, sae)
        self.seq_len, self.tokens = config.seq_len, teacher.tokens

    def _read(self, name: str, config: RunConfig, teacher: TeacherStage, sae: SaeStage) -> None:
        self.set_name, self.config = name, config.labels[name]
        self.shard_tokens = config.tokens.shard_tokens
        self.teacher, self.sae = teacher, sae
        self.needed = [self]

    def settings(self) -> dict[str, Any]:
        settings = self.config.model_dump(mode="json", exclude={"live", "of", "layer"})
        return settings | {"seq_len": self.seq_len} | self.layer_setting

    def outputs(self) -> list[str]:
        return [f"{split}/{sign}/manifest.json" for split in self.splits for sign in self.config.signs]

    def verify(self) -> None:
        for split in self.splits:
            for sign in self.config.signs:
                self.reader(split, sign)

    def describe(self, figures: dict[str, Any]) -> str:
        shares = ", ".join(f"{sign} {share:.1%}" for sign, share in figures["train"]["valid_share"].items())
        return f"positions labelled: {shares}; {figures['train']['tokens_per_second']:,.0f} tokens/s"

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        labeller = self.labeller(self.config.signs)
        figures: dict[str, Any] = {
            split: label_split(
                labeller,
                self.tokens.windows(split, self.seq_len, overlapping=True),
                folder / split,
                seq_len=self.seq_len,
                lineage=self.lineage(split),
                scores=self.config.scores,
                shard_tokens=self.shard_tokens,
                progress=progress,
            )
            for split in self.splits
        }
        per_token = self.flops_per_token(labeller.teacher.config, labeller.sae.n_latents, labeller.sae.k)
        return figures | {"flops": per_token * figures["train"]["tokens"], "teacher": as_run(labeller.teacher)}

    def lineage(self, split: str) -> dict[str, Any]:
        """What these labels depend on, by content."""
        return {
            "tokens": self.tokens.shards(split).fingerprint,
            "teacher": self.teacher.checksum(),
            "sae": self.sae.checksum(),
            "layer": self.sae.layer,
            "rule": self.config.rule,
            "k": self.config.k,
            "seq_len": self.seq_len,
            "batch_size": self.config.batch_size,
            "precision": self.config.precision,
            **self.sae.skips,
        }

    def reader(self, split: str, sign: str) -> LabelStore:
        _ = self.figures
        return LabelStore.open(self.folder / split / sign, expect=self.lineage(split) | {"sign": sign})

    def made_once(self) -> dict[str, float]:
        return {"seconds": self.figures["train"]["seconds"], "flops": self.figures["flops"]}

    def reader_settings(self) -> dict[str, Any]:
        return {}

    def live_share(self, batch_size: int, processes: int) -> float:
        return 0.0


class TeacherLabelStage(LabelStage):
    """Labels at the tokens of a concept model with a tokenizer of its own; the students' tokens do not matter."""

    splits = ("val", "train")
    """the small one first, so that a pack of labels that are not finished can measure students on unseen text"""
    times_read = 2

    def __init__(self, run_dir: Path, name: str, config: RunConfig, teacher: TeacherStage, sae: SaeStage) -> None:
        inputs = [sae.teacher_tokens, teacher, sae]
        Stage.__init__(self, run_dir, f"teacher-labels/{name}", f"cocomix label --name {name}", inputs)
        self._read(name, config, teacher, sae)
        self.seq_len, self.tokens = sae.seq_len, sae.teacher_tokens

    def windows(self, split: str) -> DocumentWindows:
        """The windows that were labelled."""
        windows = self.tokens.windows(split, self.seq_len, overlapping=True)
        assert isinstance(windows, DocumentWindows), "its tokens are the concept model's own"
        return windows

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        figures = super().work(folder, progress)
        for split in self.splits:
            windows, found = self.windows(split), figures[split]
            used = windows.n_used() or 1
            shares = found["valid_share"].items()
            found["valid_share"] = {sign: share * found["tokens"] / used for sign, share in shares}
            found["text_tokens"] = windows.n_used()
        return figures

    def describe(self, figures: dict[str, Any]) -> str:
        train = figures["train"]
        shares = ", ".join(f"{sign} {share:.1%}" for sign, share in train["valid_share"].items())
        rate = train["text_tokens"] / train["seconds"]
        return (
            f"of the concept model's tokens labelled: {shares}; {rate:,.0f} tokens/s,"
            f" {train['tokens'] / max(1, train['text_tokens']):.2f} read for each"
        )


class AlignedLabelStage(LabelStage):
    """Those labels at the students' tokens: an ordinary store, which students read like any other.

    Args:
        source: the labels at the concept model's tokens.
    """

    version = 1
    distributed = False

    def __init__(self, run_dir: Path, name: str, config: RunConfig, source: TeacherLabelStage) -> None:
        tokens = source.teacher.tokens
        Stage.__init__(
            self,
            run_dir,
            f"labels/{name}",
            f"cocomix label --name {name}",
            [tokens.corpus, tokens, source.tokens, source],
        )
        self._read(name, config, source.teacher, source.sae)
        self.seq_len, self.tokens, self.source = config.seq_len, tokens, source

    def settings(self) -> dict[str, Any]:
        return {"signs": list(self.config.signs), "seq_len": self.seq_len}

    def scratch(self) -> list[str]:
        return [*super().scratch(), PLACES]

    def sources(self) -> list[Stage]:
        """The stages that make its labels at the concept model's tokens."""
        return [self.source]

    def describe(self, figures: dict[str, Any]) -> str:
        train = figures["train"]
        shares = ", ".join(f"{sign} {share:.1%}" for sign, share in train["valid_share"].items())
        unlocated = [
            f"{1 - share:.1%} of {whose} tokens cannot be located in the text, because that tokenizer does not give it"
            " back, and have no labels"
            for whose, share in (("the students'", train["located"]), ("the concept model's", train["teacher_located"]))
            if share < 1
        ]
        matched = f"of them {train['matched_share']:.1%} end where a token of the concept model ends"
        return "; ".join([f"positions labelled: {shares} ({matched})", *unlocated])

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        self.tokens.check_lengths(self.seq_len)
        started = time.monotonic()
        corpus = Corpus(self.tokens.corpus.folder / "text")
        offsets = ByteOffsets(self.tokens.tokenizer())
        teacher_located = self.source.tokens.figures["located"]
        figures: dict[str, Any] = {}
        for split in self.splits:
            shards, ends = self.tokens.shards(split), read_ends(self.source.tokens.folder / ENDS / f"{split}.bin")
            places = folder / PLACES / f"{split}.bin"
            located = find_places(places, shards, corpus.documents(split), offsets, self.source.windows(split), ends)
            stores = {sign: self.source.reader(split, sign) for sign in self.config.signs}
            figures[split] = align_split(
                stores,
                self.source.windows(split),
                places,
                shards,
                folder / split,
                seq_len=self.seq_len,
                lineage=self.lineage(split),
                shard_tokens=self.shard_tokens,
                progress=progress,
            ) | {"located": located.located / max(1, located.tokens), "teacher_located": teacher_located[split]}
        if not any(figures["train"]["valid_share"].values()):
            raise CocomixError(
                "no position of the students' tokens has labels, because no token of theirs that can be located in the"
                " text ends where a labelled one of the concept model does; give another tokens.tokenizer"
            )
        made = self.source.figures
        seconds = time.monotonic() - started
        figures["train"] |= {"seconds": seconds, "tokens_per_second": made["train"]["tokens_per_second"]}
        return figures | {"flops": made["flops"], "teacher": made["teacher"]}

    def of_text(self, ids: list[int], teacher: PreTrainedModel, sae: TopKSAE, sign: str) -> ConceptLabels | None:
        """Labels `[1, seq, K_attr]` of a text in the students' tokens; None if it is too short."""

        def label(tokens: torch.Tensor) -> ConceptLabels:
            active = attribute_active(
                teacher,
                sae,
                tokens.to(sae.encoder_weight.device),
                layer=self.sae.layer,
                rule=self.config.rule,
                sign=sign,
                first=self.sae.teacher_tokens.special.first_position,
                left_out=self.sae.left_out,
            )
            return select_active(active, self.config.k)

        return self._text_aligner(ids, label)

    @cached_property
    def _text_aligner(self) -> TextAligner:
        own, others = self.tokens, self.sae.teacher_tokens
        return TextAligner(own.tokenizer(), own.special, others.tokenizer(), others.special)

    def lineage(self, split: str) -> dict[str, Any]:
        return self.source.lineage(split) | {
            "tokens": self.tokens.shards(split).fingerprint,
            "teacher_tokens": self.source.tokens.shards(split).fingerprint,
            "teacher_seq_len": self.source.seq_len,
            "seq_len": self.seq_len,
        }

    def made_once(self) -> dict[str, float]:
        made = self.source.made_once()
        return {"seconds": made["seconds"] + self.figures["train"]["seconds"], "flops": made["flops"]}

    def flops_per_token(self, teacher: PretrainedConfig, n_latents: int, k: int) -> float:
        return 0.0  # those of `source`


PLACES = "places"


class LogitsStage(Stage):
    """The teacher's k most likely next tokens at every training position, and their log-probabilities."""

    version = 2  # sharded stores
    distributed = True

    def __init__(self, run_dir: Path, k: int, config: RunConfig, teacher: TeacherStage) -> None:
        super().__init__(run_dir, f"logits/top{k}", "cocomix label --name logits", [teacher.tokens, teacher])
        self.k, self.seq_len, self.teacher, self.tokens = k, config.seq_len, teacher, teacher.tokens
        self.batch_size = config.evaluation.batch_size
        self.precision = config.students_train.precision
        self.shard_tokens = config.tokens.shard_tokens

    def settings(self) -> dict[str, Any]:
        return {"k": self.k, "seq_len": self.seq_len, "precision": self.precision, "batch_size": self.batch_size}

    def outputs(self) -> list[str]:
        return ["top/manifest.json"]

    def verify(self) -> None:
        self.store()

    def describe(self, figures: dict[str, Any]) -> str:
        return f"{self.k} tokens a position; {figures['tokens_per_second']:,.0f} tokens/s"

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        teacher, shards = self.teacher.model(self.precision), self.tokens.shards("train")
        if self.k > shards.vocab_size:
            raise CocomixError(f"teacher_top_k {self.k} is more than the vocabulary of {shards.vocab_size}; lower it")
        figures = label_split(
            TopTokens(
                teacher,
                k=self.k,
                vocab_size=shards.vocab_size,
                batch_size=self.batch_size,
                precision=self.precision,
            ),
            shards,
            folder,
            seq_len=self.seq_len,
            lineage=self.lineage(),
            scores=True,
            shard_tokens=self.shard_tokens,
            progress=progress,
        )
        flops = model_flops(teacher.config, self.seq_len).forward * figures["tokens"]
        return figures | {"flops": flops, "teacher": as_run(teacher)}

    def lineage(self) -> dict[str, Any]:
        """What these logits depend on, by content."""
        tokens = self.tokens.shards("train").fingerprint
        return self.settings() | {"tokens": tokens, "teacher": self.teacher.checksum()}

    def store(self) -> LabelStore:
        """The finished logits, checked against the tokens and the teacher as they are now."""
        _ = self.figures
        return LabelStore.open(self.folder / "top", expect=self.lineage())

"""Student and evaluation stages, one of each per student and seed."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from cocomix.data.prefixes import longest_prefixes, token_bytes
from cocomix.evaluation.certificate import channel_certificate
from cocomix.evaluation.perplexity import perplexity, window_subset
from cocomix.evaluation.recall import concept_recall, training_counts
from cocomix.labels.schedule import WeightedLabels
from cocomix.labels.shuffled import ShuffledLabels
from cocomix.labels.store import LabelReader
from cocomix.model.build import Sizes, build_plain, special_ids
from cocomix.model.documents import mask_documents
from cocomix.model.loading import load_causal_lm
from cocomix.model.vector_replacements import mixes_vector
from cocomix.objectives.base import Objective, StudentSettings
from cocomix.objectives.registry import build_student
from cocomix.objectives.retrofit import BaseStudent
from cocomix.pipeline.attempts import kept_folders
from cocomix.pipeline.config import RunConfig
from cocomix.pipeline.label_stages import LabelSet, LogitsStage, ScheduledLabelSet
from cocomix.pipeline.predictability_stages import PredictabilityStage
from cocomix.pipeline.sae_stage import SaeStage
from cocomix.pipeline.stage import CHECKPOINTS, Stage
from cocomix.pipeline.starting_points import (
    Extension,
    find_extension,
    load_weights,
    weights_checksum,
    weights_folder,
)
from cocomix.pipeline.training import (
    ModelStage,
    context_setting,
    describe_curve,
    in_bytes,
    seconds_of_a_step,
    train_objective,
    training_figures,
    validation_curve,
)
from cocomix.train.batches import BatchSource
from cocomix.train.config import TrainConfig
from cocomix.utils.console import console, is_main
from cocomix.utils.distributed import device, on_main
from cocomix.utils.errors import CocomixError
from cocomix.utils.settings import identity


class StudentStage(ModelStage):
    """One student trained with one seed; the seed sets initialisation and data order.

    Args:
        labels: its concept labels, stored or live, if it reads any.
        logits: the stage of the teacher's stored logits, if it reads any.
        probes: stages that say how predictable its labels are, one for each set it reads.
    """

    distributed = True

    def __init__(
        self,
        run_dir: Path,
        student: str,
        seed: int,
        config: RunConfig,
        sae: SaeStage,
        labels: LabelSet | None = None,
        logits: LogitsStage | None = None,
        probes: Sequence[PredictabilityStage] = (),
    ) -> None:
        self.probes = list(probes)
        self.student, self.seed, self.run_config = student, seed, config
        self.config: StudentSettings = config.students[student]
        self.tokens, self.sae, self.labels, self.logits = sae.tokens, sae, labels, logits
        self.train = _own_training(config.students_train, self.config, seed)
        self.sign = self.config.label_sign or (labels.signs[0] if labels else "")
        available: dict[str, list[Stage]] = {
            "teacher": [sae.teacher],
            "sae": [sae],
            "labels": [] if labels is None else labels.needed,
            "logits": [] if logits is None else [logits],
        }
        needed = set(self.config.reads)
        matched = self.config.same_size_as
        if matched is not None:  # a student's size may depend on the teacher's width
            needed |= config.students[matched].reads & {"teacher"}
        read = dict.fromkeys(stage for name, stages in available.items() if name in needed for stage in stages)
        self.must_extend = False
        weights = self.probes if self.config.weighs_labels else []
        inputs = [sae.tokens, *read, *dict.fromkeys(weights)]
        super().__init__(run_dir, f"students/{student}/seed{seed}", f"cocomix train {student}", inputs)

    def settings(self) -> dict[str, Any]:
        matched = self.config.same_size_as
        needs = matched or self.student
        return {
            "student": identity(self.config),
            "matched": identity(self.run_config.students[matched]) if matched else None,
            "concepts": self._concepts() if "sae" in self.run_config.students[needs].reads else None,
            "sae_layer": self.run_config.sae.layer if "teacher" in self.config.reads else None,
            "train": self.train.recipe() | self._start(),
            "seq_len": self.run_config.seq_len,
            "curve_windows": self.run_config.evaluation.curve_windows,
            **context_setting(self.run_config),
        } | ({} if self.labels is None else self.labels.reader_settings())

    def describe(self, figures: dict[str, Any]) -> str:
        return f"{figures['parameters']:,} parameters{describe_curve(figures)}"

    @property
    def uses_sae_concepts(self) -> bool:
        """Whether what it predicts are the concepts of the run's SAE, and so have their names."""
        return self.config.uses_sae_concepts and (self.labels is None or self.labels.of_teacher)

    def _start(self) -> dict[str, str]:
        """The weights it starts from, by their checksum; empty: its own initialisation."""
        start = {}
        if self.train.init_from is not None:
            start["init_from"] = weights_checksum(weights_folder(self.train.init_from, self.run_dir))
        source = self.config.starts_from
        if source is not None and Path(source).is_dir():  # others are known by their name
            start["base"] = weights_checksum(Path(source))
        return start

    def extension(self, objective: Objective, n_windows: int) -> Extension:
        """The finished training that this one extends, if any."""
        folders = [self.folder, *kept_folders(self.run_dir, self.name)]
        total = self.train.total_steps(n_windows)
        settings = json.loads(json.dumps(self.settings()))
        found = find_extension(folders, settings, self._inputs_outcome(), self.train, total)
        scheduled = self.labels is not None and self.labels.depends_on_progress
        if found.state is not None and (objective.uses_progress or scheduled):
            why = "its loss depends on the share of training done"
            return Extension(None, found.steps, f"the finished {found.steps} steps cannot be extended: {why}")
        return found

    def _extended(self, objective: Objective, batches: BatchSource, folder: Path) -> Path | None:
        """The state to go on from, and a line about it.

        Raises:
            CocomixError: the user asked for an extension, and there is none.
        """
        if any((folder / CHECKPOINTS).glob("step-*")):
            return None  # begun already
        found = self.extension(objective, batches.n_windows)
        if self.must_extend and found.state is None:
            raise CocomixError(f"{self.title}: {found.reason or 'there is no finished training to extend'}")
        if found.reason and is_main():
            begins = "" if found.state else "; it is trained from the start"
            console.print(f"  {self.title}: {found.reason}{begins}", highlight=False, markup=False, soft_wrap=True)
        return found.state

    def _say_predictability(self) -> dict[str, Any]:
        """Print how predictable its labels are, or what measures it; returns the figures that are known."""
        known = {}
        for probe in dict.fromkeys(self.probes):
            words, low = probe.sentence()
            if is_main():
                style = "yellow" if low else None
                console.print(f"  {words}", style=style, highlight=False, markup=False, soft_wrap=True)
            if probe.done():
                known[probe.label_name] = {name: probe.figures[name] for name in ("nats", "interval", "beyond_token")}
        return {"label_predictability": known} if known else {}

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        predictability = self._say_predictability()
        objective, batches = self.objective(), self.batches()
        labels = (
            self.labels.reader("val", self.sign) if self.config.uses_sae_concepts and self.labels is not None else None
        )
        val, evaluation = self.tokens.shards("val"), self.run_config.evaluation
        bytes_of = self.tokens.bytes_of("val")
        validate = validation_curve(val, self.run_config.seq_len, evaluation, self.train.precision, labels, bytes_of)
        extend = on_main(lambda: self._extended(objective, batches, folder))
        options: dict[str, Any] = {"keep_state": True, "extend": extend}
        result = train_objective(objective, batches, self.train, folder, validate, progress, **options)
        if is_main():
            self.tokens.tokenizer().save_pretrained(folder / "model")
        model: Any = objective.evaluated()
        return training_figures(result) | {
            "parameters": model.num_parameters(),
            "width": model.config.hidden_size,
            "flops_per_token": objective.flops_per_token(self.run_config.seq_len),
            **predictability,
        }

    def seconds_to_train(self) -> float:
        """Seconds that its training will take here, without evaluation, by a few steps; its inputs must be finished."""
        batches = self.batches()
        return seconds_of_a_step(self.objective(), batches, self.train) * self.train.total_steps(batches.n_windows)

    def objective(self) -> Objective:
        """The student, freshly initialised, and what it is trained on."""
        torch.manual_seed(self.seed)
        model = build_student(self.run_config.students, self.student, self._sizes)
        if self.train.init_from is not None:
            load_weights(model, weights_folder(self.train.init_from, self.run_dir))
        if context_setting(self.run_config):
            mask_documents(model, self.tokens.special)
        precision = self.train.precision
        sizes = self._sizes(self.student)
        objective = self.config.make_objective(model, sizes, lambda: self.sae.teacher.model(precision))
        objective.initialise_heads(self.config.model)
        return objective

    def batches(self) -> BatchSource:
        """Its training data: tokens, and labels or logits if it reads any."""
        shards, seq_len = self.tokens.shards("train"), self.run_config.seq_len
        labels = None if self.labels is None else self._training_labels(self.labels)
        if labels is not None and self.config.shuffles_labels:
            labels = ShuffledLabels(labels, shards.n_windows(seq_len))
        logits = None if self.logits is None else self.logits.store()
        return BatchSource(shards, seq_len, labels, logits)

    def _training_labels(self, labels: LabelSet) -> LabelReader:
        """Its labels of the training split, with their weights if it has some."""
        if not self.config.weighs_labels:
            return labels.reader("train", self.sign)
        weights = [probe.weights() for probe in self.probes]
        if not isinstance(labels, ScheduledLabelSet):
            return WeightedLabels(labels.reader("train", self.sign), weights[0])
        readers = [part.reader("train", sign) for part, sign in zip(labels.sets, labels.part_signs, strict=True)]
        return labels.scheduled([WeightedLabels(*pair) for pair in zip(readers, weights, strict=True)])

    def _sizes(self, name: str) -> Sizes:
        reads = self.run_config.students[name].reads
        n_concepts, top_k = self._concepts() if "sae" in reads else (0, 0)
        labels = self.labels if name == self.student else None
        return Sizes(
            vocab_size=self.tokens.figures["vocab_size"],
            seq_len=self.run_config.seq_len,
            n_concepts=n_concepts,
            top_k=top_k,
            teacher_width=self.sae.teacher.width if "teacher" in reads else 0,
            sae_layer=self.sae.layer,
            special=special_ids(self.tokens.tokenizer(), self.tokens.special),
            label_flops=0.0 if labels is None else labels.live_flops(self.train.batch_size),
            first_position=self.tokens.special.first_position,
            prefixes=longest_prefixes(token_bytes(self.tokens.tokenizer())) if "prefixes" in reads else None,
            base=self.base_model,
            base_name=self._base_name(),
            sae=self.sae.model,
            label_counts=None if labels is None else lambda: self._label_counts(labels, n_concepts),
            directions=self._directions,
        )

    def plain_model(self) -> PreTrainedModel:
        """A plain Transformers model of its shape, on the CPU, whose weights are not its own."""
        if isinstance(self.config, BaseStudent):
            return self.base_model().cpu()
        sizes = self._sizes(self.student)
        model = build_plain(
            self.config.model, vocab_size=sizes.vocab_size, seq_len=sizes.seq_len, special=sizes.special
        )
        if context_setting(self.run_config):
            mask_documents(model, self.tokens.special)
        return model.eval()

    def _label_counts(self, labels: LabelSet, n_concepts: int) -> np.ndarray:
        """How often each concept is among its labels of windows spread over the training split, int64 `[C]`."""
        n_windows, seq_len = self.tokens.shards("train").n_windows(self.run_config.seq_len), self.run_config.seq_len
        return training_counts(labels.reader("train", self.sign), n_windows, n_concepts, seq_len=seq_len)

    def _directions(self, kind: str) -> torch.Tensor:
        """Directions of the SAE's concepts in the concept model, in this training's precision."""
        return self.sae.directions(kind, self.tokens, self.run_config.seq_len, self.train.precision)

    def base_model(self) -> PreTrainedModel:
        """The finished model that it starts as, of a student that does, in evaluation mode."""
        source = self.config.starts_from
        if source is None:
            return self.sae.teacher.model()
        model = load_causal_lm(source, f"the base of {self.student}")
        return model.to(device())  # pyright: ignore[reportArgumentType]

    def _base_name(self) -> str:
        """What an adapter calls that model: hub id or path; of a teacher trained here, from the adapter's folder on."""
        source = self.config.starts_from or self.run_config.teacher.pretrained
        if source is None:
            return os.path.relpath(self.sae.teacher.folder / "model", self.folder / "model")
        return str(Path(source).resolve()) if Path(source).exists() else source

    def _concepts(self) -> tuple[int, int]:
        """Number of concepts and active ones; known before training unless the SAE comes from outside."""
        sae = self.run_config.sae
        if sae.pretrained is None:
            return sae.n_latents, sae.k
        return self.sae.figures["n_latents"], self.sae.figures["k"]

    def model(self) -> PreTrainedModel:
        """The finished student, in evaluation mode."""
        self.check()
        model = load_causal_lm(self.folder / "model", f"the student {self.student}", self.redo_hint)
        return model.to(device())  # pyright: ignore[reportArgumentType]


def _own_training(train: TrainConfig, student: StudentSettings, seed: int) -> TrainConfig:
    """The students' training, with this one's length, learning rate and seed."""
    own: dict[str, Any] = {
        "steps": None if train.steps is None else max(1, round(train.steps * student.length)),
        "epochs": None if train.epochs is None else train.epochs * student.length,
        "seed": seed,
    }
    if student.learning_rate is not None:
        own["learning_rate"] = student.learning_rate
    return train.model_copy(update=own)


MOST_CHANNEL_WINDOWS = 64
"""Windows behind a certificate, where the settings do not say."""


class EvaluationStage(Stage):
    """Held-out figures of one trained student: perplexity on validation and test, concept recall, and the losses with
    its vector replaced (`channel`; evaluations of earlier versions have none)."""

    distributed = True

    def __init__(self, student: StudentStage) -> None:
        name = student.name.replace("students/", "evaluation/", 1)
        super().__init__(student.run_dir, name, "cocomix evaluate", [student])
        self.student = student
        self.batch_size = student.run_config.evaluation.batch_size
        self.seq_len, self.windows = student.run_config.seq_len, student.run_config.evaluation.windows
        self.channel_windows = student.run_config.evaluation.channel_windows

    def settings(self) -> dict[str, Any]:
        own = {} if self.channel_windows is None else {"channel_windows": self.channel_windows}
        return {"seq_len": self.seq_len, "windows": self.windows} | own

    def describe(self, figures: dict[str, Any]) -> str:
        recall = f", concept recall {figures['recall']['recall']:.3f}" if "recall" in figures else ""
        val, test = (
            f"{figures[split]['perplexity']:.2f}{in_bytes(figures[split].get('bits_per_byte'))}"
            for split in ("val", "test")
        )
        return f"perplexity {val} (val), {test} (test){recall}"

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        model, student = self.student.model(), self.student
        options: dict[str, Any] = {
            "seq_len": self.seq_len,
            "batch_size": self.batch_size,
            "max_windows": self.windows,
            "sharded": True,
        }
        figures: dict[str, Any] = {}
        for number, split in enumerate(("val", "test")):
            bytes_of = student.tokens.bytes_of(split)
            figures[split] = perplexity(model, student.tokens.shards(split), bytes_of=bytes_of, **options)
            progress(number + 1, 2, {})
        labels = self.own_labels()
        if labels is not None:
            figures["recall"] = concept_recall(model, student.tokens.shards("val"), labels, **options)
        channel = self.certificate(model)
        return figures if channel is None else figures | {"channel": channel}

    def certificate(self, model: PreTrainedModel) -> dict[str, Any] | None:
        """`channel_certificate` of the loaded student on validation windows.

        None where it mixes no vector in, or by the settings or for want of text fewer than two windows are measured.
        """
        shards = self.student.tokens.shards("val")
        measured = len(window_subset(shards.n_windows(self.seq_len), self.windows))
        most = self.channel_windows
        if most is None:  # 4 or 5 passes over them, beside 2 or 3 over all
            most = min(MOST_CHANNEL_WINDOWS, max(measured // 2, 2))
        if min(most, measured) < 2 or not mixes_vector(model):
            return None
        return channel_certificate(
            model,
            shards,
            seq_len=self.seq_len,
            batch_size=self.batch_size,
            max_windows=most,
            labels=self.own_labels(),
            sharded=True,
        )

    def own_labels(self) -> LabelReader | None:
        """Labels of the validation split of a student that predicts their concepts."""
        student = self.student
        if not student.config.uses_sae_concepts or student.labels is None:
            return None
        return student.labels.reader("val", student.sign)

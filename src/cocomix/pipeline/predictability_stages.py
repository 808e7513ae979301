"""How predictable label sets are from the text before them: `cocomix label --predictability`.

A short next-token student (`ProbeStudentStage`) is trained without labels, once for each shape. Its hidden states where
students read concepts are what a linear probe predicts the labels from (`PredictabilityStage`, one a label set and
sign). Both are kept like any stage, so students say the figure without measuring it again.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedModel

from cocomix.data.shards import TokenShards
from cocomix.evaluation.perplexity import window_subset
from cocomix.kernels.normalise import normalise
from cocomix.labels.predictability import LabelledPositions, predictability
from cocomix.labels.store import LabelReader
from cocomix.model.build import ModelShape, build_plain, special_ids
from cocomix.model.documents import mask_documents
from cocomix.model.loading import load_causal_lm
from cocomix.model.teacher import hidden_at
from cocomix.objectives.ntp import NtpObjective
from cocomix.pipeline.config import RunConfig
from cocomix.pipeline.data_stages import TokensStage
from cocomix.pipeline.label_stages import LabelSet
from cocomix.pipeline.stage import Stage
from cocomix.pipeline.training import (
    ModelStage,
    context_setting,
    describe_curve,
    train_objective,
    training_figures,
    validation_curve,
)
from cocomix.train.batches import BatchSource
from cocomix.train.config import TrainConfig
from cocomix.utils.advice import command_line
from cocomix.utils.console import is_main
from cocomix.utils.distributed import device
from cocomix.utils.errors import CocomixError
from cocomix.utils.settings import identity

COMMAND = "cocomix label --predictability"
CONCEPTS = "concepts.safetensors"


class Place(NamedTuple):
    """The hidden states that labels are predicted from."""

    shape: ModelShape
    concept_layer: int
    """block (0-based) that they enter; the number of blocks: they leave the last one"""


def place_of(config: RunConfig, label_set: str) -> Place:
    """Where the set is probed: as settings say, else as its first reader does, else as any student with concepts."""
    section = config.predictability
    readers = [s for s in config.students.values() if any(part.set == label_set for part in s.label_parts)]
    like = next((s for s in [*readers, *config.students.values()] if s.mixing is not None), None)
    shape = section.model or (like.model if like else next(iter(config.students.values())).model)
    layer = like.mixing.concept_layer if like and like.mixing else max(1, shape.layers // 2)
    plain = shape.model_copy(update={"logit_cap": None})  # which acts above the states that are read
    return Place(plain, min(section.concept_layer or layer, shape.layers))


class ProbeStudentStage(ModelStage):
    """A plain next-token student of a given shape, trained for a few steps only."""

    distributed = True

    def __init__(self, run_dir: Path, shape: ModelShape, config: RunConfig, tokens: TokensStage) -> None:
        kv = "" if shape.kv_heads is None else f"-{shape.kv_heads}"
        name = f"{shape.backbone}-{shape.width}x{shape.layers}-{shape.heads}{kv}"
        super().__init__(run_dir, f"probe_students/{name}", COMMAND, [tokens])
        self.shape, self.tokens, self.run_config = shape, tokens, config
        self.context = context_setting(config)
        self.train = _short(config.students_train, config.predictability.tokens, config.seq_len)

    def settings(self) -> dict[str, Any]:
        return {
            "model": identity(self.shape),
            "train": self.train.recipe(),
            "seq_len": self.run_config.seq_len,
        } | self.context

    def describe(self, figures: dict[str, Any]) -> str:
        return f"{figures['tokens']:,} tokens{describe_curve(figures)}"

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        seq_len, evaluation = self.run_config.seq_len, self.run_config.evaluation
        torch.manual_seed(self.train.seed)
        special = special_ids(self.tokens.tokenizer(), self.tokens.special)
        vocab_size = self.tokens.figures["vocab_size"]
        model = build_plain(self.shape, vocab_size=vocab_size, seq_len=seq_len, special=special)
        if self.context:
            mask_documents(model, self.tokens.special)
        validate = validation_curve(self.tokens.shards("val"), seq_len, evaluation, self.train.precision)
        data = BatchSource(self.tokens.shards("train"), seq_len)
        result = train_objective(NtpObjective(model), data, self.train, folder, validate, progress)
        if is_main():
            self.tokens.tokenizer().save_pretrained(folder / "model")
        return training_figures(result)

    def model(self) -> PreTrainedModel:
        """The finished student, in evaluation mode, taking no gradients."""
        self.check()
        model = load_causal_lm(self.folder / "model", "the probe's student", self.redo_hint)
        return model.requires_grad_(False).to(device())  # pyright: ignore[reportArgumentType]


def _short(train: TrainConfig, tokens: int, seq_len: int) -> TrainConfig:
    """The students' training, over `tokens` tokens in all."""
    steps = max(1, round(tokens / (train.batch_size * seq_len)))
    shorter = {"steps": steps, "epochs": None, "warmup_steps": None, "init_from": None, "n_evals": 1, "n_snapshots": 0}
    return train.model_copy(update=shorter | {"trackers": ()})


class PredictabilityStage(Stage):
    """How far above their marginal the labels of one set and sign can be predicted by a linear probe."""

    def __init__(self, run_dir: Path, labels: LabelSet, sign: str, layer: int, student: ProbeStudentStage) -> None:
        self.labels, self.sign, self.layer, self.student = labels, sign, layer, student
        self.section, self.seq_len = student.run_config.predictability, student.run_config.seq_len
        self.label_name = labels.set_name + (f"/{sign}" if sign else "")
        inputs = dict.fromkeys([student.tokens, student, *labels.needed])
        command = f"{COMMAND} --name {labels.set_name}"
        super().__init__(run_dir, f"predictability/{self.label_name}", command, list(inputs))

    def settings(self) -> dict[str, Any]:
        sizes = self.section.model_dump(mode="json", include={"positions", "passes", "val_windows"})
        own = {"sign": self.sign, "concept_layer": self.layer, "seq_len": self.seq_len}
        return own | sizes | self.labels.reader_settings()

    def outputs(self) -> list[str]:
        return [CONCEPTS]

    def describe(self, figures: dict[str, Any]) -> str:
        low, high = figures["interval"]
        return (
            f"{figures['nats']:+.3f} nats a label above the marginal [{low:+.3f}, {high:+.3f}],"
            f" {figures['beyond_token']:+.3f} beyond the current token"
        )

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        model = self.student.model()
        splits = {"train": max(1, self.section.positions // self.seq_len), "val": self.section.val_windows}
        gathered = {}
        for number, (split, windows) in enumerate(splits.items()):
            shards = self.student.tokens.shards(split)
            reader = self.labels.reader(split, self.sign)
            gathered[split] = labelled_positions(model, shards, reader, self.seq_len, self.layer, windows)
            progress(number + 1, 3, {})
            if not len(gathered[split].tokens):
                raise CocomixError(
                    f"no position of {reader.where} is labelled in the {split} split, so there is nothing to predict;"
                    " lower the labels' k, use another rule, or raise predictability.val_windows"
                )
        n_concepts, vocab_size = self.labels.sae.figures["n_latents"], self.student.tokens.figures["vocab_size"]
        found = predictability(
            gathered["train"],
            gathered["val"],
            n_concepts=n_concepts,
            vocab_size=vocab_size,
            passes=self.section.passes,
        )
        progress(3, 3, {})
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"gains": found.gains.astype(np.float32), "weights": found.weights}, folder / CONCEPTS)
        return {
            "nats": found.above_marginal.mean,
            "interval": list(found.above_marginal[1:]),
            "beyond_token": found.beyond_token.mean,
            "beyond_token_interval": list(found.beyond_token[1:]),
            "cross_entropy": {name: getattr(found, name) for name in ("marginal", "given_token", "probe", "mixture")},
            "table": {"strength": found.strength, "share": found.table_share},
            "positions": {split: len(positions.tokens) for split, positions in gathered.items()},
            "student": {
                "model": identity(self.student.shape),
                "concept_layer": self.layer,
                "tokens": self.student.figures["tokens"],
            },
        }

    def verify(self) -> None:
        self.check()

    def weights(self) -> np.ndarray:
        """`cocomix.labels.predictability.label_weights` of the finished stage, float32 `[C]`.

        Raises:
            CocomixError: it is not finished, or no concept can be predicted.
        """
        self.check()
        weights = load_file(self.folder / CONCEPTS)["weights"]
        if not weights.any():
            raise CocomixError(
                f"no concept of the labels {self.label_name} can be predicted better than by its frequency, so weights"
                " by predictability would all be 0; use other labels, or train the probe's student longer"
                " (predictability.tokens)"
            )
        return weights

    def sentence(self) -> tuple[str, bool]:
        """What is known of these labels, for a student's log, and whether that is a warning."""
        record = self.record() if self.done() else None
        if record is None:
            command = command_line(self.command, self.user_folder, self.user_options)
            return f"how predictable the labels {self.label_name} are is not known; {command} says it", False
        figures, threshold = record["figures"], self.section.threshold
        words = f"labels {self.label_name}: {self.describe(figures)}"
        tokens = f"{figures['student']['tokens']:,}"
        words += f" (a linear probe of a next-token student after {tokens} tokens)"
        if figures["nats"] < threshold:
            return f"{words}; that is under predictability.threshold {threshold:g}, so expect little of them", True
        return words, False


@torch.no_grad()
def labelled_positions(
    model: PreTrainedModel, shards: TokenShards, labels: LabelReader, seq_len: int, layer: int, windows: int
) -> LabelledPositions:
    """Labelled positions of `windows` windows, evenly spread, with the normalised states that enter block `layer`."""
    chosen = window_subset(shards.n_windows(seq_len), windows)
    parts = list(_parts(model, shards, labels, seq_len, layer, chosen))
    if not parts:
        raise CocomixError(f"{shards.folder} has fewer tokens than one window of {seq_len}; add text or lower seq_len")
    hidden = torch.cat([part.hidden for part in parts])
    return LabelledPositions(hidden, *(np.concatenate(field) for field in list(zip(*parts, strict=True))[1:]))


def _parts(
    model: PreTrainedModel, shards: TokenShards, labels: LabelReader, seq_len: int, layer: int, windows: np.ndarray
) -> Iterator[LabelledPositions]:
    for start in range(0, len(windows), 16):
        indices = windows[start : start + 16]
        ids, targets = shards.windows(indices, seq_len), labels.read(indices, seq_len)
        states = normalise(hidden_at(model, torch.from_numpy(ids).to(device()), layer - 1).float())[0]
        used = targets[..., 0] >= 0
        numbers = np.broadcast_to(np.arange(start, start + len(indices))[:, None], used.shape)
        yield LabelledPositions(
            states[torch.from_numpy(used)], ids[used].astype(np.int64), targets[used], numbers[used]
        )


def predictability_table(stages: list[PredictabilityStage]) -> Table:
    """A line a label set: cross entropies and what they leave to learn, in nats a label."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("labels", overflow="fold")
    for heading in ("marginal", "token", "probe", "above marginal", "beyond token"):
        table.add_column(heading, justify="right", no_wrap=True)
    for stage in stages:
        figures = stage.figures
        entropies = (f"{figures['cross_entropy'][name]:.3f}" for name in ("marginal", "given_token", "probe"))
        gains = (
            f"{figures[name]:.3f} [{figures[interval][0]:.2f}, {figures[interval][1]:.2f}]"
            for name, interval in (("nats", "interval"), ("beyond_token", "beyond_token_interval"))
        )
        table.add_row(Text(stage.label_name), *entropies, *gains)
    return table

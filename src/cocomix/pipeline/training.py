"""Stages that leave a model, and what those that train one share: train, save, and keep the figures."""

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from cocomix.data.byte_counts import ByteCounts
from cocomix.data.shards import TokenShards
from cocomix.evaluation.perplexity import perplexity
from cocomix.evaluation.recall import concept_recall
from cocomix.labels.store import LabelReader
from cocomix.objectives.base import Objective
from cocomix.pipeline.config import EvaluationConfig, RunConfig
from cocomix.pipeline.stage import Stage
from cocomix.train.batches import BatchSource
from cocomix.train.config import TrainConfig
from cocomix.train.parallel import save_model
from cocomix.train.trainer import Trainer, TrainResult
from cocomix.utils.clock import CLOCK
from cocomix.utils.files import check_weights, sha256


class ModelStage(Stage):
    """A stage that leaves a model in its folder `model`."""

    saves_when_stopped = True

    def outputs(self) -> list[str]:
        return ["model/config.json"]

    def verify(self) -> None:
        check_weights(self.folder / "model", self.redo_hint)

    def checksum(self) -> str:
        """sha256 over the weight files."""
        return sha256(*sorted((self.folder / "model").glob("*.safetensors")))


def train_objective(
    objective: Objective,
    data: BatchSource,
    config: TrainConfig,
    folder: Path,
    validate: Callable[[nn.Module], dict[str, float]] | None,
    progress: Any,
    **options: Any,
) -> TrainResult:
    """Train in `folder`, resuming from its checkpoints, and save the model to `folder/model`.

    Args:
        options: `keep_state` and `extend` of the `Trainer`.
    """
    result = Trainer(objective, data, config, folder, evaluate=validate, progress=progress, **options).run()
    save_model(objective, folder / "model")
    return result


def seconds_of_a_step(objective: Objective, data: BatchSource, config: TrainConfig, steps: int = 2) -> float:
    """Seconds of a training step here: the mean of `steps` after a first one. Nothing is kept."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(objective, data, config, Path(folder))
        loss_fn, started = trainer.wrapped(), 0.0
        for step in range(1 + steps):
            if step == 1:
                started = CLOCK.seconds()
            trainer.train_step(loss_fn)
            trainer.step += 1
        return (CLOCK.seconds() - started) / steps


def context_setting(config: RunConfig) -> dict[str, str]:
    """What a model's stage must know of the run's `context`; nothing at its default, as before there was one."""
    return {} if config.context == "window" else {"context": config.context}


def recipe(config: TrainConfig | None) -> dict[str, Any] | None:
    """The settings of a training that decide its outcome; None without a training."""
    return None if config is None else config.recipe()


def training_figures(result: TrainResult) -> dict[str, Any]:
    """The result as a stage's figures."""
    return asdict(result)


def validation_curve(
    shards: TokenShards,
    seq_len: int,
    evaluation: EvaluationConfig,
    precision: str,
    labels: LabelReader | None = None,
    bytes_of: ByteCounts | None = None,
) -> Callable[[nn.Module], dict[str, float]]:
    """The evaluation of each point of a training curve, on a fixed, evenly spread subset of the validation windows.

    Perplexity, bits per byte with `bytes_of`, and concept recall if there are `labels`; the processes of a launch share
    the work.
    """
    options: dict[str, Any] = {
        "seq_len": seq_len,
        "batch_size": evaluation.batch_size,
        "max_windows": evaluation.curve_windows,
        "precision": precision,
        "sharded": True,
    }

    def validate(model: nn.Module) -> dict[str, float]:
        measured = perplexity(model, shards, bytes_of=bytes_of, **options)
        figures = {f"val_{name}": measured[name] for name in ("perplexity", "bits_per_byte") if name in measured}
        if labels is not None:
            figures["val_recall"] = concept_recall(model, shards, labels, **options)["recall"]
        return figures

    return validate


def describe_curve(figures: dict[str, Any]) -> str:
    """The last validation perplexity in a training stage's figures, as the end of a sentence."""
    points = [point for point in figures.get("curve") or [] if "val_perplexity" in point]
    if not points:
        return ""
    return f", validation perplexity {points[-1]['val_perplexity']:.2f}{in_bytes(points[-1].get('val_bits_per_byte'))}"


def in_bytes(bits: float | None) -> str:
    """Bits per byte behind a perplexity, in brackets; empty where they are not known, as in earlier runs."""
    return "" if bits is None else f" ({bits:.4f} bits per byte)"

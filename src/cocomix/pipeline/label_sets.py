"""Where students get concept labels from: a store made once, or the concept model itself while they train.

Both are made by the same labeller, so a student ends with the same weights either way. A store costs disk and is
charged to its readers by the share they read; live labels cost their passes again in every epoch of every student,
and count as training.
"""

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from cocomix.labels.label_reader import LabelReader
from cocomix.labels.labeler import ConceptLabeller
from cocomix.labels.live import LiveLabels
from cocomix.model.flops import labelling_flops
from cocomix.model.loading import model_config
from cocomix.pipeline.config import LabelConfig, RunConfig
from cocomix.pipeline.sae_stage import SaeStage
from cocomix.pipeline.stage import Stage
from cocomix.pipeline.teacher_stage import TeacherStage
from cocomix.utils.processes import world_size


class LabelSet(ABC):
    """One named set of labels.

    Attributes:
        config: its section of the run's settings.
        needed: stages that must be finished before it can be read.
    """

    config: LabelConfig
    teacher: TeacherStage
    sae: SaeStage
    seq_len: int
    needed: list[Stage]

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
            self.teacher.model(),
            self.sae.model(),
            layer=self.sae.config.layer,
            rule=config.rule,
            signs=signs,
            k=config.k,
            batch_size=config.batch_size,
            precision=config.precision,
        )

    def flops_per_token(self, teacher: PretrainedConfig, n_latents: int, k: int) -> float:
        """Operations a labelled token of this set takes, by a concept model and an SAE of these shapes."""
        return labelling_flops(
            teacher, n_latents=n_latents, k=k, layer=self.sae.config.layer, rule=self.config.rule, seq_len=self.seq_len
        )

    def live_flops(self, batch_size: int) -> float:
        """Operations of labelling in every trained token, with the finished teacher and SAE; 0 if labels are stored."""
        share = self.live_share(batch_size, world_size())
        if not share:
            return 0.0
        shape = model_config(self.teacher.folder / "model", self.teacher.again)
        return share * self.flops_per_token(shape, self.sae.figures["n_latents"], self.sae.figures["k"])


class LiveLabelSet(LabelSet):
    """Labels made in every training step; nothing on disk."""

    def __init__(self, config: LabelConfig, teacher: TeacherStage, sae: SaeStage) -> None:
        self.config, self.teacher, self.sae, self.seq_len = config, teacher, sae, sae.seq_len
        self.needed = [teacher, sae]

    def reader(self, split: str, sign: str) -> LabelReader:
        return LiveLabels(self.teacher.tokens.shards(split), self.labeller((sign,)), seq_len=self.seq_len)

    def made_once(self) -> dict[str, float]:
        return {"seconds": 0.0, "flops": 0.0}

    def reader_settings(self) -> dict[str, Any]:
        return {"live_labels": self.config.model_dump(mode="json", exclude={"signs", "scores"})}

    def live_share(self, batch_size: int, processes: int) -> float:
        share = math.ceil(batch_size / processes)
        passes = math.ceil(share / self.config.batch_size)
        return passes * self.config.batch_size / share


def label_set(run_dir: Path, name: str, config: RunConfig, teacher: TeacherStage, sae: SaeStage) -> LabelSet:
    """The set `name`, stored or live as its settings say."""
    from cocomix.pipeline.label_stages import LabelStage

    if config.labels[name].live:
        return LiveLabelSet(config.labels[name], teacher, sae)
    return LabelStage(run_dir, name, config, teacher, sae)

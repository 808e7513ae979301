"""The stage that stores the teacher's likeliest tokens, for distillation without running it again."""

from pathlib import Path
from typing import Any

from cocomix.concepts import LabelStore
from cocomix.concepts.labelling import store_logits
from cocomix.config import RunConfig
from cocomix.errors import CocomixError
from cocomix.evaluate.flops import model_flops
from cocomix.pipeline.stage import Stage
from cocomix.pipeline.teacher_stage import TeacherStage


class LogitsStage(Stage):
    """The k likeliest next tokens of every training position, and their log-probabilities."""

    distributed = True

    def __init__(self, run_dir: Path, k: int, config: RunConfig, teacher: TeacherStage) -> None:
        super().__init__(run_dir, f"logits/top{k}", "cocomix label --name logits", [teacher.tokens, teacher])
        self.k, self.seq_len, self.teacher, self.tokens = k, config.seq_len, teacher, teacher.tokens
        self.batch_size = config.evaluation.batch_size
        self.precision = config.students_train.precision

    def settings(self) -> dict[str, Any]:
        return {"k": self.k, "seq_len": self.seq_len, "precision": self.precision}

    def outputs(self) -> list[str]:
        return ["top/manifest.json"]

    def describe(self, figures: dict[str, Any]) -> str:
        return f"{self.k} tokens a position; {figures['tokens_per_second']:,.0f} tokens/s"

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        teacher, shards = self.teacher.model(), self.tokens.shards("train")
        if self.k > shards.vocab_size:
            raise CocomixError(f"teacher_top_k {self.k} is more than the vocabulary of {shards.vocab_size}; lower it")
        figures = store_logits(
            teacher,
            shards,
            folder,
            k=self.k,
            seq_len=self.seq_len,
            batch_size=self.batch_size,
            lineage=self.lineage(),
            precision=self.precision,
            progress=progress,
        )
        return figures | {"flops": model_flops(teacher.config, self.seq_len).forward * figures["tokens"]}

    def lineage(self) -> dict[str, Any]:
        """What these logits depend on, by content."""
        tokens = self.tokens.shards("train").fingerprint
        return {"tokens": tokens, "teacher": self.teacher.checksum(), "k": self.k, "seq_len": self.seq_len}

    def store(self) -> LabelStore:
        """The finished logits, checked against the tokens and the teacher as they are now."""
        _ = self.figures
        return LabelStore.open(self.folder / "top", expect=self.lineage())

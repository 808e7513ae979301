"""The stage that stores the teacher's likeliest tokens, for distillation without running it again."""

from pathlib import Path
from typing import Any

from cocomix.labels.labeler import TopTokens
from cocomix.labels.labelling import label_split
from cocomix.labels.store import LabelStore
from cocomix.model.flops import model_flops
from cocomix.pipeline.config import RunConfig
from cocomix.pipeline.stage import Stage
from cocomix.pipeline.teacher_stage import TeacherStage
from cocomix.utils.errors import CocomixError


class LogitsStage(Stage):
    """The k likeliest next tokens of every training position, and their log-probabilities."""

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
        teacher, shards = self.teacher.model(), self.tokens.shards("train")
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
        return figures | {"flops": model_flops(teacher.config, self.seq_len).forward * figures["tokens"]}

    def lineage(self) -> dict[str, Any]:
        """What these logits depend on, by content."""
        tokens = self.tokens.shards("train").fingerprint
        return self.settings() | {"tokens": tokens, "teacher": self.teacher.checksum()}

    def store(self) -> LabelStore:
        """The finished logits, checked against the tokens and the teacher as they are now."""
        _ = self.figures
        return LabelStore.open(self.folder / "top", expect=self.lineage())

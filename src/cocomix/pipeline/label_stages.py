"""The stage that labels the corpus with concepts."""

from pathlib import Path
from typing import Any

from cocomix.labels.labelling import label_split
from cocomix.labels.store import LabelStore
from cocomix.pipeline.config import RunConfig
from cocomix.pipeline.label_sets import LabelSet
from cocomix.pipeline.sae_stage import SaeStage
from cocomix.pipeline.stage import Stage
from cocomix.pipeline.teacher_stage import TeacherStage


class LabelStage(Stage, LabelSet):
    """Labels by one rule, a set for each sign, for the training and the validation split."""

    version = 3  # 2: sharded stores; 3: fused kernels, whose labels differ in last bits
    distributed = True
    splits = ("train", "val")

    def __init__(self, run_dir: Path, name: str, config: RunConfig, teacher: TeacherStage, sae: SaeStage) -> None:
        super().__init__(run_dir, f"labels/{name}", f"cocomix label --name {name}", [teacher.tokens, teacher, sae])
        self.config, self.seq_len = config.labels[name], config.seq_len
        self.shard_tokens = config.tokens.shard_tokens
        self.teacher, self.sae, self.tokens = teacher, sae, teacher.tokens
        self.needed = [self]

    def settings(self) -> dict[str, Any]:
        return self.config.model_dump(mode="json", exclude={"live"}) | {"seq_len": self.seq_len}

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
                self.tokens.shards(split),
                folder / split,
                seq_len=self.seq_len,
                lineage=self.lineage(split),
                scores=self.config.scores,
                shard_tokens=self.shard_tokens,
                progress=progress if split == "train" else None,
            )
            for split in self.splits
        }
        per_token = self.flops_per_token(labeller.teacher.config, labeller.sae.n_latents, labeller.sae.k)
        return figures | {"flops": per_token * figures["train"]["tokens"]}

    def lineage(self, split: str) -> dict[str, Any]:
        """What these labels depend on, by content."""
        return {
            "tokens": self.tokens.shards(split).fingerprint,
            "teacher": self.teacher.checksum(),
            "sae": self.sae.checksum(),
            "layer": self.sae.config.layer,
            "rule": self.config.rule,
            "k": self.config.k,
            "seq_len": self.seq_len,
            "batch_size": self.config.batch_size,
            "precision": self.config.precision,
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

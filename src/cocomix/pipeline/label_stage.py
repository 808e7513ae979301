"""The stage that labels the corpus with concepts."""

from pathlib import Path
from typing import Any

from cocomix.concepts import LabelStore
from cocomix.concepts.labelling import label_split
from cocomix.config import RunConfig
from cocomix.evaluate.flops import labelling_flops
from cocomix.pipeline.sae_stage import SaeStage
from cocomix.pipeline.stage import Stage
from cocomix.pipeline.teacher_stage import TeacherStage


class LabelStage(Stage):
    """Labels by one rule, a set for each sign, for the training and the validation split."""

    distributed = True
    splits = ("train", "val")

    def __init__(self, run_dir: Path, name: str, config: RunConfig, teacher: TeacherStage, sae: SaeStage) -> None:
        super().__init__(run_dir, f"labels/{name}", f"cocomix label --name {name}", [teacher.tokens, teacher, sae])
        self.config, self.seq_len = config.labels[name], config.seq_len
        self.batch_size = config.evaluation.batch_size
        self.teacher, self.sae, self.tokens = teacher, sae, teacher.tokens

    def settings(self) -> dict[str, Any]:
        return self.config.model_dump(mode="json") | {"seq_len": self.seq_len}

    def outputs(self) -> list[str]:
        return [f"{split}/{sign}/manifest.json" for split in self.splits for sign in self.config.signs]

    def describe(self, figures: dict[str, Any]) -> str:
        shares = ", ".join(f"{sign} {share:.1%}" for sign, share in figures["train"]["valid_share"].items())
        return f"positions labelled: {shares}; {figures['train']['tokens_per_second']:,.0f} tokens/s"

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        teacher, sae = self.teacher.model(), self.sae.model()
        figures: dict[str, Any] = {}
        for split in self.splits:
            figures[split] = label_split(
                teacher,
                sae,
                self.tokens.shards(split),
                folder / split,
                layer=self.sae.config.layer,
                rule=self.config.rule,
                signs=self.config.signs,
                k=self.config.k,
                seq_len=self.seq_len,
                batch_size=self.batch_size,
                lineage=self.lineage(split),
                precision=self.config.precision,
                progress=progress if split == "train" else None,
            )
        per_token = labelling_flops(
            teacher.config,
            n_latents=sae.n_latents,
            k=sae.k,
            layer=self.sae.config.layer,
            rule=self.config.rule,
            seq_len=self.seq_len,
        )
        figures["flops"] = per_token * figures["train"]["tokens"]
        return figures

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
        }

    def store(self, split: str, sign: str) -> LabelStore:
        """The finished labels of `split` and `sign`, checked against the tokens, teacher and SAE as they are now."""
        _ = self.figures
        return LabelStore.open(self.folder / split / sign, expect=self.lineage(split) | {"sign": sign})

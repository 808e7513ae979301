"""Student and evaluation stages, one of each per student and seed."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from cocomix.config import ModelShape, RunConfig
from cocomix.evaluate.flops import model_flops
from cocomix.evaluate.perplexity import perplexity
from cocomix.evaluate.recall import concept_recall
from cocomix.objectives import OBJECTIVES
from cocomix.pipeline.label_stage import LabelStage
from cocomix.pipeline.sae_stage import SaeStage
from cocomix.pipeline.stage import Stage
from cocomix.pipeline.training import describe_curve, train_objective, training_figures, validation_curve
from cocomix.students import build_cocomix, build_plain, load_causal_lm, match_width, parameter_count, special_ids
from cocomix.train.distributed import device, is_main


class StudentStage(Stage):
    """One student trained with one seed; the seed sets initialisation and data order."""

    distributed = True

    def __init__(
        self, run_dir: Path, student: str, seed: int, config: RunConfig, sae: SaeStage, labels: LabelStage | None
    ) -> None:
        inputs = [sae.tokens] if labels is None else [sae.tokens, sae, labels]
        super().__init__(run_dir, f"students/{student}/seed{seed}", f"cocomix train {student}", inputs)
        self.student, self.seed, self.run_config = student, seed, config
        self.config = config.students[student]
        self.train = config.students_train.model_copy(update={"seed": seed})
        self.tokens, self.sae, self.labels = sae.tokens, sae, labels
        self.sign = self.config.sign or (labels.config.signs[0] if labels else "")

    def settings(self) -> dict[str, Any]:
        matched = self.config.match_parameters
        return {
            "student": self.config.model_dump(mode="json"),
            "matched": self.run_config.students[matched].model_dump(mode="json") if matched else None,
            "concepts": self._concepts() if matched else None,
            "train": self.train.model_dump(mode="json"),
            "seq_len": self.run_config.seq_len,
            "curve_windows": self.run_config.evaluation.curve_windows,
        }

    def outputs(self) -> list[str]:
        return ["model/config.json"]

    def describe(self, figures: dict[str, Any]) -> str:
        return f"{figures['parameters']:,} parameters{describe_curve(figures)}"

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        torch.manual_seed(self.seed)
        model = self._build(self.student)
        store = None if self.labels is None else self.labels.store("train", self.sign)
        validate = validation_curve(
            self.tokens.shards("val"), self.run_config.seq_len, self.run_config.evaluation, self.train.precision
        )
        result = train_objective(
            OBJECTIVES[self.config.objective](model),
            self.tokens.shards("train"),
            store,
            self.run_config.seq_len,
            self.train,
            folder,
            validate,
            progress,
        )
        if is_main():
            self.tokens.tokenizer().save_pretrained(folder / "model")
        return training_figures(result) | {
            "parameters": model.num_parameters(),
            "width": model.config.hidden_size,
            "flops_per_token": model_flops(model.config, self.run_config.seq_len).training,
        }

    def _build(self, name: str, shape: ModelShape | None = None) -> PreTrainedModel:
        student = self.run_config.students[name]
        shape = shape or student.model
        sizes = {"vocab_size": self.tokens.figures["vocab_size"], "seq_len": self.run_config.seq_len}
        special = special_ids(self.tokens.tokenizer())
        if student.concept is not None:
            n_concepts, top_k = self._concepts()
            return build_cocomix(shape, student.concept, n_concepts=n_concepts, top_k=top_k, special=special, **sizes)
        if student.match_parameters is not None:
            target = parameter_count(lambda: self._build(student.match_parameters or name))
            shape = match_width(shape, target, **sizes)
        return build_plain(shape, special=special, **sizes)

    def _concepts(self) -> tuple[int, int]:
        """Number of concepts and active ones; known before training unless the SAE comes from outside."""
        sae = self.run_config.sae
        if sae.pretrained is None:
            return sae.n_latents, sae.k
        return self.sae.figures["n_latents"], self.sae.figures["k"]

    def model(self) -> PreTrainedModel:
        """The finished student, in evaluation mode."""
        _ = self.figures
        model = load_causal_lm(self.folder / "model", f"the student {self.student}", self.again)
        return model.to(device())  # pyright: ignore[reportArgumentType]


class EvaluationStage(Stage):
    """Held-out figures of one trained student: perplexity on validation and test, concept recall."""

    def __init__(self, student: StudentStage) -> None:
        name = student.name.replace("students/", "evaluation/", 1)
        super().__init__(student.run_dir, name, "cocomix evaluate", [student])
        self.student = student
        self.batch_size = student.run_config.evaluation.batch_size
        self.seq_len = student.run_config.seq_len

    def settings(self) -> dict[str, Any]:
        return {"seq_len": self.seq_len}

    def describe(self, figures: dict[str, Any]) -> str:
        recall = f", concept recall {figures['recall']['recall']:.3f}" if "recall" in figures else ""
        return (
            f"perplexity {figures['val']['perplexity']:.2f} (val), {figures['test']['perplexity']:.2f} (test){recall}"
        )

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        model = self.student.model()
        figures: dict[str, Any] = {}
        for number, split in enumerate(("val", "test")):
            figures[split] = perplexity(
                model, self.student.tokens.shards(split), seq_len=self.seq_len, batch_size=self.batch_size
            )
            progress(number + 1, 2, {})
        if self.student.labels is not None:
            figures["recall"] = concept_recall(
                model,
                self.student.tokens.shards("val"),
                self.student.labels.store("val", self.student.sign),
                seq_len=self.seq_len,
                batch_size=self.batch_size,
            )
        return figures

"""The stage that measures one way of steering on one trained student."""

from typing import Any

import torch
from transformers import PreTrainedModel

from cocomix.pipeline.stage import Stage
from cocomix.pipeline.student_stages import StudentStage
from cocomix.pipeline.teacher_stage import TeacherStage
from cocomix.steering.score import spread_windows
from cocomix.steering.study.concepts import Concept
from cocomix.steering.study.material import CONTRAST_WINDOWS, PROMPT_TOKENS, Material
from cocomix.steering.study.method_result import Part
from cocomix.steering.study.methods import METHODS, SHOWN

Writer = StudentStage | TeacherStage


class Measured:
    """One student and seed: what its methods share, loaded when one of them has to be measured.

    Args:
        baseline: a student without concepts; None where the run has none, then it steers nothing.
        reader: the model that judges fluency.
        asked: `prompts`, `tokens` and `seed`, as typed.
    """

    def __init__(
        self,
        student: StudentStage,
        baseline: StudentStage | None,
        reader: Writer,
        concepts: list[Concept],
        asked: dict[str, int],
    ) -> None:
        self.student, self.baseline, self.reader = student, baseline, reader
        self.concepts, self.asked = concepts, asked
        self._models: dict[str, PreTrainedModel] = {}
        self._material: Material | None = None

    def stages(self) -> dict[str, Stage]:
        """The stages of the models, by what they are to the methods."""
        found: dict[str, Stage | None] = {
            "student": self.student,
            "teacher": self.student.sae.teacher,
            "baseline": self.baseline,
        }
        return {name: stage for name, stage in found.items() if stage is not None}

    def model(self, name: str) -> PreTrainedModel:
        """A model, loaded once."""
        if name not in self._models:
            stage: Any = self.stages()[name]
            self._models[name] = stage.model()
        return self._models[name]

    def material(self) -> Material:
        """What the methods work with, made once."""
        if self._material is None:
            student, config = self.student, self.student.run_config
            tokenizer = student.tokens.tokenizer()
            prompts = spread_windows(student.tokens.shards("val"), self.asked["prompts"], config.seq_len)
            reader = self.model("teacher") if self.reader is student.sae.teacher else self.reader.model()
            self._material = Material(
                models=self.model,
                sae=student.sae.model(),
                layer=config.sae.layer,
                reader=reader,
                concepts=self.concepts,
                prompts=prompts[:, :PROMPT_TOKENS],
                new_tokens=self.asked["tokens"],
                key=(self.asked["seed"], student.seed),
                train=student.tokens.shards("train"),
                seq_len=config.seq_len,
                decode=lambda ids: str(tokenizer.decode(list(ids))),
            )
        return self._material

    def forget(self) -> None:
        """Let go of the models and texts; what comes next is another seed's."""
        self._models, self._material = {}, None


class SteerEvalStage(Stage):
    """One method, its figures a `Part`."""

    def __init__(self, measured: Measured, method: str, reads: "SteerEvalStage | None") -> None:
        self.measured, self.method, self.reads = measured, METHODS[method], reads
        student = measured.student
        subject = measured.stages()[self.method.subject]
        needed = [student.tokens, subject, student.sae, measured.reader, *([] if reads is None else [reads])]
        name = student.name.replace("students/", "steer-eval/", 1)
        super().__init__(student.run_dir, f"{name}/{method}", "cocomix steer-eval", list(dict.fromkeys(needed)))

    def settings(self) -> dict[str, Any]:
        return self.measured.asked | {
            "doses": list(self.method.doses),
            "shown": SHOWN,
            "prompt_tokens": PROMPT_TOKENS,
            "contrast_windows": CONTRAST_WINDOWS,
            "student_seed": self.measured.student.seed,
            "concepts": [
                [one.concept, one.words, one.follow, round(one.strength, 4)] for one in self.measured.concepts
            ],
        }

    def describe(self, figures: dict[str, Any]) -> str:
        part = self.part(figures)
        base = sum(part.unsteered.presence) / len(part.unsteered.presence)
        shares = [sum(row[i] for i, row in enumerate(one.presence)) / len(one.presence) for one in part.at]
        losses = [sum(one.loss) / len(one.loss) for one in part.at]
        return (
            f"the concept at {base:.1%} of positions unsteered, {shares[-1]:.1%} at dose {part.at[-1].dose:g}"
            f" for {losses[-1] - part.unsteered.loss:+.2f} nats"
        )

    def part(self, figures: dict[str, Any] | None = None) -> Part:
        """What was measured; `figures` where they are at hand."""
        return Part.model_validate(self.figures if figures is None else figures)

    @torch.no_grad()
    def work(self, folder: Any, progress: Any) -> dict[str, Any]:
        read = None if self.reads is None else self.reads.part()
        part = self.method.measure(self.measured.material(), read, lambda step, total: progress(step, total, {}))
        return part.model_dump(mode="json")

"""`cocomix steer-eval`: a stage for each method and seed of a student, then the report."""

import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from cocomix.analysis.naming import Names, read_names
from cocomix.pipeline.concept_stages import name_run
from cocomix.pipeline.run import Run
from cocomix.pipeline.stage import Stage
from cocomix.pipeline.student_stages import StudentStage
from cocomix.pipeline.teacher_stage import TeacherStage
from cocomix.pipeline.trained import existing_run, student_stage
from cocomix.steering.score import activity, spread_windows
from cocomix.steering.study import summary
from cocomix.steering.study.concepts import Concept, chosen_concepts
from cocomix.steering.study.material import CONTRAST_WINDOWS, PROMPT_TOKENS, Material
from cocomix.steering.study.method_result import Part
from cocomix.steering.study.methods import METHODS, SHOWN
from cocomix.steering.study.report import write_steering_report
from cocomix.utils.env import git_commit, machine
from cocomix.utils.errors import CocomixError

Writer = StudentStage | TeacherStage


class Measured:
    """One student and seed: what its methods share, loaded when one of them has to be measured.

    Args:
        baseline: a student without concepts; None where the run has none, then it steers nothing.
        reader: the model that judges fluency.
        options: `prompts`, `tokens` and `seed` of the command line.
    """

    def __init__(
        self,
        student: StudentStage,
        baseline: StudentStage | None,
        reader: Writer,
        concepts: list[Concept],
        options: dict[str, int],
    ) -> None:
        self.student, self.baseline, self.reader = student, baseline, reader
        self.concepts, self.options = concepts, options
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
            prompts = spread_windows(student.tokens.shards("val"), self.options["prompts"], config.seq_len)
            reader = self.model("teacher") if self.reader is student.sae.teacher else self.reader.model()
            self._material = Material(
                models=self.model,
                sae=student.sae.model(),
                layer=config.sae.layer,
                reader=reader,
                concepts=self.concepts,
                prompts=prompts[:, :PROMPT_TOKENS],
                new_tokens=self.options["tokens"],
                key=(self.options["seed"], student.seed),
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
        return self.measured.options | {
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
        """What was measured; `figures` if they are loaded already."""
        return Part.model_validate(self.figures if figures is None else figures)

    @torch.no_grad()
    def work(self, folder: Any, progress: Any) -> dict[str, Any]:
        read = None if self.reads is None else self.reads.part()
        part = self.method.measure(self.measured.material(), read, lambda step, total: progress(step, total, {}))
        return part.model_dump(mode="json")


NAMED_FROM = 250_000
"""Training tokens that names are found from where there are none yet, as `cocomix name` does."""


def steer_eval(
    folder: Path, output: Path, student: str, *, concepts: int, prompts: int, tokens: int, seed: int
) -> dict[str, Any]:
    """Measure what is not measured yet and write `report.json` and `report.html` into `output`.

    Returns:
        the report.

    Raises:
        CocomixError: no such run or student, one that cannot be steered by this SAE's concepts, texts longer than it
            can take, or too few concepts that can be measured.
    """
    run = existing_run(folder)
    stages = [stage for stage in run.students if stage.student == student]
    student_stage(run, student, run.config.seeds[0])  # refuses an unknown student, naming those there are
    _check(run, stages, tokens)
    chosen = _concepts(run, concepts)
    options = {"prompts": prompts, "tokens": tokens, "seed": seed}
    measured = [Measured(one, baseline(run, one), reader(run, one), chosen, options) for one in stages]
    can = {name for one in measured for name in one.stages()}
    methods = [name for name, method in METHODS.items() if method.subject in can]
    done = _measure(run, measured, methods)
    parts = {name: {stage.measured.student.seed: stage.part() for stage in done[name]} for name in methods}
    report = _about(run, student, measured, chosen, options) | summary(parts)
    for name, one in report["methods"].items():
        method = METHODS[name]
        one |= {"about": method.about, "unit": method.unit, "ties": method.ties, "subject": method.subject}
        one["examples"] = [example.model_dump() for example in parts[name][stages[0].seed].examples]
    output.mkdir(parents=True, exist_ok=True)
    return write_steering_report(report, output)


def baseline(run: Run, student: StudentStage) -> StudentStage | None:
    """The finished next-token student of the same seed that the run compares with; else any other; else None."""
    found = _next_token_students(run, student.seed)
    return next((one for one in found if one.student == run.config.baseline), found[0] if found else None)


def reader(run: Run, student: StudentStage) -> Writer:
    """The model that judges fluency, one that is neither steered nor the judge of concepts.

    Another next-token student of the same seed, or else the baseline of another seed, or else the teacher.
    """
    steered = baseline(run, student)
    others = [one for one in _next_token_students(run, student.seed) if one is not steered]
    order = sorted(run.config.seeds, key=lambda seed: seed <= student.seed)  # the next one, round about
    elsewhere = [other for seed in order if seed != student.seed and (other := _of_seed(run, steered, seed))]
    return next(iter([*others, *elsewhere]), run.teacher)


def _next_token_students(run: Run, seed: int) -> list[StudentStage]:
    return [one for one in run.students if one.seed == seed and one.config.objective == "ntp" and one.done()]


def _of_seed(run: Run, like: StudentStage | None, seed: int) -> StudentStage | None:
    found = _next_token_students(run, seed)
    return next((one for one in found if like is not None and one.student == like.student), None)


def _check(run: Run, stages: Sequence[StudentStage], tokens: int) -> None:
    """Before anything is measured.

    Raises:
        CocomixError: a student that is not trained, or not on the SAE's concepts, or texts that are too long.
    """
    for stage in stages:
        _ = stage.figures
    if not stages[0].variant.recall or stages[0].labels is None:
        suitable = sorted({other.student for other in run.students if other.variant.recall and other.labels})
        raise CocomixError(
            f"the student {stages[0].student} is not trained on the SAE's concepts, so the SAE cannot judge it; "
            + (
                f"choose --student {' or '.join(suitable)}"
                if suitable
                else "train one with the objective cocomix and labels"
            )
        )
    longest = PROMPT_TOKENS + max(map(int, METHODS["prompt"].doses)) + tokens
    if longest > run.config.seq_len:
        raise CocomixError(
            f"prompts and --tokens {tokens} make texts of {longest} tokens, more than the {run.config.seq_len} of"
            f" seq_len; lower --tokens by {longest - run.config.seq_len}"
        )


def _concepts(run: Run, count: int) -> list[Concept]:
    """The concepts to steer, with names made first where the run has none for its autoencoder."""
    names = read_names(run.folder, run.sae.checksum())
    if names.found is None:
        names = name_run(run.folder, tokens=NAMED_FROM)
    tokenizer, shards = run.tokens.tokenizer(), run.tokens.shards("val")
    teacher, sae, config = run.teacher.model(), run.sae.model(), run.config
    found = activity(teacher, sae, shards, layer=config.sae.layer, seq_len=config.seq_len)
    return chosen_concepts(
        found, names, lambda ids: str(tokenizer.decode(list(ids))), vocab_size=len(tokenizer), wanted=count
    )


def _measure(run: Run, measured: Sequence[Measured], methods: Sequence[str]) -> dict[str, list[SteerEvalStage]]:
    """Every method on every seed, one seed after the other."""
    done: dict[str, list[SteerEvalStage]] = {name: [] for name in methods}
    number = 0
    for one in measured:
        made: dict[str, SteerEvalStage] = {}
        for name in methods:
            number += 1
            made[name] = SteerEvalStage(one, name, made.get(METHODS[name].reads or ""))
            run.do(made[name], f"[{number}/{len(measured) * len(methods)}] {made[name].name}")
            done[name].append(made[name])
        one.forget()
    return done


def _about(
    run: Run, student: str, measured: Sequence[Measured], chosen: Sequence[Concept], options: dict[str, int]
) -> dict[str, Any]:
    tokenizer, names = run.tokens.tokenizer(), read_names(run.folder, run.sae.checksum())
    return {
        "title": f"Steering {student}, measured",
        "run": run.config.title,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["cocomix", *sys.argv[1:]]),
        "commit": git_commit(),
        "machine": machine(),
        "student": student,
        "asked": options | {"concepts": len(chosen), "prompt_tokens": PROMPT_TOKENS},
        "concepts": [_concept(one, names, tokenizer) for one in chosen],
        "judges": [_judges(run, one) for one in measured],
    }


def _concept(one: Concept, names: Names, tokenizer: Any) -> dict[str, Any]:
    words, follow = ([str(tokenizer.decode([token])) for token in listed] for listed in (one.words, one.follow))
    name = names.of(one.concept)
    return {
        "concept": one.concept,
        "name": one.name,
        "words": words,
        "follow": follow,
        "kind": name.kind,
        "stability": name.stability,
        "share": one.share,
        "strength": one.strength,
    }


def _judges(run: Run, one: Measured) -> dict[str, Any]:
    """Who judges and who is steered beside the student, for one seed."""

    def known(stage: Writer | None) -> str | None:
        if stage is None:
            return None
        return f"{stage.student}, seed {stage.seed}" if isinstance(stage, StudentStage) else "the teacher"

    return {
        "seed": one.student.seed,
        "fluency": known(one.reader),
        "independent": one.reader is not run.teacher,
        "baseline": known(one.baseline),
        "same_width": one.baseline is None or one.baseline.figures["width"] == one.student.figures["width"],
    }

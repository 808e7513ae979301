"""`cocomix steer-eval`: all methods on all seeds of a student, then the report.

Each method on each seed is a stage of its own, so a stopped measurement resumes with the methods that are missing.
"""

import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from transformers import PreTrainedModel

from cocomix.analysis.naming import Names, read_names
from cocomix.pipeline.concept_stages import name_run
from cocomix.pipeline.run import Run
from cocomix.pipeline.sae_stage import SaeStage
from cocomix.pipeline.stage import Stage
from cocomix.pipeline.student_stages import StudentStage
from cocomix.pipeline.teacher_stage import TeacherStage
from cocomix.pipeline.trained import existing_run, student_stage
from cocomix.steering.study import summary
from cocomix.steering.study.concepts import Concept, choose_named_concepts, concept_activity, spread_windows
from cocomix.steering.study.context import CONTRAST_WINDOWS, PROMPT_TOKENS, StudyContext
from cocomix.steering.study.method_result import MethodResult
from cocomix.steering.study.methods import METHODS, SHOWN
from cocomix.steering.study.report import write_steering_report
from cocomix.utils.env import git_commit, machine
from cocomix.utils.errors import CocomixError

LanguageModelStage = StudentStage | TeacherStage


class SteeredStudent:
    """One student and seed: what its methods share, loaded when one of them has to be measured.

    Args:
        baseline: a student without concepts; None where the run has none, then nothing of it is measured.
        reader: the model that judges fluency.
        requested: `prompts`, `tokens` and `seed`, as typed.
    """

    def __init__(
        self,
        student: StudentStage,
        baseline: StudentStage | None,
        reader: LanguageModelStage,
        concepts: list[Concept],
        requested: dict[str, int],
    ) -> None:
        self.student, self.baseline, self.reader = student, baseline, reader
        self.concepts, self.requested = concepts, requested
        self._models: dict[str, PreTrainedModel] = {}
        self._context: StudyContext | None = None

    def stages(self) -> dict[str, Stage]:
        """The stages of the models, by the names that methods have for their subjects."""
        stages: dict[str, Stage | None] = {
            "student": self.student,
            "teacher": self.student.sae.teacher,
            "baseline": self.baseline,
        }
        return {name: stage for name, stage in stages.items() if stage is not None}

    def model(self, name: str) -> PreTrainedModel:
        """A model, loaded once."""
        if name not in self._models:
            stage: Any = self.stages()[name]
            self._models[name] = stage.model()
        return self._models[name]

    def context(self) -> StudyContext:
        """What the methods work with, made once."""
        if self._context is None:
            student, config = self.student, self.student.run_config
            tokenizer = student.tokens.tokenizer()
            prompts = spread_windows(student.tokens.shards("val"), self.requested["prompts"], config.seq_len)
            reader = self.model("teacher") if self.reader is student.sae.teacher else self.reader.model()
            self._context = StudyContext(
                models=self.model,
                sae=student.sae.model(),
                layer=student.sae.layer,
                reader=reader,
                concepts=self.concepts,
                prompts=prompts[:, :PROMPT_TOKENS],
                new_tokens=self.requested["tokens"],
                key=(self.requested["seed"], student.seed),
                train=student.tokens.shards("train"),
                seq_len=config.seq_len,
                decode=lambda ids: str(tokenizer.decode(list(ids))),
            )
        return self._context

    def release(self) -> None:
        """Let go of the models and texts; the next seed has others."""
        self._models, self._context = {}, None


class SteerEvalStage(Stage):
    """One method on one trained student; its figures are a `MethodResult`."""

    def __init__(self, steered: SteeredStudent, method: str, source: "SteerEvalStage | None") -> None:
        self.steered, self.method, self.source = steered, METHODS[method](), source
        student = steered.student
        subject = steered.stages()[self.method.subject]
        inputs = [student.tokens, subject, student.sae, steered.reader, *([] if source is None else [source])]
        name = student.name.replace("students/", "steer-eval/", 1)
        super().__init__(student.run_dir, f"{name}/{method}", "cocomix steer-eval", list(dict.fromkeys(inputs)))

    def settings(self) -> dict[str, Any]:
        return self.steered.requested | {
            "doses": list(self.method.doses),
            "shown": SHOWN,
            "prompt_tokens": PROMPT_TOKENS,
            "contrast_windows": CONTRAST_WINDOWS,
            "student_seed": self.steered.student.seed,
            "concepts": [
                [concept.concept, concept.words, concept.follow, round(concept.strength, 4)]
                for concept in self.steered.concepts
            ],
        }

    def describe(self, figures: dict[str, Any]) -> str:
        result = self.result(figures)
        last, unsteered = result.at[-1], result.unsteered
        presence = mean(row[i] for i, row in enumerate(last.presence))
        return (
            f"the concept at {mean(unsteered.presence):.1%} of positions unsteered, {presence:.1%} at dose"
            f" {last.dose:g} for {mean(last.loss) - unsteered.loss:+.2f} nats"
        )

    def result(self, figures: dict[str, Any] | None = None) -> MethodResult:
        """What was measured, from `figures` if they are given."""
        return MethodResult.model_validate(self.figures if figures is None else figures)

    @torch.no_grad()
    def work(self, folder: Any, progress: Any) -> dict[str, Any]:
        source = None if self.source is None else self.source.result()
        result = self.method.measure(self.steered.context(), source, lambda step, total: progress(step, total, {}))
        return result.model_dump(mode="json")


NAMED_FROM = 250_000
"""Training tokens that names are found from where there are none yet, as `cocomix name` does."""


def steer_eval(
    folder: Path,
    output: Path,
    student: str,
    *,
    concepts: int,
    prompts: int,
    tokens: int,
    seed: int,
    replace: bool | None = None,
) -> dict[str, Any]:
    """Measure what is not measured yet and write `report.json` and `report.html` into `output`.

    Args:
        replace: `Run.replace`.

    Returns:
        the report.

    Raises:
        CocomixError: no such run or student, one that cannot be steered by this SAE's concepts, texts longer than it
            can take, or too few concepts that can be measured.
    """
    run = existing_run(folder)
    run.replace = replace
    stages = [stage for stage in run.students if stage.student == student]
    student_stage(run, student, run.config.seeds[0])  # says which students exist if this one does not
    _check(run, stages, tokens)
    chosen = _choose_concepts(run, stages[0].sae, concepts)
    requested = {"prompts": prompts, "tokens": tokens, "seed": seed}
    students = [SteeredStudent(stage, baseline(run, stage), reader(run, stage), chosen, requested) for stage in stages]
    subjects = {name for steered in students for name in steered.stages()}
    methods = [name for name, method in METHODS.items() if method.subject in subjects]
    measured = _measure(run, students, methods)
    results = {name: {stage.steered.student.seed: stage.result() for stage in measured[name]} for name in methods}
    report = _header(run, student, students, chosen, requested) | summary(results)
    for name, entry in report["methods"].items():
        method = METHODS[name]
        entry |= {"about": method.about, "unit": method.unit, "ties": method.ties, "subject": method.subject}
        entry["examples"] = [example.model_dump() for example in results[name][stages[0].seed].examples]
    output.mkdir(parents=True, exist_ok=True)
    return write_steering_report(report, output)


def baseline(run: Run, student: StudentStage) -> StudentStage | None:
    """The finished next-token student of the same seed that the run compares with; else any other; else None."""
    candidates = _next_token_students(run, student.seed)
    return next((stage for stage in candidates if stage.student == run.config.baseline), next(iter(candidates), None))


def reader(run: Run, student: StudentStage) -> LanguageModelStage:
    """The model that judges fluency, one that is neither steered nor the judge of concepts.

    Another next-token student of the same seed; else the baseline of another seed; else the teacher.
    """
    steered = baseline(run, student)
    others = [stage for stage in _next_token_students(run, student.seed) if stage is not steered]
    order = sorted(run.config.seeds, key=lambda seed: seed <= student.seed)  # the next one, after the last the first
    elsewhere = [stage for seed in order if seed != student.seed and (stage := _of_seed(run, steered, seed))]
    return next(iter([*others, *elsewhere]), run.teacher)


def _next_token_students(run: Run, seed: int) -> list[StudentStage]:
    return [stage for stage in run.students if stage.seed == seed and stage.config.objective == "ntp" and stage.done()]


def _of_seed(run: Run, like: StudentStage | None, seed: int) -> StudentStage | None:
    candidates = _next_token_students(run, seed)
    return next((stage for stage in candidates if like is not None and stage.student == like.student), None)


def _check(run: Run, stages: Sequence[StudentStage], tokens: int) -> None:
    """Before anything is measured.

    Raises:
        CocomixError: a student that is not trained, or not on the SAE's concepts, or texts that are too long.
    """
    run.teacher.must_share_tokens("judges steered texts")
    for stage in stages:
        _ = stage.figures
    if not stages[0].uses_sae_concepts or stages[0].labels is None:
        usable = sorted({one.student for one in run.students if one.uses_sae_concepts and one.labels is not None})
        raise CocomixError(
            f"the student {stages[0].student} is not trained on the SAE's concepts, so the SAE cannot judge it; "
            + (
                f"choose --student {' or '.join(usable)}"
                if usable
                else "train one with the objective cocomix and labels"
            )
        )
    longest = PROMPT_TOKENS + max(method().lead_tokens() for method in METHODS.values()) + tokens
    if longest > run.config.seq_len:
        raise CocomixError(
            f"prompts and --tokens {tokens} make texts of {longest} tokens, more than the {run.config.seq_len} of"
            f" seq_len; lower --tokens by {longest - run.config.seq_len}"
        )


def _choose_concepts(run: Run, stage: SaeStage, count: int) -> list[Concept]:
    """The concepts to steer, with names made first where the run has none for its autoencoder."""
    names = read_names(run.folder, stage.checksum(), stage.names_file)
    if names.found is None:
        names = name_run(run.folder, tokens=NAMED_FROM, layer=stage.layer)
    tokenizer, shards = run.tokens.tokenizer(), run.tokens.shards("val")
    teacher, sae, config = run.teacher.model(), stage.model(), run.config
    activity = concept_activity(teacher, sae, shards, layer=stage.layer, seq_len=config.seq_len)
    return choose_named_concepts(
        activity, names, lambda ids: str(tokenizer.decode(list(ids))), vocab_size=len(tokenizer), count=count
    )


def _measure(run: Run, students: Sequence[SteeredStudent], methods: Sequence[str]) -> dict[str, list[SteerEvalStage]]:
    """Every method on every seed, one seed after the other."""
    measured: dict[str, list[SteerEvalStage]] = {name: [] for name in methods}
    number = 0
    for steered in students:
        stages: dict[str, SteerEvalStage] = {}
        for name in methods:
            number += 1
            stages[name] = SteerEvalStage(steered, name, stages.get(METHODS[name].derived_from or ""))
            run.do(stages[name], f"[{number}/{len(students) * len(methods)}] {stages[name].name}")
            measured[name].append(stages[name])
        steered.release()
    return measured


def _header(
    run: Run, student: str, students: Sequence[SteeredStudent], chosen: Sequence[Concept], requested: dict[str, int]
) -> dict[str, Any]:
    """What the report says of the run, the concepts and the judges."""
    sae, tokenizer = students[0].student.sae, run.tokens.tokenizer()
    names = read_names(run.folder, sae.checksum(), sae.names_file)
    return {
        "title": f"Steering {student}, measured",
        "run": run.config.title,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["cocomix", *sys.argv[1:]]),
        "commit": git_commit(),
        "machine": machine(),
        "student": student,
        "asked": requested | {"concepts": len(chosen), "prompt_tokens": PROMPT_TOKENS},
        "concepts": [_concept_entry(concept, names, tokenizer) for concept in chosen],
        "judges": [_judges(run, steered) for steered in students],
    }


def _concept_entry(concept: Concept, names: Names, tokenizer: Any) -> dict[str, Any]:
    words, follow = ([str(tokenizer.decode([token])) for token in tokens] for tokens in (concept.words, concept.follow))
    name = names.of(concept.concept)
    return {
        "concept": concept.concept,
        "name": concept.name,
        "words": words,
        "follow": follow,
        "kind": name.kind,
        "stability": name.stability,
        "share": concept.share,
        "strength": concept.strength,
    }


def _judges(run: Run, steered: SteeredStudent) -> dict[str, Any]:
    """Who judges and who is steered beside the student, for one seed."""

    def label(stage: LanguageModelStage | None) -> str | None:
        if stage is None:
            return None
        return f"{stage.student}, seed {stage.seed}" if isinstance(stage, StudentStage) else "the teacher"

    return {
        "seed": steered.student.seed,
        "fluency": label(steered.reader),
        "independent": steered.reader is not run.teacher,
        "baseline": label(steered.baseline),
        "same_width": steered.baseline is None or steered.baseline.figures["width"] == steered.student.figures["width"],
    }

"""`cocomix steer-eval`: all methods on all seeds of a student, then the report.

Each method on each seed is a stage of its own, so a stopped measurement resumes with the methods that are missing.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from transformers import PreTrainedModel

from cocomix.analysis.naming import Names, read_names
from cocomix.objectives.retrofit import FinetuneStudent
from cocomix.pipeline.concept_stages import name_run
from cocomix.pipeline.pack import tensors_checksum
from cocomix.pipeline.run import Run
from cocomix.pipeline.sae_stage import SaeStage
from cocomix.pipeline.stage import Stage
from cocomix.pipeline.student_stages import StudentStage
from cocomix.pipeline.teacher_stage import TeacherStage
from cocomix.pipeline.trained import existing_run, student_stage
from cocomix.sae.sae import TopKSAE
from cocomix.steering.study.concepts import (
    Concept,
    choose_named_concepts,
    concept_activity,
    ranked_concepts,
    spread_windows,
)
from cocomix.steering.study.context import CONTRAST_WINDOWS, PROMPT_TOKENS, StudyContext
from cocomix.steering.study.judging_sae import LEAST_CORRELATION, JudgingSae, SaeAt, match_latents
from cocomix.steering.study.method_result import MethodResult
from cocomix.steering.study.methods import METHODS, parse_doses
from cocomix.steering.study.report import write_steering_report
from cocomix.steering.study.summary import best_half, output_scores, summary
from cocomix.utils.env import git_commit, machine, typed_precision
from cocomix.utils.errors import CocomixError

LanguageModelStage = StudentStage | TeacherStage


PLAIN = ("ntp", "finetune")
"""Objectives of students that learn the next token alone, without concepts."""


class SaeJudge:
    """The SAE that judges whether a concept is in a text: the student's own, or that of another run.

    Args:
        run: the student's.
        folder: another run, of the same concept model; None: the judge is the SAE that made the student's labels.
        precision: of the concept model's passes.

    Attributes:
        stage: the other run's SAE; None where there is no other run.
        latents: the latent that stands for each concept looked at, and how well it agrees, by the concept's number.
    """

    def __init__(self, run: Run, folder: Path | None, precision: str) -> None:
        self.run, self.precision = run, precision
        self.stage: SaeStage | None = None
        self.latents: dict[int, tuple[int, float]] = {}
        if folder is not None:
            other = existing_run(folder)
            self.stage = other.sae
            if weights_checksum(other.teacher) != weights_checksum(run.teacher):
                raise CocomixError(
                    f"the concept model of {folder} is another than that of {run.folder}, so its autoencoder cannot"
                    " judge; give --judge a run of the same concept model"
                )

    @cached_property
    def _sae(self) -> TopKSAE:
        assert self.stage is not None, "asked only where there is another run"
        return self.stage.model()

    def known(self, teacher: PreTrainedModel, own: SaeAt, concepts: Sequence[int]) -> set[int] | None:
        """Those of the concepts that the judge can tell; None: all."""
        if self.stage is None:
            return None
        shards, seq_len = self.run.tokens.shards("val"), self.run.config.seq_len
        found = match_latents(teacher, own, SaeAt(self._sae, self.stage.layer), concepts, shards, seq_len)
        pairs = zip(found.latents.tolist(), found.correlations.tolist(), strict=True)
        self.latents = dict(zip(concepts, pairs, strict=True))
        return {concept for concept, (_, correlation) in self.latents.items() if correlation >= LEAST_CORRELATION}

    def judging(self, concepts: Sequence[Concept]) -> JudgingSae | None:
        """The other SAE with the latents that stand for these concepts; None where there is no other."""
        if self.stage is None:
            return None
        latents = [self.latents[concept.concept][0] for concept in concepts]
        return JudgingSae(self._sae, self.stage.layer, torch.tensor(latents))

    def about(self, concepts: Sequence[Concept]) -> dict[str, Any] | None:
        """What the report says of it; None where there is no other."""
        if self.stage is None:
            return None
        figures = self.stage.figures
        found = [self.latents[concept.concept] for concept in concepts]
        return {
            "layer": self.stage.layer,
            "n_latents": figures["n_latents"],
            "k": figures["k"],
            "quality": {name: figures.get(name) for name in ("explained_variance", "loss_recovered")},
            "latents": [latent for latent, _ in found],
            "correlations": [round(correlation, 4) for _, correlation in found],
        }


def _loaded(stage: Any, precision: str) -> PreTrainedModel:
    """The model of a stage, with all weights in `precision`."""
    model = stage.model()
    return model.to(torch.bfloat16) if precision == "bf16" else model


def weights_checksum(teacher: TeacherStage) -> str:
    """Checksum of a finished concept model's weights, whatever files hold them."""
    teacher.check()
    return tensors_checksum(teacher.folder / "model")


class SteeredStudent:
    """One student and seed: what its methods share, loaded when one of them has to be measured.

    Args:
        baseline: a student without concepts; None where the run has none, then nothing of it is measured.
        reader: the model that judges fluency.
        judge: the SAE that judges.
        requested: `prompts`, `tokens`, `seed` and, where it is not fp32, `precision`.
    """

    def __init__(
        self,
        student: StudentStage,
        baseline: StudentStage | None,
        reader: LanguageModelStage,
        judge: "SaeJudge",
        concepts: list[Concept],
        requested: dict[str, Any],
    ) -> None:
        self.student, self.baseline, self.reader, self.judge = student, baseline, reader, judge
        self.concepts, self.requested = concepts, requested
        self._models: dict[str, PreTrainedModel] = {}
        self._context: StudyContext | None = None

    def stages(self) -> dict[str, Stage]:
        """The stages of the models, by the names that methods have for their subjects."""
        stages: dict[str, Stage | None] = {
            "student": self.student,
            "teacher": self.student.sae.teacher,
            "baseline": self.baseline,
            "plain": self.plain,
            "base": self.baseline if self.plain is self.baseline else None,
        }
        return {name: stage for name, stage in stages.items() if stage is not None}

    @property
    def plain(self) -> LanguageModelStage:
        """A model without concepts whose hidden states the SAE was trained on: the teacher; or, where the student is a
        retrofitted one, the teacher fine-tuned on the same text, if that changed only blocks after the SAE's."""
        if self.baseline is not None:
            settings = self.baseline.config
            if isinstance(settings, FinetuneStudent) and settings.keeps_teacher_up_to(self.student.sae.layer):
                return self.baseline
        return self.student.sae.teacher

    def model(self, name: str) -> PreTrainedModel:
        """A model, loaded once."""
        return self._load(self.stages()[name])

    def _load(self, stage: Any) -> PreTrainedModel:
        if stage.name not in self._models:
            self._models[stage.name] = _loaded(stage, self.judge.precision)
        return self._models[stage.name]

    def context(self) -> StudyContext:
        """What the methods work with, made once."""
        if self._context is None:
            student, config = self.student, self.student.run_config
            tokenizer = student.tokens.tokenizer()
            prompts = spread_windows(student.tokens.shards("val"), self.requested["prompts"], config.seq_len)
            self._context = StudyContext(
                models=self.model,
                sae=student.sae.model(),
                layer=student.sae.layer,
                reader=self._load(self.reader),
                concepts=self.concepts,
                prompts=prompts[:, :PROMPT_TOKENS],
                new_tokens=self.requested["tokens"],
                key=(self.requested["seed"], student.seed),
                train=student.tokens.shards("train"),
                seq_len=config.seq_len,
                decode=lambda ids: str(tokenizer.decode(list(ids))),
                judging_sae=self.judge.judging(self.concepts),
            )
        return self._context

    def release(self) -> None:
        """Let go of the models and texts; the next seed has others."""
        self._models, self._context = {}, None


class SteerEvalStage(Stage):
    """One method on one trained student; its figures are a `MethodResult`.

    Args:
        doses: in place of the method's usual ones.
    """

    def __init__(
        self, steered: SteeredStudent, method: str, source: "SteerEvalStage | None", doses: Sequence[float] | None
    ) -> None:
        if source is not None:
            doses = source.method.doses
        self.steered, self.method, self.source = steered, METHODS[method](doses), source
        student = steered.student
        subject = steered.stages()[self.method.subject]
        inputs = [student.tokens, subject, student.sae, steered.reader, *([] if source is None else [source])]
        inputs += [] if steered.judge.stage is None else [steered.judge.stage]
        name = student.name.replace("students/", "steer-eval/", 1)
        super().__init__(student.run_dir, f"{name}/{method}", "cocomix steer-eval", list(dict.fromkeys(inputs)))

    def settings(self) -> dict[str, Any]:
        other = self.steered.judge.stage is not None
        concepts = self.steered.concepts
        judged = {"latents": [self.steered.judge.latents[each.concept][0] for each in concepts]} if other else {}
        return (
            self.steered.requested
            | judged
            | {
                "doses": list(self.method.doses),
                "shown": self.method.shown,
                "prompt_tokens": PROMPT_TOKENS,
                "contrast_windows": CONTRAST_WINDOWS,
                "student_seed": self.steered.student.seed,
                "concepts": [
                    [concept.concept, concept.words, concept.follow, round(concept.strength, 4)] for concept in concepts
                ],
            }
        )

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
    judge: Path | None = None,
    precision: str = "fp32",
    doses: Sequence[str] = (),
    replace: bool | None = None,
) -> dict[str, Any]:
    """Measure what is not measured yet and write `report.json` and `report.html` into `output`.

    Args:
        judge: a run of the same concept model whose SAE judges; None: the one that made the student's labels.
        precision: of all models' weights and passes, `fp32`, `bf16` or `auto`.
        doses: of methods in place of the usual ones, each `METHOD=DOSE,DOSE…`.
        replace: `Run.replace`.

    Returns:
        the report.

    Raises:
        CocomixError: no such run or student, one that cannot be steered by this SAE's concepts, texts longer than it
            can take, a judge of another concept model, too few concepts that can be measured, or doses that a method
            cannot have.
    """
    own_doses = parse_doses(doses)
    run = existing_run(folder)
    run.replace = replace
    stages = [stage for stage in run.students if stage.student == student]
    student_stage(run, student, run.config.seeds[0])  # says which students exist if this one does not
    _check(run, stages, tokens)
    requested: dict[str, Any] = {"prompts": prompts, "tokens": tokens, "seed": seed}
    precision = typed_precision(precision)
    requested |= {"precision": precision} if precision != "fp32" else {}
    judging = SaeJudge(run, judge, precision)
    chosen = _choose_concepts(run, stages[0].sae, concepts, judging)
    students = [
        SteeredStudent(stage, baseline(run, stage), reader(run, stage), judging, chosen, requested) for stage in stages
    ]
    subjects = {name for steered in students for name in steered.stages()}
    methods = [name for name, method in METHODS.items() if method.subject in subjects]
    measured = _measure(run, students, methods, own_doses)
    results = {name: {stage.steered.student.seed: stage.result() for stage in measured[name]} for name in methods}
    report = _header(run, student, students, chosen, requested) | summary(results)
    if own_doses:
        report["own_doses"] = list(own_doses)
    for name, entry in report["methods"].items():
        method = METHODS[name]
        entry |= {"about": method.about, "unit": method.unit, "ties": method.ties, "subject": method.subject}
        entry["examples"] = [example.model_dump() for example in results[name][stages[0].seed].examples]
    scores, places = output_scores(results), best_half(results)
    if scores is not None and places is not None:
        half = {name: {seed: one.only(places) for seed, one in by_seed.items()} for name, by_seed in results.items()}
        report["best_half"] = {"places": places} | summary(half)
        report["output_scores"] = scores.tolist()
    output.mkdir(parents=True, exist_ok=True)
    return write_steering_report(report, output)


def baseline(run: Run, student: StudentStage) -> StudentStage | None:
    """The finished next-token student of the same seed that the run compares with; else any other; else None.

    A model that was fine-tuned without a channel is one.
    """
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
    return [stage for stage in run.students if stage.seed == seed and stage.config.objective in PLAIN and stage.done()]


def _of_seed(run: Run, like: StudentStage | None, seed: int) -> StudentStage | None:
    candidates = _next_token_students(run, seed)
    return next((stage for stage in candidates if like is not None and stage.student == like.student), None)


def _check(run: Run, stages: Sequence[StudentStage], tokens: int) -> None:
    """Before anything is measured.

    Raises:
        CocomixError: a student that is not trained, or not on the SAE's concepts, or texts that are too long.
    """
    run.teacher.must_read_tokens("judges steered texts")
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


def _choose_concepts(run: Run, stage: SaeStage, count: int, judge: SaeJudge) -> list[Concept]:
    """The concepts to steer, with names made first where the run has none for its autoencoder.

    With another SAE as the judge, those that it knows.
    """
    names = read_names(run.folder, stage.checksum(), stage.names_file)
    if names.found is None:
        names = name_run(run.folder, tokens=NAMED_FROM, layer=stage.layer)
    tokenizer, shards = run.tokens.tokenizer(), run.tokens.shards("val")
    teacher, sae, config = _loaded(run.teacher, judge.precision), stage.model(), run.config
    activity = concept_activity(teacher, sae, shards, layer=stage.layer, seq_len=config.seq_len)
    return choose_named_concepts(
        activity,
        names,
        lambda ids: str(tokenizer.decode(list(ids))),
        vocab_size=len(tokenizer),
        count=count,
        among=judge.known(teacher, SaeAt(sae, stage.layer), ranked_concepts(activity)),
    )


def _measure(
    run: Run, students: Sequence[SteeredStudent], methods: Sequence[str], doses: Mapping[str, Sequence[float]]
) -> dict[str, list[SteerEvalStage]]:
    """Every method on every seed, one seed after the other."""
    measured: dict[str, list[SteerEvalStage]] = {name: [] for name in methods}
    number = 0
    for steered in students:
        stages: dict[str, SteerEvalStage] = {}
        for name in methods:
            number += 1
            source = stages.get(METHODS[name].derived_from or "")
            stages[name] = SteerEvalStage(steered, name, source, doses.get(name))
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
        "judging_sae": students[0].judge.about(chosen),
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
        "plain": label(steered.plain),
        "independent": steered.reader is not steered.plain,
        "baseline": label(steered.baseline),
        "same_width": steered.baseline is None or steered.baseline.figures["width"] == steered.student.figures["width"],
    }

"""The grid of an experiment: its runs, their stages, and the order in which these can be made.

Corpus, tokens, teacher, SAE, labels and stored logits are made once a setting and shared by all of its variants and
seeds. Every stage is a process of its own, so a crash costs one student, and rerunning the command resumes from what
is finished.

`collect` makes the report's input of what the stages measured; what is not finished is left out and noted. Two figures
are put on a common footing there. Seconds of students are steps times the measured time of a step where that was
measured: students are trained several at a time, so their own clocks compare badly (they are kept as `clock_seconds`).
The cost of labels, made for the whole corpus, is charged as `cocomix.experiments.charges` says.
"""

import math
import shlex
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from cocomix.experiments.charges import Charges
from cocomix.experiments.config import ExperimentConfig
from cocomix.experiments.cost_stage import TimingStage
from cocomix.experiments.predictor import case_baseline, read_predictor, student_loss
from cocomix.experiments.scaling import parameters_without_embeddings
from cocomix.experiments.steering_stage import SteeringStage
from cocomix.experiments.tuning import Tries
from cocomix.pipeline.run import Run, collect_results
from cocomix.pipeline.stage import ExternalInput, ExternalInputs, Stage
from cocomix.report.statistics import find_student
from cocomix.utils.errors import CocomixError

INDEPENDENT = ("labels/", "logits/")
"""Shared stages that need nothing of those beside them."""


class Round(NamedTuple):
    """Jobs that may be done at the same time; a job is stages done one after the other, `SETTING:STAGE` each."""

    setting: str
    jobs: list[list[str]]
    needed: bool
    """whether the later rounds of this setting need them"""


class Grid:
    """All runs of an experiment.

    Args:
        config: the experiment.
        folder: settings live below it, by name.
    """

    def __init__(self, config: ExperimentConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.runs: dict[str, Run] = {}
        self.tries: dict[str, Tries] = {}
        self.steering: dict[str, list[SteeringStage]] = {}
        self.timing: dict[str, TimingStage] = {}
        for name in config.settings:
            self._plan(name)

    def _plan(self, name: str) -> None:
        """The run of a setting and the stages beside it, with the learning rates chosen so far."""
        rates, inputs = None, self._external_inputs(name)
        if self.config.tuning is not None:
            self.tries[name] = Tries(self.config, self.config.tuning, name, self.folder, inputs)
            rates = self.tries[name].chosen()
        self.runs[name] = run = Run(self.folder / name, self.config.run_config(name, self.folder, rates), inputs)
        run.students = [stage for stage in run.students if self.config.trains(stage.student, stage.seed)]
        run.evaluations = [stage for stage in run.evaluations if stage.student in run.students]
        self.steering[name] = self._steering(run)
        if self.config.timing_steps:
            self.timing[name] = self._timing(run)

    def _external_inputs(self, setting: str) -> ExternalInputs:
        """Stages of earlier settings that this one names."""
        external_inputs = {}
        for text, (other, name) in self.config.external_inputs(setting).items():
            stages = self.runs[other].stages
            if name not in stages:
                raise CocomixError(f"setting {setting}: {text!r} names no stage of {other}; it has {', '.join(stages)}")
            external_inputs[str(self.folder / text[1:])] = ExternalInput(text, stages[name])
        return external_inputs

    def _steering(self, run: Run) -> list[SteeringStage]:
        settings = self.config.steering
        if settings is None:
            return []
        return [SteeringStage(stage, settings) for stage in run.students if stage.student == settings.variant]

    def _timing(self, run: Run) -> TimingStage:
        first = [stage for stage in run.students if stage.seed == run.config.seeds[0]]
        return TimingStage(run.folder, first, run.config.baseline, self.config.timing_steps)

    def rounds(self) -> Iterator[Round]:
        """Rounds of jobs in the order they can be done; timing comes last, alone.

        The jobs of a round need nothing of each other, only rounds before it. A variant whose learning rate is not
        chosen when its round comes, because a try failed, is left out.
        """
        for name in self.config.settings:
            run = self.runs[name]
            for independent, stages in groupby(run.shared(), lambda stage: stage.name.startswith(INDEPENDENT)):
                jobs = [[f"{name}:{stage.name}"] for stage in stages]
                for together in [jobs] if independent else [[job] for job in jobs]:
                    yield Round(name, together, needed=True)
            if probes := self.probes(name):
                yield Round(name, [[f"{name}:{stage.name}" for stage in probes]], needed=False)
            if name in self.tries:
                yield Round(name, [[f"{name}:{stage.name}"] for stage in self.tries[name].stages()], needed=False)
                self._plan(name)
                run = self.runs[name]
            jobs = []
            for student, evaluation in zip(run.students, run.evaluations, strict=True):
                if name in self.tries and not self.tries[name].done(student.student):
                    continue
                steering = [stage for stage in self.steering[name] if stage.student is student]
                jobs.append([f"{name}:{stage.name}" for stage in (student, evaluation, *steering)])
            yield Round(name, jobs, needed=False)
        for name, stage in self.timing.items():
            yield Round(name, [[f"{name}:{stage.name}"]], needed=False)

    def probes(self, name: str) -> list[Stage]:
        """The stages that say how predictable the labels of the predictor's variants are, each after its student."""
        if self.config.predictor is None:
            return []
        wanted = {stage.student: stage.probes for stage in self.runs[name].students}
        probes = [probe for variant in self.config.predictor.variants for probe in wanted.get(variant, ())]
        return list(dict.fromkeys(stage for probe in probes for stage in (probe.student, probe)))

    def settings_of(self, name: str) -> set[str]:
        """The setting `name` and those it uses stages of."""
        return {name, *(other for other, _ in self.config.external_inputs(name).values())}

    def finished(self, setting: str) -> list[str]:
        """Variants of `setting` whose evaluations are finished with every seed."""
        ready: dict[str, bool] = {}
        for stage in self.runs[setting].evaluations:
            name = stage.student.student
            ready[name] = ready.get(name, True) and stage.student.done() and stage.done()
        return [name for name, done in ready.items() if done]

    def done(self, job: list[str]) -> bool:
        """Whether all stages of a job are finished with the present settings."""
        return all(self.stage(name).done() for name in job)

    def stage(self, name: str) -> Stage:
        """The stage called `SETTING:STAGE`.

        Raises:
            CocomixError: there is none.
        """
        setting, _, path = name.partition(":")
        run = self.runs.get(setting)
        if run is None:
            raise CocomixError(f"there is no setting {setting!r} in this experiment; it has {', '.join(self.runs)}")
        stages = {stage.name: stage for stage in self.stages(setting)}
        if path not in stages:
            raise CocomixError(f"there is no stage {path!r} in the setting {setting}; it has {', '.join(stages)}")
        return stages[path]

    def stages(self, setting: str) -> list[Stage]:
        """Every stage of a setting."""
        timing = [self.timing[setting]] if setting in self.timing else []
        tries = self.tries[setting].stages() if setting in self.tries else []
        own = self.runs[setting].stages
        probes = [stage for stage in self.probes(setting) if stage.name not in own]
        return [*own.values(), *probes, *tries, *self.steering[setting], *timing]

    def run_stage(self, name: str) -> dict[str, Any]:
        """Run one stage in this process, unless it is done."""
        stage, setting = self.stage(name), name.partition(":")[0]
        run = self.tries[setting].run if setting in self.tries and stage in self.tries[setting].stages() else None
        return (run or self.runs[setting]).do(stage, name)


def collect(grid: Grid) -> dict[str, Any]:
    """The report's input.

    Raises:
        CocomixError: no setting has a finished baseline yet.
    """
    finished = {name: grid.finished(name) for name in grid.runs}
    reported = {name: names for name, names in finished.items() if grid.runs[name].config.baseline in names}
    if not reported:
        raise CocomixError(
            f"no setting has finished its baseline {grid.config.baseline!r} yet, so there is nothing to report;"
            " run the experiment first"
        )
    runs = {name: collect_results(grid.runs[name], {}, names) for name, names in reported.items()}
    missing = [
        f"{name}: {variant}"
        for name, run in grid.runs.items()
        for variant in run.config.students
        if variant not in reported.get(name, ())
    ]
    notes = list(dict.fromkeys(note for run in runs.values() for note in run["notes"]))
    if missing:
        notes.append(f"Not finished, and left out: {', '.join(missing)}.")
    results = {
        "title": grid.config.title,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["cocomix", *sys.argv[1:]]),
        "commits": sorted({commit for run in runs.values() for commit in run["commits"]}),
        "machine": next(iter(runs.values()))["machine"],
        "notes": notes,
        "baseline": grid.config.baseline,
        "seeds": list(grid.config.seeds),
        "frontier": list(grid.config.frontier),
        "recipe": grid.config.model_dump(mode="json"),
        "controls": [group.model_dump(mode="json") for group in grid.config.controls],
        "scaling": _scaling(grid),
        "claims": [claim.model_dump(mode="json") for claim in grid.config.claims],
        "settings": {name: _setting(grid, name, run) for name, run in runs.items()},
    }
    return results | {"predictor": _predictor(grid, results)}


def _predictor(grid: Grid, results: dict[str, Any]) -> dict[str, Any] | None:
    """The predictor, and what it takes of every finished variant that it is asked about."""
    asked = grid.config.predictor
    if asked is None:
        return None
    cases = []
    for name, setting in results["settings"].items():
        run, teacher = grid.runs[name], setting["teacher"].get("val_perplexity")
        teacher_loss = asked.teacher_loss.get(name, None if teacher is None else math.log(teacher))
        for variant in asked.variants:
            student = find_student(setting, variant)
            if student is None:
                continue
            stage = next(stage for stage in run.students if stage.student == variant)
            baseline = case_baseline(results, name, variant)
            base_loss = student_loss(setting, baseline)
            nats = [probe.figures["nats"] for probe in stage.probes if probe.done()]
            size = parameters_without_embeddings(
                stage.config.model, setting["tokenizer"]["vocab_size"], run.config.seq_len
            )
            features = {
                "predictability": sum(nats) / len(nats) if nats and len(nats) == len(stage.probes) else None,
                "teacher_minus_student": _less(teacher_loss, base_loss),
                "tokens_per_parameter": math.log10(student["runs"][0]["tokens"] / size),
            }
            cases.append({"setting": name, "variant": variant, "baseline": baseline, "features": features})
    return read_predictor(Path(asked.file)) | {"cases": cases}


def _less(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _scaling(grid: Grid) -> dict[str, Any] | None:
    """What `cocomix.experiments.scaling` needs beside the students' figures."""
    section = grid.config.scaling
    if section is None or not (run := grid.runs[section.setting]).tokens.done():
        return None
    students, vocabulary = section.students(), run.tokens.figures["vocab_size"]
    shapes = {size: run.config.students[name].model for name, (_, size, _) in students.items()}
    return {
        "setting": section.setting,
        "baseline": section.baseline,
        "students": {name: [family, size, f"x{length}"] for name, (family, size, length) in students.items()},
        "parameters": {
            size: parameters_without_embeddings(shape, vocabulary, run.config.seq_len) for size, shape in shapes.items()
        },
        "targets": [target.model_dump(mode="json") for target in section.targets],
    }


def _setting(grid: Grid, name: str, run: dict[str, Any]) -> dict[str, Any]:
    kept = ("corpus", "tokenizer", "teacher", "sae", "labels", "baseline", "config")
    timing: dict[str, float] = {}
    if name in grid.timing and (record := grid.timing[name].record()):
        timing = record["figures"]["seconds"]
    steering = [
        {"seed": stage.student.seed, "variant": stage.student.student} | record["figures"]
        for stage in grid.steering[name]
        if (record := stage.record())
    ]
    labelled = run["corpus"]["splits"]["train"]["tokens"]
    tries = grid.tries[name].stages() if name in grid.tries else []
    charges = Charges(grid.runs[name], tries, grid.config.charged)

    def on_common_footing(student: dict[str, Any]) -> dict[str, Any]:
        step = timing.get(student["name"])
        return student | {"runs": [_run(each, step, labelled, charges, student["name"]) for each in student["runs"]]}

    students = [on_common_footing(student) for student in run["students"]]
    title = {"title": grid.config.settings[name].title}
    tuning = grid.tries[name].figures() if name in grid.tries else {}
    made_once = {"upstream": charges.upstream(), "label_readers": dict(charges.readers)}
    measured = made_once | {"students": students, "timing": timing, "steering": steering, "tuning": tuning}
    return title | {key: run[key] for key in kept} | measured


def _run(
    run: dict[str, Any], step_seconds: float | None, labelled: int, charges: Charges, student: str
) -> dict[str, Any]:
    """One student's run with its seconds and its labels' cost on the common footing."""
    share = min(1.0, run["tokens"] / labelled)
    same = run | charges.of(student, share) | {"label_share": share, "clock_seconds": run["seconds"]}
    if step_seconds is None or not run["curve"]:
        return same
    curve = [point | {"seconds": point["step"] * step_seconds} for point in run["curve"]]
    return same | {"curve": curve, "seconds": curve[-1]["seconds"]}

"""A run: its folder, its resolved config, and the graph of its stages."""

import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.text import Text

from cocomix.labels.controls import CONTROLS
from cocomix.pipeline.attempts import KEPT
from cocomix.pipeline.channel_controls import controls_of, mixes_vector
from cocomix.pipeline.config import CONFIG, RunConfig, load_config, validate_config
from cocomix.pipeline.data_stages import CorpusStage, TokensStage
from cocomix.pipeline.label_sets import label_set, label_stages
from cocomix.pipeline.label_stages import LabelStage, LogitsStage, ScheduledLabelSet
from cocomix.pipeline.pack_stages import PackSaeStage, PackTeacherStage
from cocomix.pipeline.predictability_stages import PredictabilityStage, ProbeStudentStage, place_of
from cocomix.pipeline.sae_stage import SaeStage
from cocomix.pipeline.stage import ExternalInputs, Stage
from cocomix.pipeline.student_stages import EvaluationStage, StudentStage
from cocomix.pipeline.teacher_stage import TeacherStage
from cocomix.pipeline.teacher_tokens import TeacherTokensStage
from cocomix.report.page import write_report
from cocomix.report.tables import summary_table
from cocomix.utils.advice import command_line
from cocomix.utils.console import StageProgress, console, duration, errors, in_bytes, is_main, world_size
from cocomix.utils.distributed import barrier, on_main
from cocomix.utils.errors import CocomixError, Interrupted
from cocomix.utils.files import remove_temporaries
from cocomix.utils.settings import SettingsFile, changes, last_written, listed, override

SHOWN_STAGES = 12
"""Stages named in one sentence."""


LONG = 100
"""Training steps from which a time is worth estimating."""


class Run:
    """All stages of one run folder, in the order of the data flow.

    Args:
        folder: the run's folder; created on the first stage.
        config: resolved configuration; saved as `config.yaml` when a stage is done.
        external_inputs: stages of other runs that this one's configuration names.
    """

    def __init__(self, folder: Path, config: RunConfig, external_inputs: ExternalInputs | None = None) -> None:
        external_inputs = external_inputs or {}
        self.folder, self.config = folder, config
        self.external_inputs = external_inputs
        _check_folder(folder)
        self._settings_file = SettingsFile(folder / CONFIG)
        self.corpus = CorpusStage(folder, config)
        self.tokens = TokensStage(folder, config, self.corpus, external_inputs)
        own_teacher = TeacherStage if config.pack is None else PackTeacherStage
        self.teacher = own_teacher(folder, config, self.tokens, external_inputs)
        self.teacher_tokens = self.tokens
        if not config.teacher.shares_tokens:
            self.teacher_tokens = TeacherTokensStage(folder, config, self.corpus, self.teacher)
        own_sae = SaeStage if config.pack is None else PackSaeStage
        self.sae = own_sae(folder, config, self.tokens, self.teacher, external_inputs, self.teacher_tokens)
        self.labels = {name: label_set(folder, name, config, self.teacher, self.sae) for name in config.labels}
        stored_labels = [labels for labels in self.labels.values() if isinstance(labels, LabelStage)]
        self.predictability = dict(self._predictability())
        stored = [student.stored_teacher_tokens for student in config.students.values()]
        self.logits = {k: LogitsStage(folder, k, config, self.teacher) for k in stored if k is not None}
        self.students = [
            self._student(name, student, seed) for seed in config.seeds for name, student in config.students.items()
        ]
        self.evaluations = [EvaluationStage(student) for student in self.students]
        used = {needed.name for student in self.students if student.labels for needed in student.labels.needed}
        own = [] if self.teacher_tokens is self.tokens else [self.teacher_tokens]
        made_here = [self.teacher, *own]
        if config.pack is not None:  # its concept model is loaded for students that start as it
            starts_as_it = any("teacher" in student.reads for student in config.students.values())
            made_here = [self.teacher] if starts_as_it else []
        self._shared: list[Stage] = [self.corpus, self.tokens, *made_here, self.sae]
        for label in stored_labels:
            self._shared += label_stages(label) if label.name in used else []
        weighing = {stage for student in self.students if student.config.weighs_labels for stage in student.probes}
        for stage in (stage for stage in self.predictability.values() if stage in weighing):
            self._shared += [needed for needed in (stage.student, stage) if needed not in self._shared]
        self._shared += self.logits.values()
        stages = [*self._shared, *self.students, *self.evaluations]
        self.stages = {stage.name: stage for stage in stages}
        stored_stages = [stage for label in stored_labels for stage in label_stages(label)]
        on_demand = [*stored_stages, self.teacher, *own]
        self.stages |= {stage.name: stage for stage in on_demand if stage.name not in self.stages}
        self._all = [stage.name for stage in stages]
        self._reused: dict[str, bool] = {}
        self.replace: bool | None = None
        """before a stage that is finished with other settings is done anew: ask (False), or announce it only"""

    def _student(self, name: str, student: Any, seed: int) -> StudentStage:
        parts, labels = student.label_parts, None
        sets = [self.labels[part.set] for part in parts]
        if len(parts) == 1:
            (labels,) = sets
        elif parts:
            labels = ScheduledLabelSet(sets, parts, by_position=student.mixes_labels_by_position, seed=seed)
        logits = self.logits.get(student.stored_teacher_tokens or 0)
        signs = [part.sign or labels.signs[0] for labels, part in zip(sets, parts, strict=True)]
        keys = zip((labels.set_name for labels in sets), signs, strict=True)
        probes = [self.predictability[key] for key in keys]
        sae = self.sae if labels is None else labels.sae
        return StudentStage(self.folder, name, seed, self.config, sae, labels, logits, probes)

    def _predictability(self) -> Iterator[tuple[tuple[str, str], PredictabilityStage]]:
        """The stage of each label set and sign; a student of one shape is shared."""
        students: dict[str, ProbeStudentStage] = {}
        for name, labels in self.labels.items():
            place = place_of(self.config, name)
            student = ProbeStudentStage(self.folder, place.shape, self.config, self.tokens)
            student = students.setdefault(student.name, student)
            for sign in labels.signs:
                yield (name, sign), PredictabilityStage(self.folder, labels, sign, place.concept_layer, student)

    @property
    def sae_layers_read(self) -> list[int]:
        """Blocks whose autoencoders students learn, `sae.layer` first."""
        others = {student.sae.layer for student in self.students if student.uses_sae_concepts} - {self.sae.layer}
        return [self.sae.layer, *sorted(others)]

    @property
    def teacher_figures(self) -> dict[str, Any]:
        """What is known of the teacher: of a pack's, which is not loaded, what the pack says."""
        return self.sae.figures["described_teacher"] if isinstance(self.sae, PackSaeStage) else self.teacher.figures

    def advise(self, options: Sequence[str]) -> None:
        """Let messages name commands with these options, --config and overrides, which made the run's settings."""
        probes = list(self.predictability.values())
        others = [*self.sae.others.values(), *probes, *(probe.student for probe in probes)]
        for stage in [*self.stages.values(), *others]:
            stage.user_options = list(options)

    def shared(self) -> list[Stage]:
        """The stages all students share, in the order of the data flow."""
        return list(self._shared)

    def run_stage(self, name: str, *, extend: bool = False) -> dict[str, Any]:
        """Do one stage, unless it is done; its inputs must be finished. Returns its figures.

        Args:
            extend: of a student, refuse to train it from the start.
        """
        stage = self.stages[name]
        if extend and not isinstance(stage, StudentStage):
            raise CocomixError(f"{name} cannot be extended, only students can; leave out --extend")
        if isinstance(stage, StudentStage):
            stage.must_extend = extend
        return self.do(stage, name)

    def run_all(self) -> None:
        """Do every stage the students need, then write the report."""
        if self.replace is False:
            given = next(iter(self.stages.values())).user_options
            again = command_line("cocomix demo", self.folder, [*given, "--replace"])
            ask_before_replacing(self.folder, list(self.stages.values()), f"run {again}")
            self.replace = True
        if is_main():
            console.print(Text(self.config.title, style="bold"), f"in {self.folder}", soft_wrap=True)
        for number, name in enumerate(self._all):
            if number == len(self._shared):
                self.say_how_long()
            self.do(self.stages[name], f"[{number + 1}/{len(self._all)}] {name}")
        self.write_report()

    def say_how_long(self) -> None:
        """Print how long the students that wait will train on this machine, by a few steps of each, if it is long."""
        waiting = [stage for stage in self.students if stage.record() is None and stage.kept() is None]
        waiting = [stage for stage in waiting if (stage.train.steps or LONG) >= LONG]
        unknown = any(stage.train.compile or stage.train.init_from for stage in waiting)
        if not waiting or unknown or world_size() > 1:
            return
        each = {stage.student: stage for stage in waiting}
        seconds = {name: stage.seconds_to_train() for name, stage in each.items()}
        total = sum(seconds[stage.student] for stage in waiting)
        trainings = f"{len(waiting)} trainings" if len(waiting) > 1 else "1 training"
        words = f"  {trainings}: about {duration(total)} on this machine, by a few steps of each; evaluation is extra"
        console.print(words, highlight=False, markup=False, soft_wrap=True)

    def do(self, stage: Stage, title: str) -> dict[str, Any]:
        """Do `stage` unless it is done, and print a line under `title`. Returns its figures."""
        reused = stage.record() is not None
        before = None if reused else stage.kept()
        self._reused[stage.name] = reused or before is not None
        writable = is_writable(self.folder)
        if not reused and not writable:
            raise CocomixError(f"{self.folder} cannot be written; fix its permissions or give another --run")
        if self.replace is False and not reused:
            again = command_line(stage.command, stage.user_folder, [*stage.user_options, "--replace"])
            ask_before_replacing(self.folder, [stage], f"run {again}")
        if is_main() and writable:
            remove_temporaries(self.folder, below=False)
            for note in [] if reused else notes_on_others(stage):
                console.print(f"  {title}: {note}", highlight=False, markup=False, soft_wrap=True)
        try:
            with StageProgress(console, title, quiet=not is_main()) as progress:
                figures = stage.run(progress)
        except Interrupted:
            if is_main() and stage.done():
                self._settings_file.write(self.config.model_dump(mode="json"))
            raise
        if is_main():
            # Only now, so that a command that fails leaves the run with the settings of its finished stages.
            if writable:
                self._settings_file.write(self.config.model_dump(mode="json"))
            seconds = (stage.record() or {}).get("seconds", 0.0)
            back = before is not None and "back, done before with these settings"
            state = "kept, done before" if reused else back or duration(seconds)
            summary = stage.describe(figures)
            console.print(
                f"  {title}: {state}{summary and '; '}{summary}", highlight=False, markup=False, soft_wrap=True
            )
        return figures

    def training_stages(self, name: str) -> list[str]:
        """Names of the stages that train `name`: the teacher, or a student with every seed."""
        if name == "teacher":
            own = [] if self.teacher_tokens is self.tokens else [self.teacher_tokens.name]
            return [self.teacher.name, *own]
        stages = [stage.name for stage in self.students if stage.student == name]
        if not stages:
            choices = ", ".join(["teacher", *self.config.students])
            raise CocomixError(f"nothing called {name!r} is trained in this run; choose one of {choices}")
        return stages

    def label_stages(self, name: str | None) -> list[str]:
        """Names of the stages that write labels: one set, the teacher's `logits`, or all there are."""
        stored = [stage.name for stage in self.logits.values()]
        labels = {key: stages for key, label in self.labels.items() if (stages := label_stages(label))}
        if name is None:
            return [*(stage.name for stages in labels.values() for stage in stages), *stored]
        if name == "logits" and stored:
            return stored
        if name not in self.labels:
            choices = ", ".join([*self.labels, *(["logits"] if stored else [])])
            raise CocomixError(f"there are no labels called {name!r} in this run; it has {choices}")
        if self.config.labels[name].rule in CONTROLS:
            raise CocomixError(f"the labels {name} are a control's, which follow from others; nothing is stored")
        if name not in labels:
            raise CocomixError(
                f"the labels {name} are made while students train; set labels.{name}.live=false to store them"
            )
        return [stage.name for stage in labels[name]]

    def measure_predictability(self, name: str | None) -> list[PredictabilityStage]:
        """Do the stages that say how predictable labels are, of one set or of all, and store labels that are not yet.

        Raises:
            CocomixError: there is no such set.
        """
        if name is not None and name not in self.labels:
            raise CocomixError(f"there are no labels called {name!r} in this run; it has {', '.join(self.labels)}")
        stages = [stage for (labels, _), stage in self.predictability.items() if name in (None, labels)]
        if not stages:
            raise CocomixError("this run has no labels whose predictability could be measured; add some under `labels`")
        sets = [needed for stage in stages for needed in stage.labels.needed if isinstance(needed, LabelStage)]
        stored = [part for labels in sets for part in label_stages(labels)]
        needed = {stage.name: stage for stage in [*stored, *(stage.student for stage in stages), *stages]}
        for title, stage in needed.items():
            self.do(stage, title)
        return stages

    def evaluation_stages(self) -> list[str]:
        """Names of the evaluation stages of every student and seed."""
        return [stage.name for stage in self.evaluations]

    def results(self) -> dict[str, Any]:
        """Everything the report shows, collected from the finished stages."""
        return collect_results(self, self._reused)

    def write_report(self, output: Path | None = None) -> None:
        """Write `report.html` and `report.json` into `output`, or else the run's folder if it can be written."""
        if is_main():
            if output is None and not is_writable(self.folder):
                notice = f"no report is written, because {self.folder} cannot be written; give --output FOLDER"
                errors.print(f"cocomix: {notice}", style="yellow", highlight=False, markup=False, soft_wrap=True)
            else:
                if output is not None:
                    output.mkdir(parents=True, exist_ok=True)
                write_report(self.results(), output or self.folder)
        barrier()

    def print_summary(self, output: Path | None = None) -> None:
        """One screen: the table, and where the report is."""
        if not is_main():
            return
        console.print(summary_table(self.results()))
        page = (output or self.folder) / "report.html"
        if page.exists():
            console.print(f"Report: {page.resolve()}", highlight=False, soft_wrap=True)


def ask_before_replacing(folder: Path, stages: Sequence[Stage], advice: str) -> None:
    """Ask, once in a launch of several processes, before finished stages are done anew with other settings.

    Args:
        advice: what a user does who wants that and has no terminal.

    Raises:
        CocomixError: there is no terminal to ask on, or the answer is no.
    """
    on_main(lambda: _ask_before_replacing(folder, stages, advice))


def _ask_before_replacing(folder: Path, stages: Sequence[Stage], advice: str) -> None:
    replaced = {stage.name: record for stage in stages if (record := stage.replaces()) is not None}
    if not replaced:
        return
    seconds = sum(record.get("seconds") or 0.0 for record in replaced.values())
    said = (
        f"{folder} has finished stages with other settings: {listed(list(replaced), SHOWN_STAGES)}; they took"
        f" {duration(seconds)}"
    )
    if not (console.is_terminal and sys.stdin.isatty()):
        raise CocomixError(
            f"{said}; give another --run, or {advice} to do them anew (the old ones are kept in {folder / KEPT} and"
            " come back with their settings)"
        )
    question = f"{said}. Keep them in {folder / KEPT} and do these stages anew? [y/N] "
    if console.input(Text(question)).strip().lower() not in ("y", "yes"):
        raise CocomixError("nothing was changed; give another --run")


def notes_on_others(stage: Stage) -> list[str]:
    """What becomes of other attempts at a stage that is about to be done, a sentence each."""
    notes = []
    record = stage.replaces()
    if record is not None:
        difference = listed(settings_between(record["settings"], stage))
        notes.append(
            f"the finished one has other settings ({difference}) and took {duration(record.get('seconds') or 0.0)}; it"
            f" is kept in {stage.run_dir / KEPT} and comes back with its settings"
        )
    unfinished = stage.unfinished()
    if unfinished:
        size = sum(attempt.bytes for attempt in unfinished)
        notes.append(
            f"{len(unfinished)} unfinished with other settings stay for when those return ({in_bytes(size)});"
            f" {command_line('cocomix clean', stage.user_folder)} lists them"
        )
    return notes


def settings_between(other: Any, stage: Stage) -> list[str]:
    """What differs between an attempt's settings and the stage's present ones, key by key."""
    try:
        present = json.loads(json.dumps(stage.settings()))
    except CocomixError:  # they depend on an input that is not there
        return ["not known"]
    return changes(other, present) or ["those of its inputs"]


def load_run(folder: Path, overrides: Sequence[str] = (), *, announce: bool = True) -> Run:
    """The run in `folder`, with the settings of its config.yaml and overrides on top; an edit by hand is announced.

    Raises:
        CocomixError: as `load_config`.
    """
    run = Run(folder, load_config(folder / CONFIG, overrides))
    edit = describe_edit(run, overrides) if announce and is_main() else ""
    if edit:
        errors.print(f"cocomix: {edit}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    return run


def describe_edit(run: Run, overrides: Sequence[str] = ()) -> str:
    """What was edited in a run's config.yaml since a command last wrote it, and what will be redone; empty: nothing.

    Args:
        overrides: those the run was loaded with, which are no edit.
    """
    before = last_written(run.folder / CONFIG)
    if before is None:
        return ""
    redone: list[str] = []
    try:
        previous = Run(
            run.folder, validate_config(override(before, overrides), CONFIG), external_inputs=run.external_inputs
        )
    except CocomixError:  # settings that do not fit this version, or these overrides
        edits = changes(before, run.config.model_dump(mode="json"))
    else:
        edits = changes(previous.config.model_dump(mode="json"), run.config.model_dump(mode="json"))
        if edits:
            kept = {name: stage for name, stage in previous.stages.items() if name in run.stages and stage.done()}
            redone = [name for name in kept if not run.stages[name].done()]
    if not edits:
        return ""
    consequence = f"to be redone: {listed(redone, SHOWN_STAGES)}" if redone else "no finished stage depends on it"
    return f"{CONFIG} was edited: {listed(edits)}; {consequence}"


def _check_folder(folder: Path) -> None:
    nearest = _nearest(folder)
    if not nearest.is_dir():
        raise CocomixError(f"{nearest} is a file, not a folder; give another --run")


def is_writable(folder: Path) -> bool:
    """Whether files can be made in `folder`, or it can be made. A finished run is also read where they cannot."""
    return os.access(_nearest(folder), os.W_OK | os.X_OK)


def _nearest(folder: Path) -> Path:
    return next(path for path in (folder, *folder.resolve().parents) if path.exists())


def collect_results(run: "Run", reused: dict[str, bool], names: Sequence[str] | None = None) -> dict[str, Any]:
    """The report's input; the evaluations of every student, or of those called `names`, must be finished.

    Raises:
        CocomixError: a stage the report needs is missing; the sentence names the command that makes it.
    """
    chosen = list(run.config.students) if names is None else list(names)
    students = [_student(run, name) for name in chosen]
    sizes = {student["name"]: student["parameters"] for student in students}
    students = [student | {"controls": controls_of(run.config, student["name"], sizes)} for student in students]
    made = [record["made"] for stage in run.students if stage.student in chosen and (record := stage.record())]
    corpus, tokens = run.corpus.figures, run.tokens.figures
    teacher = run.teacher_figures
    return {
        "title": run.config.title,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": run.config.model_dump(mode="json"),
        "machine": made[-1]["machine"],
        "command": shlex.join(["cocomix", *sys.argv[1:]]),
        "commits": sorted({one["commit"] for one in made if one["commit"]}),
        "corpus": {
            "source": corpus["source"],
            "splits": {name: counts | {"tokens": tokens["tokens"][name]} for name, counts in corpus["splits"].items()},
        },
        "tokenizer": {"vocab_size": tokens["vocab_size"], "bytes_per_token": tokens["bytes_per_token"]},
        "teacher": teacher
        | {f"val_{name}": _last(teacher.get("curve"), f"val_{name}") for name in ("perplexity", "bits_per_byte")},
        "sae": run.sae.figures | {"seconds": _seconds(run, run.sae.name)},
        "labels": [
            _labels(name, labels, sign)
            for name, labels in run.labels.items()
            if isinstance(labels, LabelStage) and labels.record() is not None
            for sign in labels.config.signs
        ],
        "students": students,
        "baseline": run.config.baseline,
        "stages": [
            {"name": name, "seconds": _seconds(run, name), "reused": reused.get(name, True)}
            for name, stage in run.stages.items()
            if stage.record() is not None
        ],
        "notes": [
            "The teacher, the SAE and the labels are made once and shared by all seeds;"
            " a seed sets a student's initialisation and the order of its batches.",
            *_live_labels(run, chosen),
            *_several_machines(made),
        ],
    }


def _several_machines(made: list[dict[str, Any]]) -> list[str]:
    """A warning where the students' seconds come from different machines or settings."""
    if all(one["machine"] == made[0]["machine"] for one in made):
        return []
    kinds = sorted({f"{m['device']}, {m['cpu']}, {m['threads']} threads" for m in (one["machine"] for one in made)})
    return [f"The students were not all trained under the same conditions ({'; '.join(kinds)}): compare no seconds."]


def _live_labels(run: "Run", chosen: list[str]) -> list[str]:
    """A note where labels are part of a student's own training cost, unlike those made once."""
    labels = {stage.student: stage.labels for stage in run.students}
    live = [name for name in chosen if (found := labels[name]) is not None and found.live_share(1, 1)]
    if not live:
        return []
    return [f"The labels of {', '.join(live)} were made during training: its FLOPs and seconds include theirs."]


def _student(run: "Run", name: str) -> dict[str, Any]:
    config: Any = run.config.students[name]
    stages = [stage for stage in run.evaluations if stage.student.student == name]
    first = stages[0].student.figures
    label = stages[0].student.labels
    return {
        "name": name,
        "objective": config.objective,
        "about": config.describe(),
        "width": first["width"],
        "parameters": first["parameters"],
        "label_rule": label.describe_labels(stages[0].student.sign) if label else None,
        "mixes_vector": mixes_vector(config),
        "flops_per_token": first["flops_per_token"],
        "runs": [_student_run(stage) for stage in stages],
    }


def _student_run(stage: EvaluationStage) -> dict[str, Any]:
    trained, measured, made = stage.student.figures, stage.figures, _material(stage.student)
    recall = measured.get("recall")
    return {
        "seed": stage.student.seed,
        "val_perplexity": measured["val"]["perplexity"],
        "test_perplexity": measured["test"]["perplexity"],
        "val_bits_per_byte": measured["val"].get("bits_per_byte"),
        "test_bits_per_byte": measured["test"].get("bits_per_byte"),
        "val_loss": measured["val"]["loss"],
        "test_loss": measured["test"]["loss"],
        "seconds": trained["seconds"],
        "tokens": trained["tokens"],
        "flops": trained["flops"],
        "label_seconds": made["seconds"],
        "label_flops": made["flops"],
        "recall": recall["recall"] if recall else None,
        "recall_baseline": recall["baseline"] if recall else None,
        "channel": measured.get("channel"),
        "curve": trained["curve"],
    }


def _material(student: StudentStage) -> dict[str, float]:
    """Seconds and operations of what was made once for this student's training: labels, or the teacher's logits."""
    if student.labels is not None:
        return student.labels.made_once()
    if student.logits is not None:
        return {name: student.logits.figures[name] for name in ("seconds", "flops")}
    return {"seconds": 0.0, "flops": 0.0}


def _labels(name: str, labels: LabelStage, sign: str) -> dict[str, Any]:
    config, figures = labels.config, labels.figures
    return {
        "name": name,
        "rule": config.rule,
        "sign": sign,
        "k": config.k,
        "valid_share": figures["train"]["valid_share"][sign],
        **labels.made_once(),
        "tokens_per_second": figures["train"]["tokens_per_second"],
    }


def _seconds(run: "Run", name: str) -> float:
    record = run.stages[name].record()
    return record["seconds"] if record else 0.0


def _last(curve: list[dict[str, Any]] | None, figure: str) -> float | None:
    points = [point[figure] for point in curve or [] if figure in point]
    return points[-1] if points else None

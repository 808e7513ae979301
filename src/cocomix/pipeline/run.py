"""A run: its folder, its resolved config, and the graph of its stages."""

import os
from pathlib import Path
from typing import Any

from cocomix.pipeline.config import RunConfig
from cocomix.pipeline.data_stages import CorpusStage, TokensStage
from cocomix.pipeline.label_sets import label_set
from cocomix.pipeline.lent import Lending
from cocomix.pipeline.logits_stage import LogitsStage
from cocomix.pipeline.results import collect_results
from cocomix.pipeline.sae_stage import SaeStage
from cocomix.pipeline.stage import Stage
from cocomix.pipeline.student_stages import EvaluationStage, StudentStage
from cocomix.pipeline.teacher_stage import TeacherStage
from cocomix.utils.console import StageProgress, duration
from cocomix.utils.distributed import barrier
from cocomix.utils.errors import CocomixError
from cocomix.utils.pipeline_console import console
from cocomix.utils.processes import is_main
from cocomix.utils.settings import save_config


class Run:
    """All stages of one run folder, in the order of the data flow.

    Args:
        folder: the run's folder; created on the first stage.
        config: resolved configuration; saved as `config.yaml` when a stage is done.
        lending: stages of other runs that this one's configuration names.
    """

    def __init__(self, folder: Path, config: RunConfig, lending: Lending | None = None) -> None:
        lending = lending or {}
        self.folder, self.config = folder, config
        _check_writable(folder)
        self.corpus = CorpusStage(folder, config)
        self.tokens = TokensStage(folder, config, self.corpus, lending)
        self.teacher = TeacherStage(folder, config, self.tokens, lending)
        self.sae = SaeStage(folder, config, self.tokens, self.teacher, lending)
        self.labels = {name: label_set(folder, name, config, self.teacher, self.sae) for name in config.labels}
        stored_labels = {name: made for name, made in self.labels.items() if isinstance(made, Stage)}
        stored = [getattr(student, "teacher_top_k", None) for student in config.students.values()]
        self.logits = {k: LogitsStage(folder, k, config, self.teacher) for k in stored if k is not None}
        self.students = [
            self._student(name, student, seed) for seed in config.seeds for name, student in config.students.items()
        ]
        self.evaluations = [EvaluationStage(student) for student in self.students]
        used = {getattr(student, "labels", None) for student in config.students.values()}
        self._shared: list[Stage] = [self.corpus, self.tokens, self.teacher, self.sae]
        self._shared += [label for name, label in stored_labels.items() if name in used]
        self._shared += self.logits.values()
        stages = [*self._shared, *self.students, *self.evaluations]
        self.stages = {stage.name: stage for stage in stages}
        self.stages |= {label.name: label for label in stored_labels.values() if label.name not in self.stages}
        self._all = [stage.name for stage in stages]
        self._reused: dict[str, bool] = {}

    def _student(self, name: str, student: Any, seed: int) -> StudentStage:
        labels = self.labels.get(getattr(student, "labels", None) or "")
        logits = self.logits.get(getattr(student, "teacher_top_k", None) or 0)
        return StudentStage(self.folder, name, seed, self.config, self.sae, labels, logits)

    def shared(self) -> list[Stage]:
        """The stages all students share, in the order of the data flow."""
        return list(self._shared)

    def run_stage(self, name: str) -> dict[str, Any]:
        """Do one stage, unless it is done; its inputs must be finished. Returns its figures."""
        return self.do(self.stages[name], name)

    def run_all(self) -> None:
        """Do every stage the students need, then write the report."""
        if is_main():
            console.print(f"[bold]{self.config.title}[/] in {self.folder}", highlight=False)
        for number, name in enumerate(self._all):
            self.do(self.stages[name], f"[{number + 1}/{len(self._all)}] {name}")
        self.write_report()

    def do(self, stage: Stage, title: str) -> dict[str, Any]:
        """Do `stage` unless it is done, and say so under `title`. Returns its figures."""
        reused = stage.record() is not None
        self._reused[stage.name] = reused
        with StageProgress(console, title.replace("[", r"\["), quiet=not is_main()) as progress:
            figures = stage.run(progress)
        if is_main():
            # Only now: a command that fails leaves the run with the settings its finished stages were made with.
            save_config(self.config, self.folder / "config.yaml")
            seconds = (stage.record() or {}).get("seconds", 0.0)
            state = "kept, done before" if reused else duration(seconds)
            found = stage.describe(figures)
            console.print(f"  {title}: {state}{found and '; '}{found}", highlight=False, markup=False, soft_wrap=True)
        return figures

    def training_stages(self, who: str) -> list[str]:
        """Names of the stages that train `who`: the teacher, or a student with every seed."""
        if who == "teacher":
            return [self.teacher.name]
        names = [stage.name for stage in self.students if stage.student == who]
        if not names:
            there = ", ".join(["teacher", *self.config.students])
            raise CocomixError(f"nothing called {who!r} is trained in this run; choose one of {there}")
        return names

    def label_stages(self, name: str | None) -> list[str]:
        """Names of the stages that write labels: one set, the teacher's `logits`, or all there are."""
        stored = [stage.name for stage in self.logits.values()]
        labels = {key: made for key, made in self.labels.items() if isinstance(made, Stage)}
        if name is None:
            return [*(label.name for label in labels.values()), *stored]
        if name == "logits" and stored:
            return stored
        if name not in self.labels:
            there = ", ".join([*self.labels, *(["logits"] if stored else [])])
            raise CocomixError(f"there are no labels called {name!r} in this run; it has {there}")
        if name not in labels:
            raise CocomixError(
                f"the labels {name} are made while students train; set labels.{name}.live=false to store them"
            )
        return [labels[name].name]

    def evaluation_stages(self) -> list[str]:
        """Names of the evaluation stages of every student and seed."""
        return [stage.name for stage in self.evaluations]

    def results(self) -> dict[str, Any]:
        """Everything the report shows, collected from the finished stages."""
        return collect_results(self, self._reused)

    def write_report(self) -> None:
        """Write `report.html` and `report.json` into the run's folder."""
        from cocomix.report.page import write_report

        if is_main():
            write_report(self.results(), self.folder)
        barrier()

    def print_summary(self) -> None:
        """One screen: the table, and where the report is."""
        from cocomix.report.tables import summary_table

        if not is_main():
            return
        console.print(summary_table(self.results()))
        page = self.folder / "report.html"
        if page.exists():
            console.print(f"Report: {page.resolve()}", highlight=False, soft_wrap=True)


def _check_writable(folder: Path) -> None:
    nearest = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    if not nearest.is_dir():
        raise CocomixError(f"{nearest} is a file, not a folder; give another --run")
    if not os.access(nearest, os.W_OK):
        raise CocomixError(f"{nearest} cannot be written; mend its permissions or give another --run")

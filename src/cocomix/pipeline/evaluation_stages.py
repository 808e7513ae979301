"""What `cocomix evaluate` does beyond the perplexity stages: the harness's tasks, and the snapshots of a training."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cocomix.pipeline.snapshot_stage import SnapshotStage, snapshot_table, snapshots_of, step_of, write_rows
from cocomix.pipeline.student_stages import StudentStage
from cocomix.utils.console import StageProgress
from cocomix.utils.errors import CocomixError
from cocomix.utils.pipeline_console import console
from cocomix.utils.processes import is_main

if TYPE_CHECKING:
    from cocomix.evaluation.harness.tasks import Tasks
    from cocomix.pipeline.harness_stage import HarnessSettings
    from cocomix.pipeline.run import Run


class TaskOptions(NamedTuple):
    """What the command line says about tasks."""

    names: list[str]
    """none: no tasks, only perplexity"""
    data: Path | None
    limit: int | None
    num_fewshot: int | None
    batch_size: int | str
    samples: bool

    @classmethod
    def of(
        cls,
        names: str | None,
        data: Path | None,
        limit: int | None,
        fewshot: int | None,
        batch_size: str,
        samples: bool,
    ) -> "TaskOptions":
        """From the options as typed.

        Raises:
            CocomixError: a batch size that is neither a number nor auto.
        """
        if batch_size != "auto" and not (batch_size.isdecimal() and int(batch_size)):
            raise CocomixError(f"--batch-size {batch_size} is neither a number above 0 nor auto")
        wanted = list(dict.fromkeys(name.strip() for name in (names or "").split(",") if name.strip()))
        if names is not None and not wanted:
            raise CocomixError("no task is named; give --tasks a list such as lambada_openai,wikitext")
        rows = batch_size if batch_size == "auto" else int(batch_size)
        return cls(wanted, data, limit, fewshot, rows, samples)

    def known(self) -> "Tasks":
        """The harness's tasks, once it knows all the names."""
        from cocomix.evaluation.harness.tasks import Tasks

        tasks = Tasks(self.data)
        tasks.check(self.names)
        return tasks

    def settings(self) -> "HarnessSettings":
        """How tasks are run, for a stage."""
        from cocomix.pipeline.harness_stage import HarnessSettings

        return HarnessSettings(self.limit, self.num_fewshot, self.batch_size, self.samples)


def evaluate_tasks(run: "Run", students: Sequence[str], options: TaskOptions) -> None:
    """Run the harness's tasks on the run's students and print one table; what was measured before is kept.

    Raises:
        CocomixError: unknown task or student, missing data, or a student that is not trained.
    """
    from cocomix.evaluation.harness.table import Metric, results_table
    from cocomix.pipeline.harness_stage import HarnessStage

    chosen = _chosen(run, students)
    for stage in chosen:
        _ = stage.figures  # before hours of tasks on the others
    known, settings = options.known(), options.settings()
    stages = [HarnessStage(one, name, known, settings) for one in chosen for name in options.names]
    found = _do(run, stages)
    rows = [(stage.student.student, str(stage.student.seed), Metric(**one)) for stage, one in _metrics(stages, found)]
    if is_main():
        console.print(results_table(sorted(rows, key=lambda row: (row[2].task, row[2].metric))))
        console.print(f"Results in the harness's layout: {run.folder / 'harness'}", highlight=False, soft_wrap=True)


def evaluate_model(source: str, options: TaskOptions, output: Path | None) -> None:
    """Run the harness's tasks on any model folder or hub id; results go to `output/TASK/results.json`."""
    from cocomix.evaluation.harness.model import CoCoMixLM
    from cocomix.evaluation.harness.run import run_tasks
    from cocomix.evaluation.harness.table import metrics, results_table
    from cocomix.pipeline.harness_stage import write_results

    known = options.known()
    model = CoCoMixLM(source, batch_size=options.batch_size)
    rows = []
    for name in options.names:
        with StageProgress(console, name, quiet=not is_main()) as progress:
            found = run_tasks(
                model,
                known,
                name,
                limit=options.limit,
                num_fewshot=options.num_fewshot,
                log_samples=options.samples and output is not None,
                progress=progress,
            )
        if found is not None and is_main():
            rows += [(Path(source).name, "", one) for one in metrics(found)]
            if output is not None:
                (output / name).mkdir(parents=True, exist_ok=True)
                write_results(found, output / name)
    if is_main():
        console.print(results_table(rows))
        if output is not None:
            console.print(f"Results in the harness's layout: {output}", highlight=False, soft_wrap=True)


def evaluate_snapshots(run: "Run", students: Sequence[str], options: TaskOptions, *, test: bool) -> None:
    """Perplexity, and the harness's tasks where some are named, of every snapshot of every finished student.

    Args:
        test: the test split, too. Choose by val: a choice made by test makes its figure worthless.

    Raises:
        CocomixError: no snapshots, or an unknown task or student.
    """
    chosen = [(student, name) for student in _chosen(run, students) for name in snapshots_of(student)]
    if not chosen:
        raise CocomixError(
            f"no finished student of {run.folder} has snapshots; train with students_train.n_snapshots above 0"
        )
    rows: list[dict[str, Any]] = []
    splits = ("val", "test") if test else ("val",)
    stages = [SnapshotStage(student, name, split) for student, name in chosen for split in splits]
    for stage, figures in zip(stages, _do(run, stages), strict=True):
        rows.append(_row(stage.student, stage.snapshot, f"{stage.split} perplexity", figures["perplexity"], None))
    if options.names:
        from cocomix.pipeline.harness_stage import HarnessStage

        known, settings = options.known(), options.settings()
        asked = [HarnessStage(one, task, known, settings, name) for one, name in chosen for task in options.names]
        for stage, one in _metrics(asked, _do(run, asked)):
            name = f"{one['task']} {one['metric']}"
            rows.append(_row(stage.student, stage.snapshot or "", name, one["value"], one["stderr"]))
    if is_main():
        paths = write_rows(rows, run.folder)
        console.print(snapshot_table(rows))
        console.print(f"Written: {', '.join(map(str, paths))}", highlight=False, soft_wrap=True)


def _chosen(run: "Run", students: Sequence[str]) -> list[StudentStage]:
    unknown = [name for name in students if name not in run.config.students]
    if unknown:
        raise CocomixError(
            f"there is no student {unknown[0]!r} in this run; choose among {', '.join(run.config.students)}"
        )
    return [stage for stage in run.students if not students or stage.student in students]


def _do(run: "Run", stages: Sequence[Any]) -> list[dict[str, Any]]:
    return [run.do(stage, f"[{number + 1}/{len(stages)}] {stage.name}") for number, stage in enumerate(stages)]


def _metrics(stages: Iterable[Any], found: Iterable[dict[str, Any]]) -> list[tuple[Any, dict[str, Any]]]:
    return [(stage, one) for stage, figures in zip(stages, found, strict=True) for one in figures["metrics"]]


def _row(student: StudentStage, snapshot: str, metric: str, value: float, error: float | None) -> dict[str, Any]:
    return {
        "student": student.student,
        "seed": student.seed,
        "step": step_of(snapshot),
        "metric": metric,
        "value": value,
        "stderr": error,
    }

"""`cocomix evaluate` beyond held-out perplexity: tasks of lm-evaluation-harness, and the snapshots of a training.

Both are stages: kept, resumed and redone like any other. lm-evaluation-harness is an extra, so what uses it is imported
in the functions that run tasks; snapshots and their perplexity need none of it.
"""

import csv
import io
import json
import re
import shlex
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

from cocomix.evaluation.perplexity import perplexity
from cocomix.model.loading import load_causal_lm
from cocomix.pipeline.run import Run
from cocomix.pipeline.stage import Stage
from cocomix.pipeline.student_stages import StudentStage
from cocomix.pipeline.training import in_bytes
from cocomix.utils.console import StageProgress, console, is_main
from cocomix.utils.distributed import device
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import write_json, write_text

if TYPE_CHECKING:
    from cocomix.evaluation.harness.model import CoCoMixLM
    from cocomix.evaluation.harness.tasks import Tasks


def snapshots_of(student: StudentStage) -> list[str]:
    """Names of a finished student's snapshots, `step-00000100`, by step; none where it is not finished."""
    if not student.done():
        return []
    folders = [path.parent for path in (student.folder / "snapshots").glob("step-*/config.json")]
    return sorted((path.name for path in folders if step_of(path.name) >= 0), key=step_of)


def snapshot_weights(student: StudentStage, snapshot: str) -> list[Path]:
    """The weight files of a snapshot."""
    return sorted((student.folder / "snapshots" / snapshot).glob("*.safetensors"))


def step_of(name: str) -> int:
    """The training step in a snapshot's name; -1 if there is none."""
    match = re.fullmatch(r"step-(\d+)", name)
    return int(match[1]) if match else -1


class SnapshotStage(Stage):
    """Perplexity of one snapshot on one held-out split, with the evaluation's own windows."""

    def __init__(self, student: StudentStage, snapshot: str, split: str) -> None:
        self.student, self.snapshot, self.split = student, snapshot, split
        name = f"{student.name.replace('students/', 'snapshots/', 1)}/{snapshot}/{split}"
        super().__init__(student.run_dir, name, "cocomix evaluate --snapshots", [student])

    def settings(self) -> dict[str, Any]:
        config = self.student.run_config
        return {"seq_len": config.seq_len, "windows": config.evaluation.windows, "split": self.split}

    def describe(self, figures: dict[str, Any]) -> str:
        return f"perplexity {figures['perplexity']:.2f}{in_bytes(figures.get('bits_per_byte'))} ({self.split})"

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        config = self.student.run_config
        source = self.student.folder / "snapshots" / self.snapshot
        model = load_causal_lm(
            source, f"the snapshot {self.snapshot} of {self.student.student}", self.student.redo_hint
        )
        measured = perplexity(
            model.to(device()),  # pyright: ignore[reportArgumentType]
            self.student.tokens.shards(self.split),
            seq_len=config.seq_len,
            batch_size=config.evaluation.batch_size,
            max_windows=config.evaluation.windows,
            bytes_of=self.student.tokens.bytes_of(self.split),
        )
        progress(1, 1, {})
        return measured


COLUMNS: tuple[str, ...] = ("student", "seed", "step", "metric", "value", "stderr")


def write_rows(rows: Sequence[dict[str, Any]], run_dir: Path) -> tuple[Path, Path]:
    """Write rows of `COLUMNS` as `snapshots.json` and `snapshots.csv` into the run; returns both paths."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(COLUMNS))
    writer.writeheader()
    writer.writerows(rows)
    note = "make choices by val; a figure on test is for the end, after every choice is made"
    write_json(run_dir / "snapshots.json", {"note": note, "rows": list(rows)})
    write_text(run_dir / "snapshots.csv", text.getvalue())
    return run_dir / "snapshots.json", run_dir / "snapshots.csv"


def snapshot_table(rows: Sequence[dict[str, Any]]) -> Table:
    """A line a student, seed and step, a column a metric."""
    names = list(dict.fromkeys(row["metric"] for row in rows))
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("student", "seed", "step", *names):
        table.add_column(heading, justify="left" if heading == "student" else "right", overflow="fold")
    lines: dict[tuple[Any, ...], dict[str, str]] = {}
    for row in rows:
        cell = f"{row['value']:.4g}" + ("" if row["stderr"] is None else f" ± {row['stderr']:.2g}")
        lines.setdefault((row["student"], row["seed"], row["step"]), {})[row["metric"]] = cell
    for (student, seed, step), cells in lines.items():
        table.add_row(student, str(seed), f"{step:,}", *(cells.get(name, "") for name in names))
    return table


RESULTS, SAMPLES = "results.json", "samples.jsonl"


class HarnessSettings(NamedTuple):
    """How tasks are run."""

    limit: int | None = None
    """the first so many documents only; None: all"""
    num_fewshot: int | None = None
    """examples before each question; None: each task's own number"""
    batch_size: int | str = 16
    """rows of a forward pass, or "auto" """
    samples: bool = False
    """also keep the questions and answers"""


class HarnessStage(Stage):
    """Results in the harness's own layout in `harness/STUDENT/seedN/TASK/results.json`, lineage beside it.

    Args:
        snapshot: name of a folder under the student's `snapshots/`; None: the finished student.
    """

    distributed = True

    def __init__(
        self, student: StudentStage, task: str, tasks: "Tasks", settings: HarnessSettings, snapshot: str | None = None
    ) -> None:
        self.student, self.task, self.tasks, self.harness_settings, self.snapshot = (
            student,
            task,
            tasks,
            settings,
            snapshot,
        )
        base = student.name.replace("students/", "harness/", 1) + (f"/{snapshot}" if snapshot else "")
        super().__init__(student.run_dir, f"{base}/{task}", f"cocomix evaluate --tasks {shlex.quote(task)}", [student])

    def settings(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "data": None if self.tasks.data is None else str(self.tasks.data.resolve()),
            "limit": self.harness_settings.limit,
            "num_fewshot": self.harness_settings.num_fewshot,
            "snapshot": self.snapshot,
            "lm_eval": version("lm_eval"),
        }

    def outputs(self) -> list[str]:
        return [RESULTS, SAMPLES] if self.harness_settings.samples else [RESULTS]

    def describe(self, figures: dict[str, Any]) -> str:
        shown = [one for one in figures["metrics"] if one["task"] == self.task]
        return ", ".join(f"{one['metric']} {one['value']:.4g}" for one in shown)

    @property
    def model_folder(self) -> Path:
        """Folder of the model that is measured."""
        return self.student.folder / ("model" if self.snapshot is None else f"snapshots/{self.snapshot}")

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        from cocomix.evaluation.harness.run import run_tasks

        model = _loaded(self.model_folder, self.harness_settings.batch_size)
        results = run_tasks(
            model,
            self.tasks,
            self.task,
            limit=self.harness_settings.limit,
            num_fewshot=self.harness_settings.num_fewshot,
            log_samples=self.harness_settings.samples,
            progress=progress,
        )
        return {} if results is None or not is_main() else write_results(results, folder)


def write_results(results: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the harness's results, in its layout, into `folder`; returns its metrics as figures of a stage."""
    from lm_eval.utils import handle_non_serializable

    from cocomix.evaluation.harness.run import metrics

    samples = results.pop("samples", None)
    write_text(folder / RESULTS, json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False))
    if samples is not None:
        lines = [
            json.dumps({"task": task} | sample, default=handle_non_serializable, ensure_ascii=False) + "\n"
            for task, several in samples.items()
            for sample in several
        ]
        write_text(folder / SAMPLES, "".join(lines))
    return {
        "metrics": [one._asdict() for one in metrics(results)],
        "documents": {task: counts["effective"] for task, counts in results["n-samples"].items()},
        "model_sha": results["config"]["model_sha"],
    }


_last: "dict[tuple[Path, int | str], CoCoMixLM]" = {}


def _loaded(folder: Path, batch_size: int | str) -> "CoCoMixLM":
    """The model, kept until another is requested, because tasks of one student follow each other."""
    from cocomix.evaluation.harness.model import CoCoMixLM

    if (folder, batch_size) not in _last:
        _last.clear()
        _last[folder, batch_size] = CoCoMixLM(folder, batch_size=batch_size)
    return _last[folder, batch_size]


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
        tasks = list(dict.fromkeys(name.strip() for name in (names or "").split(",") if name.strip()))
        if names is not None and not tasks:
            raise CocomixError("no task is named; give --tasks a list such as lambada_openai,wikitext")
        rows = batch_size if batch_size == "auto" else int(batch_size)
        return cls(tasks, data, limit, fewshot, rows, samples)

    def known(self) -> "Tasks":
        """The harness's tasks, once it knows all the names."""
        from cocomix.evaluation.harness.tasks import Tasks

        tasks = Tasks(self.data)
        tasks.check(self.names)
        return tasks

    def settings(self) -> "HarnessSettings":
        """How tasks are run, for a stage."""

        return HarnessSettings(self.limit, self.num_fewshot, self.batch_size, self.samples)


def evaluate_tasks(run: Run, students: Sequence[str], options: TaskOptions) -> None:
    """Run the harness's tasks on the run's students and print one table; what was measured before is kept.

    Raises:
        CocomixError: unknown task or student, missing data, or a student that is not trained.
    """
    from cocomix.evaluation.harness.run import Metric, results_table

    chosen = _chosen(run, students)
    for stage in chosen:
        _ = stage.figures  # before hours of tasks on the others
    known, settings = options.known(), options.settings()
    stages = [HarnessStage(one, name, known, settings) for one in chosen for name in options.names]
    found = _do(run, stages)
    rows = [
        (stage.student.student, str(stage.student.seed), Metric(**metric)) for stage, metric in _metrics(stages, found)
    ]
    if is_main():
        console.print(results_table(sorted(rows, key=lambda row: (row[2].task, row[2].metric))))
        console.print(f"Results in the harness's layout: {run.folder / 'harness'}", highlight=False, soft_wrap=True)


def evaluate_model(source: str, options: TaskOptions, output: Path | None) -> None:
    """Run the harness's tasks on any model folder or hub id; results go to `output/TASK/results.json`."""
    from cocomix.evaluation.harness.model import CoCoMixLM
    from cocomix.evaluation.harness.run import metrics, results_table, run_tasks

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


def evaluate_snapshots(run: Run, students: Sequence[str], options: TaskOptions, *, test: bool) -> None:
    """Measure every snapshot of every finished student: perplexity, and the harness's tasks if any are named.

    Args:
        test: also the test split. Choose by val: once a choice was made by test, its figure means nothing.

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
        for figure in ("perplexity", "bits_per_byte"):
            if figure in figures:
                name = f"{stage.split} {figure.replace('_', ' ')}"
                rows.append(_row(stage.student, stage.snapshot, name, figures[figure], None))
    if options.names:
        known, settings = options.known(), options.settings()
        task_stages = [
            HarnessStage(stage, task, known, settings, name) for stage, name in chosen for task in options.names
        ]
        for stage, metric in _metrics(task_stages, _do(run, task_stages)):
            name = f"{metric['task']} {metric['metric']}"
            rows.append(_row(stage.student, stage.snapshot or "", name, metric["value"], metric["stderr"]))
    if is_main():
        paths = write_rows(rows, run.folder)
        console.print(snapshot_table(rows))
        console.print(f"Written: {', '.join(map(str, paths))}", highlight=False, soft_wrap=True)


def _chosen(run: Run, students: Sequence[str]) -> list[StudentStage]:
    unknown = [name for name in students if name not in run.config.students]
    if unknown:
        raise CocomixError(
            f"there is no student {unknown[0]!r} in this run; choose among {', '.join(run.config.students)}"
        )
    return [stage for stage in run.students if not students or stage.student in students]


def _do(run: Run, stages: Sequence[Any]) -> list[dict[str, Any]]:
    return [run.do(stage, f"[{number + 1}/{len(stages)}] {stage.name}") for number, stage in enumerate(stages)]


def _metrics(stages: Iterable[Any], found: Iterable[dict[str, Any]]) -> list[tuple[Any, dict[str, Any]]]:
    return [(stage, metric) for stage, figures in zip(stages, found, strict=True) for metric in figures["metrics"]]


def _row(student: StudentStage, snapshot: str, metric: str, value: float, error: float | None) -> dict[str, Any]:
    return {
        "student": student.student,
        "seed": student.seed,
        "step": step_of(snapshot),
        "metric": metric,
        "value": value,
        "stderr": error,
    }

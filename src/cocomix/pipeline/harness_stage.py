"""One task of lm-evaluation-harness on one trained student, as a stage: kept, resumed and dated like any other."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from cocomix.evaluation.harness.model import CoCoMixLM
from cocomix.evaluation.harness.run import run_tasks
from cocomix.evaluation.harness.table import metrics
from cocomix.evaluation.harness.tasks import Tasks
from cocomix.pipeline.stage import Stage
from cocomix.pipeline.student_stages import StudentStage
from cocomix.utils.files import write_text
from cocomix.utils.processes import is_main

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
    """also keep what was asked and answered"""


class HarnessStage(Stage):
    """Results in the harness's own layout in `harness/STUDENT/seedN/TASK/results.json`, lineage beside it.

    Args:
        snapshot: name of a folder under the student's `snapshots/`; None: the finished student.
    """

    distributed = True

    def __init__(
        self, student: StudentStage, task: str, tasks: Tasks, settings: HarnessSettings, snapshot: str | None = None
    ) -> None:
        self.student, self.task, self.tasks, self.how, self.snapshot = student, task, tasks, settings, snapshot
        where = student.name.replace("students/", "harness/", 1) + (f"/{snapshot}" if snapshot else "")
        super().__init__(student.run_dir, f"{where}/{task}", f"cocomix evaluate --tasks {task}", [student])

    def settings(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "data": None if self.tasks.data is None else str(self.tasks.data.resolve()),
            "limit": self.how.limit,
            "num_fewshot": self.how.num_fewshot,
            "snapshot": self.snapshot,
            "lm_eval": version("lm_eval"),
        }

    def outputs(self) -> list[str]:
        return [RESULTS, SAMPLES] if self.how.samples else [RESULTS]

    def describe(self, figures: dict[str, Any]) -> str:
        shown = [one for one in figures["metrics"] if one["task"] == self.task]
        return ", ".join(f"{one['metric']} {one['value']:.4g}" for one in shown)

    @property
    def model_folder(self) -> Path:
        """Where the model that is measured lies."""
        return self.student.folder / ("model" if self.snapshot is None else f"snapshots/{self.snapshot}")

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        model = _loaded(self.model_folder, self.how.batch_size)
        found = run_tasks(
            model,
            self.tasks,
            self.task,
            limit=self.how.limit,
            num_fewshot=self.how.num_fewshot,
            log_samples=self.how.samples,
            progress=progress,
        )
        return {} if found is None or not is_main() else write_results(found, folder)


def write_results(found: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write what the harness found, in its layout, into `folder`; returns its metrics as figures of a stage."""
    from lm_eval.utils import handle_non_serializable

    samples = found.pop("samples", None)
    write_text(folder / RESULTS, json.dumps(found, indent=2, default=handle_non_serializable, ensure_ascii=False))
    if samples is not None:
        lines = [
            json.dumps({"task": task} | sample, default=handle_non_serializable, ensure_ascii=False) + "\n"
            for task, several in samples.items()
            for sample in several
        ]
        write_text(folder / SAMPLES, "".join(lines))
    return {
        "metrics": [one._asdict() for one in metrics(found)],
        "documents": {task: counts["effective"] for task, counts in found["n-samples"].items()},
        "model_sha": found["config"]["model_sha"],
    }


_last: dict[tuple[Path, int | str], CoCoMixLM] = {}


def _loaded(folder: Path, batch_size: int | str) -> CoCoMixLM:
    """The model, kept until another is asked for: tasks of one student follow each other."""
    if (folder, batch_size) not in _last:
        _last.clear()
        _last[folder, batch_size] = CoCoMixLM(folder, batch_size=batch_size)
    return _last[folder, batch_size]

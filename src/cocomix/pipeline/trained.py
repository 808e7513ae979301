"""A run's finished parts by what a user calls them, and one sentence where there are none."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cocomix.utils.errors import CocomixError

if TYPE_CHECKING:
    from cocomix.pipeline.run import Run
    from cocomix.pipeline.student_stages import StudentStage


def existing_run(folder: Path) -> "Run":
    """The run in `folder`, with its own settings.

    Raises:
        CocomixError: there is none.
    """
    from cocomix.pipeline.config import load_config
    from cocomix.pipeline.run import Run

    if not (folder / "config.yaml").exists():
        raise CocomixError(f"there is no run in {folder}; run `cocomix demo` first or give another --run")
    return Run(folder, load_config(folder / "config.yaml"))


def student_stage(run: "Run", student: str, seed: int) -> "StudentStage":
    """The stage of a student.

    Raises:
        CocomixError: the run has none of that name and seed.
    """
    for stage in run.students:
        if (stage.student, stage.seed) == (student, seed):
            return stage
    there = ", ".join(f"{stage.student} (seed {stage.seed})" for stage in run.students)
    raise CocomixError(f"{run.folder} has no student {student!r} of seed {seed}; choose one of {there}")


def with_concepts(run: "Run", stage: "StudentStage") -> Any:
    """The finished student of `stage`, one that predicts concepts.

    Raises:
        CocomixError: it is not finished, or predicts none; those that may are named.
    """
    model = stage.model()
    if getattr(getattr(model, "channel", None), "head", None) is None:
        may = sorted({one.student for one in run.students if one.variant.recall})
        raise CocomixError(
            f"the student {stage.student} predicts no concepts; "
            + (f"choose --student {' or '.join(may)}" if may else "train one with the objective cocomix")
        )
    return model

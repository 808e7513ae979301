"""`cocomix certificate`: does the channel of a run's students matter? From their evaluations, or measured now."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cocomix.pipeline.channel_controls import controls_of, mixes_vector
from cocomix.pipeline.run import Run
from cocomix.pipeline.student_stages import EvaluationStage
from cocomix.pipeline.trained import existing_run
from cocomix.report.certificate import certificate_rows
from cocomix.utils.advice import command_line
from cocomix.utils.console import errors
from cocomix.utils.errors import CocomixError


def certificates(folder: Path, students: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The rows of a run's certificate, see `certificate_rows`, of these students or of all that mix a vector in.

    Where an evaluation is missing or of an earlier version, its figures are measured now, and not kept.

    Raises:
        CocomixError: there is no run, a student is not one of its, or none is trained that mixes a vector in.
    """
    run = existing_run(folder)
    mixing = [name for name, student in run.config.students.items() if mixes_vector(student)]
    for name in students:
        if name not in mixing:
            raise CocomixError(
                f"{name!r} is no student of this run that mixes a vector in; choose one of"
                f" {', '.join(mixing) or 'none'}"
            )
    trained = [stage for stage in run.evaluations if stage.student.done()]
    chosen = [stage for stage in trained if stage.student.student in (students or mixing)]
    if not chosen:
        names = " or ".join(students or mixing) or "a concept student"
        train = command_line(f"cocomix train {(students or mixing or ['NAME'])[0]}", folder)
        raise CocomixError(f"{names} is not trained in this run; run {train} first")
    sizes = {stage.student.student: stage.student.figures["parameters"] for stage in trained}
    rows = certificate_rows([_student(run, name, trained, chosen, sizes) for name in sizes])
    return [row for row in rows if row["student"] in {stage.student.student for stage in chosen}]


def _student(
    run: Run, name: str, trained: list[EvaluationStage], chosen: list[EvaluationStage], sizes: dict[str, int]
) -> dict[str, Any]:
    """What `certificate_rows` reads of one student."""
    runs = []
    for stage in (stage for stage in trained if stage.student.student == name):
        measured = stage.figures if stage.done() else {}
        channel = measured.get("channel") or (_measured(stage) if stage in chosen else None)
        runs.append({"seed": stage.student.seed, "channel": channel, "val_loss": measured.get("val", {}).get("loss")})
    mixes = mixes_vector(run.config.students[name])
    return {"name": name, "mixes_vector": mixes, "controls": controls_of(run.config, name, sizes), "runs": runs}


def _measured(stage: EvaluationStage) -> dict[str, Any] | None:
    found = stage.certificate(stage.student.model())
    if found is not None:
        said = f"{stage.student.student}, seed {stage.student.seed}: measured now and not kept"
        errors.print(f"cocomix: {said}", style="dim", highlight=False, markup=False, soft_wrap=True)
    return found

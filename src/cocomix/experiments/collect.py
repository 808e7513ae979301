"""Collect what the stages of a grid measured into the report's input; what is not finished is left out and said.

Two figures are put on a common footing here. Seconds of students are steps times the measured time of a step where
that was measured: students are trained several at a time, so their own clocks compare badly (they are kept as
`clock_seconds`). The cost of labels, made for the whole corpus, is charged by the share of it that a student reads,
at most once (`label_share`).
"""

import shlex
import sys
from datetime import UTC, datetime
from typing import Any

from cocomix.experiments.grid import Grid
from cocomix.pipeline.results import collect_results
from cocomix.utils.errors import CocomixError


def collect(grid: Grid) -> dict[str, Any]:
    """The report's input.

    Raises:
        CocomixError: no setting has a finished baseline yet.
    """
    finished = {name: grid.finished(name) for name in grid.runs}
    here = {name: names for name, names in finished.items() if grid.runs[name].config.baseline in names}
    if not here:
        raise CocomixError(
            f"no setting has finished its baseline {grid.config.baseline!r} yet, so there is nothing to report;"
            " run the experiment first"
        )
    runs = {name: collect_results(grid.runs[name], {}, names) for name, names in here.items()}
    missing = [
        f"{name}: {variant}"
        for name, run in grid.runs.items()
        for variant in run.config.students
        if variant not in here.get(name, ())
    ]
    notes = list(dict.fromkeys(note for run in runs.values() for note in run["notes"]))
    if missing:
        notes.append(f"Not finished, and left out: {', '.join(missing)}.")
    return {
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
        "claims": [claim.model_dump(mode="json") for claim in grid.config.claims],
        "settings": {name: _setting(grid, name, run) for name, run in runs.items()},
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
    students = [
        student | {"runs": [_run(one, timing.get(student["name"]), labelled) for one in student["runs"]]}
        for student in run["students"]
    ]
    title = {"title": grid.config.settings[name].title}
    return title | {key: run[key] for key in kept} | {"students": students, "timing": timing, "steering": steering}


def _run(run: dict[str, Any], step_seconds: float | None, labelled: int) -> dict[str, Any]:
    """One student's run with its seconds and its labels' cost on the common footing."""
    share = min(1.0, run["tokens"] / labelled)
    charged = {name: run[name] * share for name in ("label_flops", "label_seconds")}
    same = run | charged | {"label_share": share, "clock_seconds": run["seconds"]}
    if step_seconds is None or not run["curve"]:
        return same
    curve = [point | {"seconds": point["step"] * step_seconds} for point in run["curve"]]
    return same | {"curve": curve, "seconds": curve[-1]["seconds"]}

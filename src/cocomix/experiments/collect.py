"""Collect what the stages of a grid measured into the report's input."""

import shlex
import sys
from datetime import UTC, datetime
from typing import Any

from cocomix.experiments.grid import Grid
from cocomix.pipeline.results import collect_results


def collect(grid: Grid) -> dict[str, Any]:
    """The report's input; every stage must be finished.

    Raises:
        CocomixError: one is missing; the sentence names it.
    """
    runs = {name: collect_results(run, {}) for name, run in grid.runs.items()}
    first = next(iter(runs.values()))
    return {
        "title": grid.config.title,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["cocomix", *sys.argv[1:]]),
        "commits": sorted({commit for run in runs.values() for commit in run["commits"]}),
        "machine": first["machine"],
        "baseline": grid.config.baseline,
        "seeds": list(grid.config.seeds),
        "frontier": list(grid.config.frontier),
        "recipe": grid.config.model_dump(mode="json"),
        "claims": [claim.model_dump(mode="json") for claim in grid.config.claims],
        "settings": {name: _setting(grid, name, run) for name, run in runs.items()},
    }


def _setting(grid: Grid, name: str, run: dict[str, Any]) -> dict[str, Any]:
    kept = ("corpus", "tokenizer", "teacher", "sae", "labels", "baseline", "students", "config")
    timing = grid.timing[name].figures["seconds"] if name in grid.timing else {}
    steering = [
        {"seed": stage.student.seed, "variant": stage.student.student} | stage.figures for stage in grid.steering[name]
    ]
    title = {"title": grid.config.settings[name].title}
    return title | {key: run[key] for key in kept} | {"timing": timing, "steering": steering}

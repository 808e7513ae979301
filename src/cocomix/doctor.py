"""A run's health: its settings, which stages are finished, and whether their files are as they were written.

All files that have a checksum are read again, those that were found whole before included.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cocomix.doctor_check import Check, Finding, State, Where
from cocomix.utils.errors import CocomixError
from cocomix.utils.integrity import forget_verified

if TYPE_CHECKING:
    from cocomix.pipeline.stage import Stage


class RunCheck(Check):
    """The run that was asked for, stage by stage."""

    title = "run"

    def look(self, where: Where) -> Iterator[Finding]:
        if where.run is None:
            return
        from cocomix.pipeline.trained import existing_run

        run = existing_run(where.run)
        yield Finding(State.FINE, "config", f"{where.run / 'config.yaml'} is valid")
        forget_verified(where.run)
        for stage in run.stages.values():
            yield health(stage, where.run)


def health(stage: "Stage", run: Path) -> Finding:
    """How one stage stands."""
    again = f"`{stage.command} --run {run}`"
    try:
        finished = stage.record() is not None
        if finished:
            stage.check()
            stage.verify()
    except CocomixError as error:
        return Finding.of(stage.name, error)
    if finished:
        return Finding(State.FINE, stage.name, "finished and whole")
    if stage.folder.exists():
        missing = [name for name in stage.outputs() if not (stage.folder / name).exists()]
        if missing:
            return Finding(State.FIX, stage.name, f"{', '.join(missing)} is missing", f"run {again}, it is made anew")
        changed = "made with other settings or from other inputs"
        return Finding(State.NOTE, stage.name, changed, f"{again} makes it anew")
    if any(run.glob(f".partial/{stage.name.replace('/', '--')}-*/")):
        return Finding(State.NOTE, stage.name, "begun, not finished", f"{again} goes on")
    return Finding(State.NOTE, stage.name, "not done yet", f"{again} does it")

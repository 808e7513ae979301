"""Whole models kept along a training run, in their own format, to be evaluated or published like the last one."""

import os
import shutil
from pathlib import Path

from cocomix.objectives.base import Objective
from cocomix.train.parallel import whole
from cocomix.utils.distributed import on_main


def save_model(objective: Objective, folder: Path) -> None:
    """Save the trained model to `folder`; all processes must call it."""
    with whole(objective):
        on_main(lambda: objective.save(folder))


def save_snapshot(objective: Objective, folder: Path, step: int) -> None:
    """Save the model to `folder/snapshots/step-N`, whole or not at all; all processes must call it."""
    final = folder / "snapshots" / f"step-{step:08d}"
    temporary = final.with_name(f".{final.name}.tmp")
    save_model(objective, temporary)
    on_main(lambda: _renamed(temporary, final))


def _renamed(temporary: Path, final: Path) -> None:
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)

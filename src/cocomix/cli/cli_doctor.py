"""The command that looks whether everything is in order."""

from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.options import PathOption
from cocomix.utils.pipeline_console import console


def doctor(
    run: Annotated[
        Path | None, PathOption("--run", "-r", help="A run to look at, too: its settings, stages and files.")
    ] = None,
    folder: Annotated[Path, PathOption(help="Where runs are to be written.")] = Path("runs"),
) -> None:
    """Look whether everything cocomix needs is here, and say what to do where it is not.

    Python, packages, torch, GPU, disk, memory, the folder of runs; with --run a run's health, for which all its files
    are read. Exit code 1 if something must be mended.
    """
    from cocomix.doctor_check import Where, examine
    from cocomix.doctor_show import print_findings

    if not print_findings(examine(Where(run or folder, run)), console):
        raise typer.Exit(1)

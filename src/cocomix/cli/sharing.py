"""Commands beside the stages: publish a trained student, look whether everything is in order."""

from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.options import DEFAULT_RUN, PathOption, RunDir, open_run
from cocomix.utils.console import console
from cocomix.utils.errors import CocomixError


def push(
    student: Annotated[str, typer.Option(help="Which student.")],
    run: RunDir = DEFAULT_RUN,
    seed: Annotated[int, typer.Option(help="Which of its seeds.")] = 0,
    to: Annotated[str | None, typer.Option(help="USER/NAME on the hub; made if it does not exist.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    licence: Annotated[str | None, typer.Option("--license", help="The hub's id of a licence, e.g. mit.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only write what would be uploaded to --output.")] = False,
    output: Annotated[Path | None, PathOption("--output", "-o", help="With --dry-run: a new folder.")] = None,
) -> None:
    """Upload a student to the Hugging Face hub, with a model card that holds its whole lineage.

    Log in with `hf auth login` first. No code is uploaded; the card says how to load the model.
    """
    from cocomix.hub import push_student

    if dry_run and output is None:
        raise CocomixError("--dry-run needs a folder for what would be uploaded; give -o FOLDER")
    if not dry_run and to is None:
        raise CocomixError("say where to with --to USER/NAME, or look first with --dry-run -o FOLDER")
    if not (run / "config.yaml").exists():
        raise CocomixError(f"{run} is no run (it has no config.yaml); give --run")
    where = push_student(
        open_run(run, None, None),
        student,
        seed,
        repo=to,
        private=private,
        licence=licence,
        only_stage=output if dry_run else None,
    )
    console.print(f"{'Would upload' if dry_run else 'Uploaded'}: {where}", highlight=False, soft_wrap=True)


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
    from cocomix.doctor import examine, print_findings

    if not print_findings(examine(run or folder, run), console):
        raise typer.Exit(1)

"""Commands beside the stages: publish a trained student, and check machine, packages and runs."""

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
    to: Annotated[str | None, typer.Option(help="USER/NAME on the hub; created if it does not exist.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    licence: Annotated[str | None, typer.Option("--license", help="Licence id of the hub, e.g. mit.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the files to --output instead.")] = False,
    output: Annotated[Path | None, PathOption("--output", "-o", help="With --dry-run: a new folder.")] = None,
) -> None:
    """Upload a student to the Hugging Face hub, with a model card that documents its lineage.

    Log in with `hf auth login` first. No code is uploaded; the card says how to load the model.
    """
    from cocomix.hub import push_student

    if dry_run and output is None:
        raise CocomixError("--dry-run needs a folder for what would be uploaded; give -o FOLDER")
    if not dry_run and to is None:
        raise CocomixError("there is no destination; give --to USER/NAME, or try it first with --dry-run -o FOLDER")
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
        Path | None, PathOption("--run", "-r", help="Also check this run: its settings, stages and files.")
    ] = None,
    folder: Annotated[Path, PathOption(help="Folder where runs are to be written.")] = Path("runs"),
) -> None:
    """Check the installation and the machine, and say how to fix what is wrong.

    Checks Python, packages, torch, GPU, disk, memory and the folder of runs; with --run also a run, by reading all its
    files. Exit code 1 if something must be fixed.
    """
    from cocomix.doctor import examine, print_findings

    if not print_findings(examine(run or folder, run), console):
        raise typer.Exit(1)

"""Commands beside the stages: publish a trained student, and check machine, packages and runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cocomix.cli.options import DEFAULT_RUN, PathOption, RunDir, open_run, quiet_libraries
from cocomix.utils.console import console
from cocomix.utils.errors import CocomixError

if TYPE_CHECKING:
    from cocomix.hub import Upload


def push(
    student: Annotated[str, typer.Option(help="Which student.")],
    run: RunDir = DEFAULT_RUN,
    seed: Annotated[int, typer.Option(help="Which of its seeds.")] = 0,
    to: Annotated[str | None, typer.Option(help="USER/NAME on the hub; created if it does not exist.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    licence: Annotated[str | None, typer.Option("--license", help="Licence id of the hub, e.g. mit.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Upload nothing; only list what would be.")] = False,
    output: Annotated[
        Path | None, PathOption("--output", "-o", help="With --dry-run: also write the files to this new folder.")
    ] = None,
) -> None:
    """Upload a student to the Hugging Face hub, with a model card that documents its lineage.

    Log in with `hf auth login` first. Lists the files, then uploads these and no others: what training wrote, and the
    card. No code is uploaded; the card says how to load the model, and shows no local paths.
    """
    from cocomix.hub import push_student

    if not dry_run and output is not None:
        raise CocomixError("--output is the folder of a dry run; add --dry-run, or leave it out")
    if not dry_run and to is None:
        raise CocomixError("there is no destination; give --to USER/NAME, or try it first with --dry-run")
    if not (run / "config.yaml").exists():
        raise CocomixError(f"{run} is no run (it has no config.yaml); give --run")
    where = push_student(
        open_run(run, None, None),
        student,
        seed,
        repo=to,
        private=private,
        licence=licence,
        dry_run=dry_run,
        only_stage=output,
        show=_show,
    )
    console.print(f"{'Would upload' if dry_run else 'Uploaded'}: {where}", highlight=False, soft_wrap=True)


def _show(files: "Sequence[Upload]") -> None:
    for file in files:
        console.print(f"{file.bytes:>14,} bytes  {file.name}", highlight=False, markup=False, soft_wrap=True)


def export(
    student: Annotated[str, typer.Option(help="Which student; a plain one.")],
    output: Annotated[Path, PathOption("--output", "-o", help="New folder to write.")],
    run: RunDir = DEFAULT_RUN,
    seed: Annotated[int, typer.Option(help="Which of its seeds.")] = 0,
) -> None:
    """Write a plain student as a GPT-2 or Llama folder that other programs read, such as GGUF converters.

    A student that predicts concepts has no such form: its upper blocks read what it predicts.
    """
    from cocomix.pipeline.trained import existing_run, export_student

    quiet_libraries()
    folder = export_student(existing_run(run), student, seed, output)
    console.print(f"{folder}: a Transformers model", highlight=False, markup=False, soft_wrap=True)


def export_dashboards(
    output: Annotated[Path, PathOption("--output", "-o", help="New folder to write.")],
    run: RunDir = DEFAULT_RUN,
    student: Annotated[str, typer.Option(help="Student of the run, one that predicts concepts.")] = "cocomix",
    seed: Annotated[int, typer.Option(help="Which of its seeds.")] = 0,
    concepts: Annotated[int, typer.Option(min=1, help="Number of concepts.")] = 64,
    by: Annotated[str, typer.Option(help="Take the first ones by this order; a wrong name lists all.")] = "predicted",
    creator: Annotated[str | None, typer.Option(help="Neuronpedia's id of the user the features belong to.")] = None,
) -> None:
    """Write dashboards of a student's concepts: one HTML file, and a folder that Neuronpedia imports.

    dashboards.html is the explorer's page of each concept; it opens from the disk and asks no server for anything.
    neuronpedia/MODEL/SOURCE has features, activation examples and names as gzipped lines of JSON.
    """
    from cocomix.explorer.dashboard_export import export

    quiet_libraries()
    for path in export(run, student, seed, output, concepts=concepts, by=by, creator=creator):
        console.print(str(path), highlight=False, markup=False, soft_wrap=True)


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

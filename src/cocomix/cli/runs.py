"""Commands that look after a run's folder."""

import sys
from typing import Annotated

import typer

from cocomix.cli.options import DEFAULT_RUN, RunDir, quiet_libraries
from cocomix.utils.console import console, in_bytes
from cocomix.utils.errors import CocomixError


def clean(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Stages, or folders as listed, e.g. students/ntp/seed0.", show_default=False),
    ] = None,
    run: RunDir = DEFAULT_RUN,
    older_than: Annotated[str | None, typer.Option(help="Only what last changed before this: 12h, 7d, 2w.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All but what the next command would go on with.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """List what a run keeps of other settings and of stopped commands, and delete what you choose.

    Trying other settings deletes nothing: finished stages are kept in RUN/.kept and unfinished ones, with their
    checkpoints, in RUN/.partial, and both come back with their settings. Without names, --older-than or --all this only
    lists them, with the disk they take.
    """
    from cocomix.pipeline.attempts import delete
    from cocomix.pipeline.clean import candidates, chosen, print_candidates
    from cocomix.pipeline.trained import existing_run

    quiet_libraries()
    opened = existing_run(run, announce=False)
    found = candidates(opened)
    doomed = chosen(found, names or [], older_than, everything)
    print_candidates(found, run, console)
    if not (names or older_than is not None or everything):
        if found:
            console.print("Delete some with their names, --older-than 7d, or --all.", highlight=False)
        return
    size = in_bytes(sum(attempt.bytes for attempt in doomed))
    if not doomed:
        console.print("Nothing of that is there to delete.", highlight=False)
        return
    if not yes:
        if not (console.is_terminal and sys.stdin.isatty()):
            raise CocomixError(f"{len(doomed)} attempts ({size}) would be deleted for good; add --yes to do it")
        if not typer.confirm(f"Delete {len(doomed)} attempts ({size}) for good?"):
            raise CocomixError("nothing was deleted")
    deleted = delete(doomed)
    size = in_bytes(sum(attempt.bytes for attempt in deleted))
    console.print(f"Deleted {len(deleted)} attempts, {size}.", highlight=False)
    if len(deleted) < len(doomed):
        console.print(f"Left {len(doomed) - len(deleted)} that a command works on.", highlight=False)

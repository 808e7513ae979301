"""Commands that messages advise, as lines that can be pasted into a shell.

Every message that names a command gets it from here, with the run it is for and the options it needs; a test pastes
them.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

SIGNS = ("config.yaml", ".partial")
"""What a run's folder holds, one of them at least."""
DEEPEST = 6
"""Levels of folders below a run that are looked above for it."""


def command_line(command: str, run: Path | str, options: Sequence[str] = ()) -> str:
    """`command`, such as "cocomix train teacher", for a run, with further options and overrides, in backquotes."""
    words = " ".join([command, *map(shlex.quote, ["--run", str(run), *options])])
    return f"`{words}`"


def command_on(command: str, folder: Path | str) -> str:
    """`command`, such as "cocomix explore" or "cocomix pack show", on the folder it takes by itself, in backquotes."""
    return f"`{command} {shlex.quote(str(folder))}`"


def explore_line(run: Path | str) -> str:
    """The command that opens a run in the explorer, in backquotes."""
    return command_on("cocomix explore", run)


def for_folder(command: str, path: Path) -> str:
    """`command_line` for the run that a file or folder belongs to; the command alone if it belongs to none."""
    run = run_of(path)
    return f"`{command}`" if run is None else command_line(command, run)


def run_of(path: Path) -> Path | None:
    """The run that `path` is in, as far as its name tells."""
    for folder in (path, *path.parents)[:DEEPEST]:
        if any((folder / sign).exists() for sign in SIGNS):
            return folder
    return None


def delete(path: Path | str) -> str:
    """`path` in a sentence that says to delete it, quoted as a shell needs it."""
    return f"delete {shlex.quote(str(path))}"

"""Read the error message of a command and do what it says, as a user with no other knowledge would."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks.faults.processes import Command

REPAIRED_OUTSIDE = ("free some", "permissions", "config.yaml")
"""Words of error messages whose fix lies outside the run; the fault itself brings the repair."""
DELETE = re.compile(r"delete (/?[\w./+-]*[/.][\w./+-]*\w)")
DELETE_THE = re.compile(r"delete (?:the|its) folder")
RUN = re.compile(r"run `cocomix ([^`]+)`")
NAMED = re.compile(r"((?:/|run/)[\w./+-]*[\w+-])")


def error_message(command: Command) -> str | None:
    """Return the one-sentence error of a command that ended with exit code 2; None if it ended in any other way."""
    lines = [line for line in command.output.splitlines() if line.startswith("cocomix: ")]
    if command.popen.returncode != 2 or "Traceback" in command.output or not lines:
        return None
    return lines[-1].removeprefix("cocomix: ")


def apply_fix(message: str, home: Path, repair: Callable[[], None] | None) -> list[list[str]] | None:
    """Do what `message` says.

    Args:
        message: an error message of a cocomix command.
        home: working directory; nothing outside its run is deleted.
        repair: fixes what lies outside the run; called only if the message asks for that.

    Returns:
        the commands the message says to run, or None if it names nothing that can be done.
    """
    done = False
    if repair is not None and any(words in message for words in REPAIRED_OUTSIDE):
        repair()
        done = True
    for path in _to_delete(message, home):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        done = True
    commands = [shlex.split(command) for command in RUN.findall(message)]
    return commands if done or commands else None


def _to_delete(message: str, home: Path) -> list[Path]:
    """Return what the message says to delete: nothing outside `home`, and not the run itself."""
    named = [home / name for name in DELETE.findall(message)]
    if DELETE_THE.search(message):
        named += [_folder(home / name) for name in NAMED.findall(message)[:1]]
    run = (home / "run").resolve()
    return [path for path in named if path.exists() and run in path.resolve().parents]


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent

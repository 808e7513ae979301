"""Doing what a refusal says, as a person would who has read nothing else."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks.faults.processes import Command

CURED = ("free some", "permissions", "config.yaml")
"""Words of the sentences whose mend lies outside the run; a fault brings the cure with it."""
DELETE = re.compile(r"delete (/?[\w./+-]*[/.][\w./+-]*\w)")
DELETE_THE = re.compile(r"delete (?:the|its) folder")
RUN = re.compile(r"run `cocomix ([^`]+)`")
NAMED = re.compile(r"((?:/|run/)[\w./+-]*[\w+-])")


def refusal(command: Command) -> str | None:
    """The one sentence an ended command refuses with; None if it ended in any other way."""
    lines = [line for line in command.said.splitlines() if line.startswith("cocomix: ")]
    if command.popen.returncode != 2 or "Traceback" in command.said or not lines:
        return None
    return lines[-1].removeprefix("cocomix: ")


def follow(sentence: str, home: Path, cure: Callable[[], None] | None) -> list[list[str]] | None:
    """Do what `sentence` says; returns the commands it says to run, or None if nothing can be done by it."""
    done = False
    if cure is not None and any(words in sentence for words in CURED):
        cure()
        done = True
    for path in _to_delete(sentence, home):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        done = True
    commands = [shlex.split(found) for found in RUN.findall(sentence)]
    return commands if done or commands else None


def _to_delete(sentence: str, home: Path) -> list[Path]:
    """What the sentence says to delete; nothing outside `home` and not the run itself."""
    named = [home / name for name in DELETE.findall(sentence)]
    if DELETE_THE.search(sentence):
        named += [_folder(home / name) for name in NAMED.findall(sentence)[:1]]
    run = (home / "run").resolve()
    return [path for path in named if path.exists() and run in path.resolve().parents]


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent

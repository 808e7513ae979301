"""What `cocomix clean` lists and deletes: attempts beside a run's finished stages, and the disk they take."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cocomix.pipeline.attempts import KEPT, PARTIAL, Attempt, attempts, in_use
from cocomix.pipeline.run import Run, settings_between
from cocomix.utils.console import duration, in_bytes
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import folder_bytes
from cocomix.utils.settings import listed

AGE = re.compile(r"(\d+(?:\.\d+)?) *([hdw]?)", re.ASCII)
DAYS = {"h": 1 / 24, "d": 1.0, "": 1.0, "w": 7.0}


class Candidate(NamedTuple):
    """An attempt that could be deleted."""

    attempt: Attempt
    reason: str
    """why it is there, for the user"""
    resumes: bool
    """whether the next command would go on with it"""


def candidates(run: Run) -> list[Candidate]:
    """All attempts beside the finished stages of a run, with the reason each is there."""
    found = []
    for attempt in attempts(run.folder):
        stage = run.stages.get(attempt.stage)
        try:
            same = stage is not None and attempt.fingerprint == stage.fingerprint
        except CocomixError:
            same = False
        resumes = same and not attempt.finished
        if not attempt.finished and in_use(attempt.folder):
            reason = "a command works on it"
        elif stage is None:
            reason = "the present settings have no such stage"
        elif resumes:
            reason = "present settings: the next command goes on with it"
        elif attempt.settings is None:
            reason = "left by a stopped command or an earlier version"
        elif same:
            reason = "present settings, but inputs that were made again since"
        else:
            reason = listed(settings_between(attempt.settings, stage), 3)
        found.append(Candidate(attempt, reason, resumes))
    return found


def chosen(found: Sequence[Candidate], names: Sequence[str], older_than: str | None, everything: bool) -> list[Attempt]:
    """Those that the user's options mean; what the next command would go on with only if it is named.

    Args:
        names: stages, or folders below `.kept` and `.partial`.
        older_than: e.g. `7d`, `12h`, `2w`; a number alone is days.

    Raises:
        CocomixError: a name fits nothing, or the age is none.
    """
    fitting = [one for one in found if not names or {one.attempt.stage, one.attempt.folder.name} & set(names)]
    known = {name for one in found for name in (one.attempt.stage, one.attempt.folder.name)}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise CocomixError(
            f"there is nothing called {unknown[0]!r} to delete; it lists {listed(sorted(known)) or 'nothing'}"
        )
    if not names:
        fitting = [one for one in fitting if not one.resumes and (everything or older_than is not None)]
    days = 0.0 if older_than is None else _days(older_than)
    return [one.attempt for one in fitting if one.attempt.age_days >= days]


def _days(text: str) -> float:
    match = AGE.fullmatch(text.strip())
    if match is None:
        raise CocomixError(f"{text!r} is no age; give one such as 12h, 7d or 2w")
    return float(match[1]) * DAYS[match[2]]


def disk_use(folder: Path) -> str:
    """What a run takes on the disk, in words."""
    kept, partial = folder_bytes(folder / KEPT), folder_bytes(folder / PARTIAL)
    rest = folder_bytes(folder) - kept - partial
    return f"finished {in_bytes(rest)}, kept from other settings {in_bytes(kept)}, unfinished {in_bytes(partial)}"


def print_candidates(found: Sequence[Candidate], folder: Path, console: Console) -> None:
    """A table of them, and the disk use of the whole run."""
    if found:
        table = Table(
            "stage", "state", "why it is there (its settings -> the present ones)", "work", "size", "age", "folder"
        )
        for column in table.columns:
            column.overflow = "fold"
        for attempt, reason, _ in found:
            table.add_row(
                *map(
                    Text,
                    (
                        attempt.stage,
                        "finished" if attempt.finished else "unfinished",
                        reason,
                        "" if attempt.seconds is None else duration(attempt.seconds),
                        in_bytes(attempt.bytes),
                        duration(attempt.age_days * 86400),
                        str(attempt.folder.relative_to(folder)),
                    ),
                )
            )
        console.print(table)
    console.print(f"{folder}: {disk_use(folder)}", highlight=False, markup=False, soft_wrap=True)

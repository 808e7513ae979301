"""Names from a program of the user's: it reads a concept's passages as JSON and prints a name.

It is started for each concept, never through a shell, and killed with whatever it started when its time is up. What
goes wrong leaves the automatic name; after a few failures in a row it is not asked again.
"""

import contextlib
import json
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from cocomix.analysis.naming import FEWEST
from cocomix.analysis.record import ConceptName
from cocomix.utils.errors import CocomixError

GIVE_UP_AFTER = 3
"""Failures in a row."""
LONGEST = 120
"""Characters of a name."""


def name_with(
    command: str,
    concepts: Sequence[ConceptName],
    *,
    seconds: float,
    progress: Callable[..., Any] | None = None,
) -> tuple[list[ConceptName], list[str]]:
    """`concepts` with names from `command`, where it gave one, and what went wrong, a sentence each.

    Only concepts with enough occurrences are asked for.

    Args:
        command: program and arguments, split as a shell would, without one.
        seconds: time for each concept.

    Raises:
        CocomixError: the command is empty, or cannot be split.
    """
    try:
        arguments = shlex.split(command)
    except ValueError as error:
        raise CocomixError(f"--llm {command!r} cannot be split into words ({error}); mend its quotes") from error
    if not arguments:
        raise CocomixError("--llm names no program; give one that reads JSON and prints a name")
    named, problems, in_a_row = list(concepts), [], 0
    asked = [one.concept for one in concepts if one.passages and one.occurrences >= 2 * FEWEST]
    at = {one.concept: place for place, one in enumerate(concepts)}
    for number, concept in enumerate(asked):
        one = named[at[concept]]
        try:
            update = {"name": _ask(arguments, question(one), seconds), "source": "llm", "why": "", "coverage": None}
            named[at[concept]] = one.model_copy(update=update)
            in_a_row = 0
        except _Failed as failure:
            problems.append(f"concept {concept}: {arguments[0]} {failure}")
            in_a_row += 1
            if in_a_row == GIVE_UP_AFTER:
                problems.append(f"{len(asked) - number - 1} concepts were not asked for after {in_a_row} failures")
                break
        if progress is not None:
            progress(number + 1, len(asked), {})
    return named, problems


def question(one: ConceptName) -> dict[str, Any]:
    """What the program reads."""
    return one.model_dump(include={"concept", "stability", "share", "tokens", "next_tokens", "passages"}) | {
        "automatic_name": one.name
    }


class _Failed(Exception):
    pass


def _ask(arguments: list[str], asked: dict[str, Any], seconds: float) -> str:
    """The first line that is not empty of what the program prints."""
    try:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise _Failed(f"cannot be started ({error.strerror})") from error
    try:
        said, complaint = process.communicate(json.dumps(asked), timeout=seconds)
    except subprocess.TimeoutExpired:
        raise _Failed(f"said nothing for {seconds:g} seconds") from None
    finally:
        with contextlib.suppress(ProcessLookupError):  # what it started may outlive it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        last = (complaint.strip().splitlines() or ["no message"])[-1]
        raise _Failed(f"ended with code {process.returncode} ({last[:LONGEST]})")
    name = next((line.strip() for line in said.splitlines() if line.strip()), "")
    if not name:
        raise _Failed("printed no name")
    return name[:LONGEST]

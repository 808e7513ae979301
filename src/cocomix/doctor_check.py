"""What a check is, the list of all of them, and how they are run.

A check looks at one thing and yields findings: fine, worth knowing, or to be mended, with the mend in one sentence.
It imports what it looks at inside of `look`, since that may be what is broken; a check that fails is a finding, too.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, NamedTuple

from cocomix.utils.errors import CocomixError
from cocomix.utils.files import in_words


class State(StrEnum):
    """How a finding is to be taken; its value is the mark it is printed with."""

    FINE = "✓"
    NOTE = "·"
    FIX = "✗"


class Finding(NamedTuple):
    """One line of the table."""

    state: State
    what: str
    """what was looked at"""
    found: str
    mend: str = ""
    """what to do, one sentence; empty where there is nothing to do"""

    @classmethod
    def of(cls, what: str, error: Exception) -> "Finding":
        """A failure; of a `CocomixError` cause and mend stand on either side of its last semicolon."""
        if isinstance(error, OSError) and error.filename:
            error = CocomixError(in_words(error))
        if isinstance(error, CocomixError):
            cause, _, mend = str(error).rpartition("; ")
            return cls(State.FIX, what, cause or mend, mend if cause else "")
        return cls(State.FIX, what, f"{type(error).__name__}: {error}", "install cocomix again, with constraints.txt")


class Where(NamedTuple):
    """What is examined."""

    folder: Path
    """where runs are to be written"""
    run: Path | None = None
    """a run whose health is asked for"""


class Check(ABC):
    """Looks at one thing."""

    title: ClassVar[str]

    @abstractmethod
    def look(self, where: Where) -> Iterator[Finding]:
        """What was found; anything raised becomes a finding to be mended."""


CHECKS: list[type[Check]] = []
"""All checks, in the order of the table; `cocomix.doctor_checks` fills it."""


def examine(where: Where) -> Iterator[Finding]:
    """The findings of all checks, one after the other."""
    import cocomix.doctor_checks  # noqa: F401

    for kind in CHECKS:
        try:
            yield from kind().look(where)
        except Exception as error:
            yield Finding.of(kind.title, error)

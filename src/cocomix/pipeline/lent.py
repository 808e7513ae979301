"""What one run uses of another: a stage elsewhere whose output stands in for training one's own."""

from collections.abc import Mapping
from typing import NamedTuple

from cocomix.pipeline.stage import Stage


class Lent(NamedTuple):
    """A stage of another run."""

    name: str
    """how the configuration calls it, e.g. `$sotu/teacher/model`; wherever the runs lie, it is the same"""
    stage: Stage
    """what must be finished first, and makes the borrower outdated when it is made again"""


Lending = Mapping[str, Lent]
"""By the path the borrower's configuration has."""


def borrowed(lending: Lending, source: str | None) -> list[Stage]:
    """The stage behind `source`, as further inputs of a stage; none where it is nobody else's."""
    lent = lending.get(source or "")
    return [] if lent is None else [lent.stage]


def known_as(lending: Lending, source: str | None) -> str | None:
    """`source` by the name that does not depend on where runs lie."""
    lent = lending.get(source or "")
    return source if lent is None else lent.name

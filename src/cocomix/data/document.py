"""The unit everything is held out by."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        id: unique within its source, e.g. a file's relative path.
        text: the whole text.
        meta: whatever the source knows of it, JSON-able.
    """

    id: str
    text: str
    meta: dict[str, Any] = field(default_factory=dict)


class Skipped(NamedTuple):
    """Records that could not be read."""

    place: str
    """where, e.g. `part-3.jsonl:17`"""
    reason: str
    """why, in a few words"""
    count: int = 1
    """how many records; more than one where a whole part of a file is damaged"""

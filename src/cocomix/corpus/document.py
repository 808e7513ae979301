"""The unit everything is held out by."""

from dataclasses import dataclass, field
from typing import Any


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

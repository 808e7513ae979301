"""What every text source is: an iterable of documents that says where it is and what it left out.

A source reads records in a fixed order, one document in memory at a time, from the start or from a place noted before.
A bad record (undecodable file, malformed line) is yielded as `Skipped`, with its place and the reason; what is no
record (a file of another kind, a blank text) is counted in a `Tally`; a source that yields no document is an error. A
source's options are the arguments of its constructor.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from cocomix.utils.errors import CocomixError

Place = dict[str, Any]
"""Where a source resumes reading; JSON-able, with keys of the source's own choice."""
SHOWN_FIELDS = 8
"""Names of a record's fields in a message."""
MOST_REASONS = 50
"""Reasons that are counted one by one; others are counted together."""


@dataclass(frozen=True)
class Document:
    """One text, the unit that splits are made of.

    Attributes:
        id: unique within its source, e.g. a file's relative path.
        text: the whole text.
        meta: further facts from the source, JSON-able.
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


class Tally:
    """How often something happened, by reason, with the first example of each; JSON-able as `entries`."""

    def __init__(self, entries: dict[str, dict[str, Any]] | None = None, prefix: str = "") -> None:
        self.entries = {} if entries is None else entries
        self._prefix = prefix

    def add(self, reason: str, example: str, count: int = 1) -> None:
        """Count `reason`, which happened at `example`."""
        reason, example = f"{self._prefix}{reason}", f"{self._prefix}{example}"
        if reason not in self.entries and len(self.entries) >= MOST_REASONS:
            reason = "other reasons"
        self.entries.setdefault(reason, {"count": 0, "example": example})["count"] += count

    def below(self, name: str) -> "Tally":
        """The same tally, for a part of what is counted."""
        return Tally(self.entries, f"{self._prefix}{name}: ")

    @property
    def count(self) -> int:
        """All of it."""
        return sum(entry["count"] for entry in self.entries.values())

    def first(self) -> str:
        """The first entry in words."""
        reason, entry = next(iter(self.entries.items()))
        return f"{entry['example']}: {reason}"


class TextSource(ABC):
    """Iterable of documents, always in the same order, one in memory at a time.

    Args:
        title: what messages call it; default: its name.

    Attributes:
        left_out: what was passed over that is no record, such as files of another kind or blank texts.
        part: of a source made of several, the name of the one that the last record came from.
    """

    name: ClassVar[str]
    """What settings call it."""
    part: str = ""

    def __init__(self, title: str | Path | None = None) -> None:
        self._title = self.name if title is None else str(title)
        self._place: Place = {}
        self._skipped = Tally()
        self.left_out = Tally()

    def records(self, place: Place | None = None) -> Iterator[Document | Skipped]:
        """Documents with text in them, and what could not be read, in the source's order.

        Args:
            place: what `place` returned earlier, to resume from there.

        Raises:
            CocomixError: the source cannot be read at all, or changed since `place` was noted.
        """
        self._place = place or {}
        for record in self.read(self._place):
            if isinstance(record, Document) and not (_encodable(record.text) and _encodable(record.id)):
                record = Skipped(record.id, "half a surrogate pair, which is no character, in its text or name")
            if isinstance(record, Skipped):
                self._skipped.add(record.reason, record.place, record.count)
                yield record
            elif record.text.strip():
                yield record
            else:
                self.left_out.add("there is no text in it", record.id)

    @abstractmethod
    def read(self, place: Place) -> Iterator[Document | Skipped]:
        """All records from `place` on (empty: the start); `self._place` is set before each is yielded."""

    def place(self) -> Place:
        """Where to resume after the last record that was yielded."""
        return self._place

    def stamp(self) -> str:
        """A checksum that changes with what the source would read, e.g. of its files' sizes and times of change.

        Where it differs from that of a stopped command, what that command read is compared text by text. Empty: this
        source cannot tell.
        """
        return ""

    def shares(self) -> dict[str, float]:
        """Of a source made of several, the share of characters each is to have; empty: it is one."""
        return {}

    def nothing(self) -> CocomixError:
        """The error for a source without a single document."""
        parts = []
        for tally, what, done in ((self._skipped, "record", "skipped"), (self.left_out, "", "left out")):
            if tally.count:
                noun = what and (" record" if tally.count == 1 else " records")
                parts.append(f"{tally.count}{noun} {done}, the first, {tally.first()}")
        why = f" ({'; '.join(parts)})" if parts else ""
        return CocomixError(f"{self} holds no text{why}; check corpus.options")

    def __iter__(self) -> Iterator[Document]:
        """The documents; unreadable records are counted in one warning at the end."""
        documents = 0
        for record in self.records():
            if isinstance(record, Document):
                documents += 1
                yield record
        if self._skipped.count:
            warnings.warn(
                f"{self._skipped.count} unreadable records of {self} were skipped, the first, {self._skipped.first()}",
                stacklevel=2,
            )
        if not documents:
            raise self.nothing()

    def __str__(self) -> str:
        return self._title


def check_text(**options: Any) -> None:
    """Refuse options that must be text and are not.

    Raises:
        CocomixError: the first of them.
    """
    for name, value in options.items():
        if not isinstance(value, str | Path):
            raise CocomixError(f"corpus.options.{name} must be text, not {value!r}; quote it")


def _encodable(text: str) -> bool:
    """Whether it can be written as UTF-8; JSON may contain half a surrogate pair, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


MISSING = object()


def value_at(row: Mapping[str, Any], field: str) -> Any:
    """The value of `field`, or of a field inside another, named as `meta.body`; `MISSING` if there is none."""
    if field in row:
        return row[field]
    value: Any = row
    for name in field.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return MISSING
        value = value[name]
    return value


def listed_fields(row: Mapping[str, Any]) -> str:
    """The first few names in a row, those inside another as `meta.body`."""
    names = []
    for name, value in list(row.items())[:SHOWN_FIELDS]:
        inner = list(value)[:SHOWN_FIELDS] if isinstance(value, Mapping) else []
        names += [repr(f"{name}.{key}") for key in inner] or [repr(name)]
    return ", ".join(names[:SHOWN_FIELDS]) + (", ..." if max(len(names), len(row)) > SHOWN_FIELDS else "")


def text_in(row: Any, field: str, place: str) -> Document | Skipped:
    """The document in a row of JSON or of a dataset, or why there is none."""
    if not isinstance(row, Mapping):
        return Skipped(place, f"no {field!r} in it")
    text = value_at(row, field)
    if text is MISSING:
        return Skipped(place, f"no {field!r} in it" + (f", but {listed_fields(row)}" if row else ""))
    return Document(place, text) if isinstance(text, str) else Skipped(place, f"{field!r} is no text")

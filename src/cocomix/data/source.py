"""What a text source is: records in a fixed order, from the start or from a place noted down before."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from cocomix.data.document import Document, Skipped
from cocomix.utils.errors import CocomixError

Place = dict[str, Any]
"""Where a source goes on reading; JSON-able, its keys are the source's own affair."""


class TextSource(ABC):
    """Iterable of documents, always in the same order, one in memory at a time.

    Args:
        options: the source's options, by the names in `known`.
    """

    known: ClassVar[dict[str, Any]] = {}
    """Option names and defaults; `...` marks a required one."""

    def __init__(self, options: dict[str, Any] | None = None) -> None:
        given = options or {}
        unknown = sorted(set(given) - set(self.known))
        missing = [name for name, default in self.known.items() if default is ... and name not in given]
        if unknown or missing:
            what = f"does not know {unknown[0]!r}" if unknown else f"needs {missing[0]!r}"
            raise CocomixError(
                f"the text source {type(self).__name__} {what} in corpus.options;"
                f" it takes: {', '.join(self.known) or 'none'}"
            )
        self.options = {**self.known, **given}
        for name in ("path", "field", "pattern", "skip"):
            if name in self.options and not isinstance(self.options[name], str | Path):
                raise CocomixError(f"corpus.options.{name} must be text, not {self.options[name]!r}; quote it")
        self._place: Place = {}

    def records(self, place: Place | None = None) -> Iterator[Document | Skipped]:
        """Documents with text in them, and what could not be read, in the source's order.

        Args:
            place: what `place` returned before, to go on from there.

        Raises:
            CocomixError: the source cannot be read at all, or changed since `place` was noted down.
        """
        self._place = place or {}
        for record in self.read(self._place):
            if isinstance(record, Document) and not (_encodable(record.text) and _encodable(record.id)):
                yield Skipped(record.id, "half a surrogate pair, which is no character, in its text or name")
            elif isinstance(record, Skipped) or record.text.strip():
                yield record

    @abstractmethod
    def read(self, place: Place) -> Iterator[Document | Skipped]:
        """All records from `place` on (empty: the start); `self._place` is set before each is yielded."""

    def place(self) -> Place:
        """Where to go on after the last record that was yielded."""
        return self._place

    def nothing(self) -> CocomixError:
        """What to say where not a single document was found."""
        return CocomixError(f"{self} holds no text; check corpus.options")

    def __iter__(self) -> Iterator[Document]:
        """The documents; those that could not be read are counted in one warning at the end."""
        found = skipped = 0
        for record in self.records():
            if isinstance(record, Skipped):
                skipped += record.count
            else:
                found += 1
                yield record
        if skipped:
            warnings.warn(f"{skipped} unreadable records of {self} were skipped", stacklevel=2)
        if not found:
            raise self.nothing()

    def __str__(self) -> str:
        return str(self.options.get("path", type(self).__name__))


def _encodable(text: str) -> bool:
    """Whether it can be written as UTF-8; JSON may carry halves of a surrogate pair, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

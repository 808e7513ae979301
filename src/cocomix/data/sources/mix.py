"""Several sources in one, each with its share of the characters."""

from collections.abc import Iterator
from dataclasses import dataclass

from cocomix.data.sources.base import Document, Place, Skipped, Tally, TextSource
from cocomix.utils.errors import CocomixError

FIRST, ALL = "first", "all"
UNTIL = (FIRST, ALL)
"""When a mixture ends: with the first source that does, or with the last."""


@dataclass
class MixPart:
    """One source of a mixture.

    Attributes:
        name: what its documents' ids and the record call it.
        weight: its share of the characters, relative to the other parts' weights.
        source: where its documents come from.
    """

    name: str
    weight: float
    source: TextSource


class MixSource(TextSource):
    """Documents of several sources in turn: always of the one that is furthest behind its share of the characters.

    Nothing is random, so the order depends on the texts and the weights alone. No text is read twice: a document in
    training and again in a held-out split would make that split worthless.

    Args:
        parts: the sources.
        until: `first` ends with the first part that has no more text, so that the shares hold to within one document;
            `all` goes on with the others, as long as any has text.
    """

    name = "mix"

    def __init__(self, parts: list[MixPart], until: str = FIRST) -> None:
        super().__init__("mix of " + ", ".join(part.name for part in parts))
        if until not in UNTIL:
            raise CocomixError(f"a mixture ends with {' or '.join(UNTIL)}, not {until!r}")
        self._parts, self._until = parts, until
        self._chars = [0] * len(parts)
        self._places: list[Place] = [{} for _ in parts]
        self._ended = [False] * len(parts)

    def read(self, place: Place) -> Iterator[Document | Skipped]:
        self._chars = list(place.get("chars", [0] * len(self._parts)))
        self._places = list(place.get("places", [{} for _ in self._parts]))
        self._ended = list(place.get("ended", [False] * len(self._parts)))
        streams = []
        for part, inside in zip(self._parts, self._places, strict=True):
            part.source.left_out = Tally(self.left_out.entries).below(part.name)
            streams.append(part.source.records(inside or None))
        while not all(self._ended):
            number = min(
                (number for number, ended in enumerate(self._ended) if not ended),
                key=lambda number: (self._chars[number] / self._parts[number].weight, number),
            )
            part = self._parts[number]
            record = next(streams[number], None)
            if record is None:
                self._ended[number] = True
                if self._until == FIRST:
                    return
                continue
            self._places[number] = {}  # asked of the source when it is needed
            self.part = part.name
            if isinstance(record, Skipped):
                yield record._replace(place=f"{part.name}/{record.place}")
            else:
                self._chars[number] += len(record.text)
                yield Document(f"{part.name}/{record.id}", record.text, record.meta)

    def place(self) -> Place:
        places = [inside or part.source.place() for part, inside in zip(self._parts, self._places, strict=True)]
        return {"chars": list(self._chars), "places": places, "ended": list(self._ended)}

    def stamp(self) -> str:
        stamps = [part.source.stamp() for part in self._parts]
        return " ".join(f"{part.name}={stamp}" for part, stamp in zip(self._parts, stamps, strict=True))

    def shares(self) -> dict[str, float]:
        whole = sum(part.weight for part in self._parts)
        return {part.name: part.weight / whole for part in self._parts}

    def ended(self) -> list[str]:
        """The parts that were read to their end."""
        return [part.name for part, ended in zip(self._parts, self._ended, strict=True) if ended]

"""Hugging Face datasets."""

from collections.abc import Iterator
from typing import Any, ClassVar

from cocomix.data.document import Document, Skipped
from cocomix.data.source import Place, TextSource
from cocomix.utils.errors import CocomixError, reason
from cocomix.utils.files import check_source


class HubSource(TextSource):
    """A Hugging Face dataset, from the hub or a local folder in the hub's layout (needs `cocomix[hub]`).

    `streaming: true` reads it as it comes; false downloads it first and reads it memory-mapped. `revision` pins a
    commit, or names the hub's Parquet copy of a dataset that is a script (`refs/convert/parquet`).
    """

    known: ClassVar[dict[str, Any]] = {
        "path": ...,
        "name": None,
        "split": "train",
        "field": "text",
        "streaming": True,
        "revision": None,
    }

    def read(self, place: Place) -> Iterator[Document | Skipped]:
        try:
            import datasets  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError:
            raise CocomixError("reading Hugging Face datasets needs the extra: pip install 'cocomix[hub]'") from None
        options, number = self.options, place.get("rows", 0)
        check_source(options["path"], "the dataset")
        try:
            rows = datasets.load_dataset(
                options["path"],
                options["name"],
                split=options["split"],
                streaming=options["streaming"],
                revision=options["revision"],
            )
            self._dataset: Any = rows
            if options["streaming"] and place:
                rows.load_state_dict(place["state"])
            elif number:
                rows = rows.select(range(number, len(rows))) if number < len(rows) else ()
            for row in rows:
                number += 1
                self._place = {"rows": number}
                yield self._record(row, f"{options['path']}:{number - 1}")
        except Exception as error:  # datasets raises many unrelated types for what is one cause to a user
            raise CocomixError(
                f"the dataset {options['path']} cannot be read after row {number} ({reason(error)});"
                " check corpus.options"
            ) from error

    def place(self) -> Place:
        if self.options["streaming"] and self._place and "state" not in self._place:
            return {**self._place, "state": self._dataset.state_dict()}
        return self._place

    def _record(self, row: Any, place: str) -> Document | Skipped:
        text = row.get(self.options["field"]) if isinstance(row, dict) else None
        if isinstance(text, str):
            return Document(place, text)
        there = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        return Skipped(place, f"no text called {self.options['field']!r}; there is: {there}")

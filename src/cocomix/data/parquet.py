"""Parquet files, row group by row group."""

from collections.abc import Iterator
from typing import Any, ClassVar

from cocomix.data.document import Document, Skipped
from cocomix.data.places import files_at, remaining
from cocomix.data.source import Place, TextSource
from cocomix.utils.errors import CocomixError, reason

ROWS = 256
"""rows decoded at a time"""


class ParquetSource(TextSource):
    """One column of Parquet files; `field` names it. A file, a folder of them, or a pattern (`texts/*.parquet`).

    In memory is one row group of that column at most. A row group that cannot be decoded counts as that many bad
    records; a file without a readable footer as one. Needs pyarrow (`cocomix[hub]`).
    """

    known: ClassVar[dict[str, Any]] = {"path": ..., "field": "text"}

    def read(self, place: Place) -> Iterator[Document | Skipped]:
        try:
            import pyarrow
            import pyarrow.parquet
        except ModuleNotFoundError:
            raise CocomixError("reading Parquet needs the extra: pip install 'cocomix[hub]'") from None
        files = files_at(self.options["path"], (".parquet",), "a .parquet file")
        for number, name, path, inside in remaining(files, place):
            here = {"file": number, "name": name}
            try:
                opened = pyarrow.parquet.ParquetFile(path)
            except (OSError, pyarrow.ArrowException) as error:
                self._place = {**here, "done": True}
                yield Skipped(name, f"no Parquet file ({reason(error)})")
                continue
            with opened:
                self._check_column(opened.schema_arrow, name)
                yield from self._rows(opened, here, inside)

    def _check_column(self, schema: Any, name: str) -> None:
        import pyarrow.types as types

        field = self.options["field"]
        there = ", ".join(f"{column.name} ({column.type})" for column in schema)
        if field not in schema.names:
            raise CocomixError(f"{name} has no column {field!r}; set corpus.options.field to one of: {there}")
        kind = schema.field(field).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
            raise CocomixError(f"the column {field!r} of {name} holds no text; its columns are: {there}")

    def _rows(self, opened: Any, here: Place, inside: Place) -> Iterator[Document | Skipped]:
        import pyarrow

        first = inside.get("group", 0)
        before = sum(opened.metadata.row_group(group).num_rows for group in range(min(first, opened.num_row_groups)))
        for group in range(first, opened.num_row_groups):
            n_rows, row = opened.metadata.row_group(group).num_rows, 0
            done = inside.get("row", 0) if group == first else 0
            try:
                for batch in opened.iter_batches(ROWS, row_groups=[group], columns=[self.options["field"]]):
                    for value in batch.column(0):
                        row += 1
                        if row > done:
                            self._place = {**here, "group": group, "row": row}
                            yield self._record(value, f"{here['name']}:{before + row}")
            except (OSError, pyarrow.ArrowException) as error:
                self._place = {**here, "group": group + 1, "row": 0}
                yield Skipped(f"{here['name']}:{before + row + 1}", f"damaged ({reason(error)})", n_rows - row)
            before += n_rows

    def _record(self, value: Any, place: str) -> Document | Skipped:
        try:
            text = value.as_py()
        except UnicodeDecodeError as error:
            return Skipped(place, reason(error))
        return Skipped(place, f"{self.options['field']!r} is empty") if text is None else Document(place, text)

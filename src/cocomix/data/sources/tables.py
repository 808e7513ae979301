"""Tables: Parquet files, and datasets of Hugging Face."""

from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Any

from cocomix.data.sources.base import Document, Place, Skipped, Tally, TextSource, check_text, value_at
from cocomix.data.sources.files import below, files_at, remaining, stamp_of
from cocomix.utils.errors import CocomixError, reason
from cocomix.utils.files import check_source

ROWS = 256
"""Rows of a Parquet file decoded at a time."""


class ParquetSource(TextSource):
    """One column of Parquet files; `field` names it, `meta.body` a field inside a column.

    A file, a folder of them, or a pattern (`texts/*.parquet`).

    At most one row group of that column is in memory. A row group that cannot be decoded counts as that many bad
    records; a file without a readable footer as one. Needs pyarrow (`cocomix[hub]`).
    """

    name = "parquet"

    def __init__(self, path: str | Path, field: str = "text") -> None:
        super().__init__(path)
        check_text(path=path, field=field)
        self.path, self.field = path, field

    def read(self, place: Place) -> Iterator[Document | Skipped]:
        try:
            import pyarrow
            import pyarrow.parquet
        except ModuleNotFoundError:
            raise CocomixError("reading Parquet needs the extra: pip install 'cocomix[hub]'") from None
        for number, name, path, inside in remaining(self._files(Tally() if place else self.left_out), place):
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

    def _files(self, left_out: Tally) -> list[tuple[str, Path]]:
        return files_at(self.path, (".parquet",), "a .parquet file", left_out)

    def stamp(self) -> str:
        return stamp_of(path for _, path in self._files(Tally()))

    def _check_column(self, schema: Any, name: str) -> None:
        import pyarrow.types as types

        field = self.field
        columns = ", ".join(f"{column.name} ({column.type})" for column in schema)
        column = _column(schema, field)
        if column is None:
            raise CocomixError(f"{name} has no column {field!r}; set corpus.options.field to one of: {columns}")
        kind = column.type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
            raise CocomixError(f"the column {field!r} of {name} holds no text; its columns are: {columns}")

    def _rows(self, opened: Any, here: Place, inside: Place) -> Iterator[Document | Skipped]:
        import pyarrow

        first = inside.get("group", 0)
        before = sum(opened.metadata.row_group(group).num_rows for group in range(min(first, opened.num_row_groups)))
        for group in range(first, opened.num_row_groups):
            n_rows, row = opened.metadata.row_group(group).num_rows, 0
            done = inside.get("row", 0) if group == first else 0
            try:
                for batch in opened.iter_batches(ROWS, row_groups=[group], columns=[self.field]):
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
        while isinstance(text, dict):  # a field inside the column, the only one that was read
            text = next(iter(text.values()), None)
        return Skipped(place, f"{self.field!r} is empty") if text is None else Document(place, text)


def _column(schema: Any, field: str) -> Any:
    """The column called `field`, or the field inside one that is called so; None if there is none."""
    import pyarrow.types as types

    if field in schema.names:
        return schema.field(field)
    first, *inner = field.split(".")
    column = schema.field(first) if first in schema.names else None
    for name in inner:
        if column is None or not types.is_struct(column.type) or column.type.get_field_index(name) < 0:
            return None
        column = column.type.field(name)
    return column


class HubSource(TextSource):
    """A Hugging Face dataset (needs `cocomix[hub]`): from the hub, or a local folder in the hub's layout or saved by
    `save_to_disk`.

    Args:
        path: hub id, folder, or a format of the library such as `csv` with `data_files`; `name` is a configuration of
            the dataset, `split` one of its splits.
        field: the column that holds the text, `meta.body` a field inside one.
        streaming: read it as it arrives; False downloads it first and reads it memory-mapped.
        revision: pins a commit, or names the hub's Parquet copy of a dataset that is a script
            (`refs/convert/parquet`).
        data_files: files of the dataset, by name or pattern: one, a list, or a list for each split.
        data_dir: folder of the dataset to read.
    """

    name = "hf"

    def __init__(
        self,
        path: str,
        name: str | None = None,
        split: str = "train",
        field: str = "text",
        streaming: bool = True,
        revision: str | None = None,
        data_files: str | list[str] | dict[str, Any] | None = None,
        data_dir: str | None = None,
    ) -> None:
        super().__init__(path)
        check_text(path=path, field=field, split=split)
        self.path, self.field = str(path), field
        self._saved = is_saved_to_disk(Path(path))
        self.streaming = streaming and not self._saved  # one on the disk is memory-mapped
        self._selection = {"name": name, "split": split, "revision": revision}
        files = {"data_files": data_files, "data_dir": data_dir}
        self._selection |= {key: value for key, value in files.items() if value is not None}
        if self._saved and any(value is not None for key, value in self._selection.items() if key != "split"):
            raise CocomixError(f"{path} was saved by save_to_disk, so of its options only split and field apply")

    def read(self, place: Place) -> Iterator[Document | Skipped]:
        try:
            import datasets  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError:
            raise CocomixError("reading Hugging Face datasets needs the extra: pip install 'cocomix[hub]'") from None
        number = place.get("rows", 0)
        check_source(self.path, "the dataset")
        try:
            rows = self._open(datasets)
            self._dataset: Any = rows
            if self.streaming and place:
                rows.load_state_dict(place["state"])
            elif number:
                rows = rows.select(range(number, len(rows))) if number < len(rows) else ()
            for row in rows:
                number += 1
                self._place = {"rows": number}
                yield self._record(row, f"{self.path}:{number - 1}")
        except CocomixError:
            raise
        except Exception as error:  # datasets raises many unrelated types
            raise CocomixError(
                f"the dataset {self.path} cannot be read after row {number} ({reason(error)}); check corpus.options"
            ) from error

    def _open(self, datasets: Any) -> Any:
        if not self._saved:
            return datasets.load_dataset(self.path, streaming=self.streaming, **self._selection)
        saved, split = datasets.load_from_disk(self.path), self._selection["split"]
        if not isinstance(saved, dict):
            return saved
        if split not in saved:
            raise CocomixError(
                f"{self.path} has no split {split!r}; set corpus.options.split to one of: {', '.join(saved)}"
            )
        return saved[split]

    def stamp(self) -> str:
        local = Path(self.path)
        files = list(below(local)) if local.is_dir() else []
        named = self._selection.get("data_files") or ()
        groups = named.values() if isinstance(named, dict) else [named]
        patterns = [pattern for group in groups for pattern in ([group] if isinstance(group, str) else group)]
        files += [Path(name) for pattern in patterns for name in sorted(glob(str(pattern), recursive=True))]
        return stamp_of(files) if files else ""

    def place(self) -> Place:
        if self.streaming and self._place and "state" not in self._place:
            return {**self._place, "state": self._dataset.state_dict()}
        return self._place

    def _record(self, row: Any, place: str) -> Document | Skipped:
        text = value_at(row, self.field) if isinstance(row, dict) else None
        if isinstance(text, str):
            return Document(place, text)
        columns = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        return Skipped(place, f"no text called {self.field!r}; there is: {columns}")


def is_saved_to_disk(folder: Path) -> bool:
    """Whether `folder` was written by `save_to_disk` of a dataset or of several splits."""
    alone = (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    return alone or (folder / "dataset_dict.json").is_file()

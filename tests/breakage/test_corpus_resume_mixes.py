"""A source that changed under a half-made corpus is noticed and said; old and new text are never mixed."""

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cocomix.data import CorpusWriter, TextSource
from cocomix.data.sources import FolderSource, JsonlSource
from cocomix.utils.errors import CocomixError
from tests.helpers.made_corpora import content, finished_content, write_jsonl, write_parquet

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def stopped_at(source: TextSource, record: int) -> TextSource:
    records = source.records

    def cut(place: dict | None = None) -> Iterator:
        for number, one in enumerate(records(place)):
            if number == record:
                raise RuntimeError("cut")
            yield one

    source.records = cut  # type: ignore[method-assign]
    return source


def write(folder: Path, source: TextSource) -> dict:
    return CorpusWriter(folder, val_fraction=0.1, test_fraction=0.1, commit_seconds=0).write(source, lambda *_: None)


def a_file(home: Path) -> Callable[[], TextSource]:
    write_jsonl(home / "t.jsonl", [f"document number {i}" for i in range(60)])
    return lambda: JsonlSource(home / "t.jsonl")


def a_folder(home: Path) -> Callable[[], TextSource]:
    home.mkdir(parents=True)
    for number in range(60):
        (home / f"{number:03}.txt").write_text(f"old {number}")
    return lambda: FolderSource(home)


def cleaned_file(home: Path) -> None:
    write_jsonl(home / "t.jsonl", [f"CLEANED number {i}" for i in range(60)])


def edited_folder(home: Path) -> None:
    for number in range(60):
        (home / f"{number:03}.txt").write_text(f"new {number}")
    (home / "000.txt").unlink()
    (home / "000a.txt").write_text("new inserted")  # the same number of files before the place


@pytest.mark.parametrize(("make", "change"), [(a_file, cleaned_file), (a_folder, edited_folder)])
def test_changed_texts_are_refused_and_nothing_is_lost(tmp_path: Path, make: Callable, change: Callable) -> None:
    home, out = tmp_path / "source", tmp_path / "my out"
    source = make(home)
    whole = write(tmp_path / "whole", source())
    with pytest.raises(RuntimeError, match="cut"):
        write(out, stopped_at(source(), 25))
    before, kept = content(out), {path: (path.read_bytes(), path.stat()) for path in home.rglob("*.*")}
    change(home)
    with pytest.raises(CocomixError, match=rf"changed since the stopped command read 25 records .*: rm -r '{out}'"):
        write(out, source())
    assert content(out) == before
    for path in home.rglob("*.*"):
        path.unlink()
    for path, (text, _) in kept.items():
        path.write_bytes(text)  # put back, at another time
    with pytest.warns(UserWarning, match="changed since the stopped command, but not in what that had read"):
        assert write(out, source()) == whole
    assert finished_content(out) == finished_content(tmp_path / "whole")


def test_what_is_added_behind_the_place_is_read(tmp_path: Path) -> None:
    home, out = tmp_path / "source", tmp_path / "out"
    source = a_file(home)
    with pytest.raises(RuntimeError, match="cut"):
        write(out, stopped_at(source(), 25))
    with (home / "t.jsonl").open("a") as stream:
        stream.write(json.dumps({"text": "one more"}) + "\n")
    with pytest.warns(UserWarning, match="but not in what that had read"):
        figures = write(out, source())
    assert sum(split["documents"] for split in figures["splits"].values()) == 61


def test_an_unchanged_source_is_not_read_again(tmp_path: Path) -> None:
    home = tmp_path / "source"
    source = a_folder(home)
    with pytest.raises(RuntimeError, match="cut"):
        write(tmp_path / "out", stopped_at(source(), 25))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = source()
        records, calls = again.records, []
        again.records = lambda place=None: calls.append(place) or records(place)  # type: ignore
        write(tmp_path / "out", again)
    assert len(calls) == 1 and calls[0]["files"] == 25


def test_a_source_that_changes_while_it_is_read_is_said(tmp_path: Path) -> None:
    home = tmp_path / "source"
    source = a_folder(home)()
    records = source.records

    def growing(place: dict | None = None) -> Iterator:
        yield from records(place)
        (home / "zzz.txt").write_text("late")

    source.records = growing  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="changed while it was read"):
        write(tmp_path / "out", source)


def test_a_parquet_file_that_was_replaced_is_refused(tmp_path: Path) -> None:
    from cocomix.data.sources import ParquetSource

    write_parquet(tmp_path / "a.parquet", [f"old {i}" for i in range(60)])
    with pytest.raises(RuntimeError, match="cut"):
        write(tmp_path / "out", stopped_at(ParquetSource(tmp_path / "a.parquet"), 25))
    write_parquet(tmp_path / "a.parquet", [f"new {i}" for i in range(60)])
    with pytest.raises(CocomixError, match="changed since the stopped command read 25 records"):
        write(tmp_path / "out", ParquetSource(tmp_path / "a.parquet"))

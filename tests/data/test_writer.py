"""The corpus on disk equals the slow twin's lists, whatever the size of its files, and however often it was stopped."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cocomix.data import SPLITS, Corpus, CorpusWriter, Document, Skipped, TextSource
from cocomix.data.sources import Place
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import write_sealed
from tests.helpers.listed_source import split_documents
from tests.helpers.made_corpora import finished_content

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


class Counted(TextSource):
    """`n` documents, every 7th record a bad one; stops with an error at record `until`."""

    name = "counted"

    def __init__(self, n: int, until: int | None = None) -> None:
        super().__init__()
        self.n, self.until = n, until

    def read(self, place: Place) -> Iterator[Document | Skipped]:
        for number in range(place.get("next", 0), self.n):
            if number == self.until:
                raise RuntimeError("cut")
            self._place = {"next": number + 1}
            if number % 7 == 3:
                yield Skipped(f"r{number}", "bad")
            else:
                yield Document(f"d{number}", f"text {number} é\u2028" * (number % 5 + 1), {"n": number})


def good(n: int) -> list[Document]:
    return [record for record in Counted(n=n).records() if isinstance(record, Document)]


def quiet(*_: object) -> None:
    pass


def write(folder: Path, source: TextSource, **options: object) -> dict:
    writer = CorpusWriter(folder, **{"val_fraction": 0.1, "test_fraction": 0.05, **options})  # type: ignore
    return writer.write(source, quiet)


@pytest.mark.parametrize("file_bytes", [1, 300, 5000, 10_000_000])
@pytest.mark.parametrize(("n", "every"), [(200, 1), (500, 3)])
def test_equals_the_lists(tmp_path: Path, file_bytes: int, n: int, every: int) -> None:
    figures = write(tmp_path, Counted(n=n), file_bytes=file_bytes, every=every)
    slow = split_documents(good(n)[::every], 0.1, 0.05)
    corpus = Corpus(tmp_path / "text")
    for name in SPLITS:
        assert list(corpus.documents(name)) == slow[name]
        assert figures["splits"][name]["documents"] == len(slow[name]) == corpus.count(name, "documents")
        assert figures["splits"][name]["chars"] == sum(len(d.text) for d in slow[name]) == corpus.count(name, "chars")
        for entry in corpus.files(name):
            size = (tmp_path / "text" / entry["file"]).stat().st_size
            assert size <= file_bytes or entry["documents"] == 1
    assert figures["skipped"] == sum(number % 7 == 3 for number in range(n))
    reports = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert reports[0] == {"place": "r3", "reason": "bad"} and len(reports) == min(figures["skipped"], 100)


@pytest.mark.parametrize(("n", "val", "test"), [(40, 0.05, 0.05), (120, 0.1, 0.02), (8, 0.3, 0.3), (1000, 0.01, 0.1)])
def test_splits_hold_out_whole_documents_once(tmp_path: Path, n: int, val: float, test: float) -> None:
    write(tmp_path, Counted(n=n), val_fraction=val, test_fraction=test)
    corpus, kept = Corpus(tmp_path / "text"), len(good(n))
    ids = [d.id for name in SPLITS for d in corpus.documents(name)]
    assert sorted(ids) == sorted(d.id for d in good(n))
    assert abs(corpus.count("val", "documents") - val * kept) <= 1.5
    assert abs(corpus.count("test", "documents") - test * kept) <= 1.5


@pytest.mark.parametrize("commit_seconds", [0.0, 1e9])
def test_stopped_anywhere_it_ends_in_the_same_bytes(tmp_path: Path, commit_seconds: float) -> None:
    write(tmp_path / "whole", Counted(n=150), file_bytes=700)
    for until in (*range(0, 150, 13), 149):
        folder = tmp_path / f"cut{until}"
        for stop in (until // 2, until):
            with pytest.raises(RuntimeError, match="cut"):
                write(folder, Counted(n=150, until=stop), file_bytes=700, commit_seconds=commit_seconds)
        write(folder, Counted(n=150), file_bytes=700, commit_seconds=commit_seconds)
        assert finished_content(folder) == finished_content(tmp_path / "whole")


def test_what_was_stopped_is_gone_on_with_not_begun_again(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        write(tmp_path, Counted(n=150, until=100), commit_seconds=0.0)
    reading = Counted(n=150)
    started = []
    read = reading.read
    reading.read = lambda place: started.append(place) or read(place)  # type: ignore
    write(tmp_path, reading)
    assert started == [{"next": 100}]


def test_other_settings_start_over(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        write(tmp_path / "a", Counted(n=150, until=100), commit_seconds=0.0, file_bytes=500)
    write(tmp_path / "a", Counted(n=150), file_bytes=900)
    write(tmp_path / "b", Counted(n=150), file_bytes=900)
    assert finished_content(tmp_path / "a") == finished_content(tmp_path / "b")


def test_too_few_documents_are_refused_and_added_ones_are_seen(tmp_path: Path) -> None:
    with pytest.raises(CocomixError, match="2 documents are too few to hold out whole ones for val and test"):
        write(tmp_path, Counted(n=2))
    with pytest.raises(CocomixError, match="holds no text"):
        write(tmp_path, Counted(n=0))
    write(tmp_path, Counted(n=150))
    assert sum(Corpus(tmp_path / "text").count(name, "documents") for name in SPLITS) == len(good(150))


def test_damage_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path, Counted(n=100))
    victim = tmp_path / "text" / "val" / "00000.jsonl"
    victim.write_text("{}")
    with pytest.raises(CocomixError, match=r"val/00000\.jsonl was altered; delete .*text and run `cocomix corpus`"):
        list(Corpus(tmp_path / "text").documents("val"))
    victim.unlink()
    with pytest.raises(CocomixError, match=r"val/00000\.jsonl is missing"):
        list(Corpus(tmp_path / "text").documents("val"))
    with pytest.raises(CocomixError, match="no corpus with a other split"):
        Corpus(tmp_path / "text").files("other")
    (tmp_path / "text" / "corpus.json").write_text("[]")
    with pytest.raises(CocomixError, match="is damaged"):
        Corpus(tmp_path / "text")
    (tmp_path / "text" / "corpus.json").unlink()
    with pytest.raises(CocomixError, match="holds no corpus"):
        Corpus(tmp_path / "text")


def resealed(folder: Path, line: bytes, name: str = "val/00000.jsonl") -> Corpus:
    """A corpus whose held-out file holds `line`, checksum and all, and is listed as `name`."""
    (folder / "val" / "00000.jsonl").write_bytes(line)
    manifest = json.loads((folder / "corpus.json").read_text())
    entry = manifest["splits"]["val"]["files"][0]
    entry |= {"file": name, "sha256": hashlib.sha256(line).hexdigest()}
    write_sealed(folder / "corpus.json", manifest)
    return Corpus(folder)


@pytest.mark.parametrize(
    "line",
    [
        *(b"{}", b"[]", b"1", b'{"id": 1, "text": "x", "meta": {}}', b'{"id": "a", "text": null, "meta": {}}', b"\xff"),
        *(b'{"id": "a", "text": "\\ud800", "meta": {}}', b"[" * 100_000, b'{"id": "a", "text": "x"}', b"\n"),
    ],
)
def test_lines_that_are_no_documents_are_refused_whatever_their_checksum_says(tmp_path: Path, line: bytes) -> None:
    write(tmp_path, Counted(n=100))
    with pytest.raises(CocomixError, match=r"line 1 of .*00000\.jsonl is not a document .*delete .*text and"):
        list(resealed(tmp_path / "text", line).documents("val"))


@pytest.mark.parametrize("name", ["../val.jsonl", "/etc/passwd", "val/../val/00000.jsonl", "", 3, None, "a\0b", ["x"]])
def test_a_manifest_that_leads_out_of_its_folder_is_refused(tmp_path: Path, name: Any) -> None:
    write(tmp_path, Counted(n=100))
    with pytest.raises(CocomixError, match=r"corpus\.json is damaged"):
        resealed(tmp_path / "text", b"{}", name)


def test_the_first_layout_is_still_read(tmp_path: Path) -> None:
    """One file a split beside the manifest, as version 0.1 wrote it."""
    write(tmp_path / "new", Counted(n=100))
    new, old = Corpus(tmp_path / "new" / "text"), tmp_path / "old"
    old.mkdir()
    splits = {}
    for name in SPLITS:
        (entry,) = new.files(name)
        (old / f"{name}.jsonl").write_bytes((new.folder / entry["file"]).read_bytes())
        splits[name] = {key: entry[key] for key in ("documents", "chars", "sha256")}
    (old / "corpus.json").write_text(json.dumps({"format": 1, "splits": splits}))
    for name in SPLITS:
        assert list(Corpus(old).documents(name)) == list(new.documents(name))
    assert Corpus(old).fingerprint == new.fingerprint

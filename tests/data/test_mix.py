"""Mixtures: shares of characters by weight, the same order always, the same bytes after any kill, stratified splits."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cocomix.data import SPLITS, Corpus, CorpusWriter, Document
from cocomix.data.sources import MixPart, MixSource, open_mix
from cocomix.pipeline.config import load_config
from cocomix.pipeline.data_stages import CorpusStage
from cocomix.utils.errors import CocomixError
from tests.helpers.made_corpora import finished_content, write_jsonl

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "long.jsonl", [f"long {i} " + "x" * (i * 37 % 90) for i in range(200)])
    write_jsonl(tmp_path / "short.jsonl", [f"short {i}" for i in range(300)])
    with (tmp_path / "short.jsonl").open("a") as stream:
        stream.write("not json\n")
    (tmp_path / "folder").mkdir()
    for number in range(80):
        (tmp_path / "folder" / f"{number}.txt").write_text(f"file {number}")
    (tmp_path / "folder" / "other.rst").write_text("x")
    return tmp_path


def mix(home: Path, weights: tuple[float, float, float] = (3, 1, 1), until: str = "first") -> MixSource:
    options = [{"path": home / "long.jsonl"}, {"path": home / "short.jsonl"}, {"path": home / "folder"}]
    sources = ["jsonl", "jsonl", "folder"]
    return open_mix(list(zip(("long", "short", "folder"), weights, sources, options, strict=True)), until)


def slow_order(home: Path, weights: tuple[float, float, float]) -> list[str]:
    """Ids by a list of all documents a part: next is the part with the fewest characters for its weight."""
    parts = [list(part.source) for part in mix(home)._parts]
    names, chars, order = ("long", "short", "folder"), [0, 0, 0], []
    while True:
        number = min(range(3), key=lambda n: (chars[n] / weights[n], n))
        if not parts[number]:
            return order
        document = parts[number].pop(0)
        order.append(f"{names[number]}/{document.id}")
        chars[number] += len(document.text)


@pytest.mark.parametrize("weights", [(3, 1, 1), (1, 1, 1), (0.2, 7, 0.5)])
@pytest.mark.filterwarnings("ignore:.*unreadable records")
def test_weights_are_shares_of_characters(home: Path, weights: tuple[float, float, float]) -> None:
    documents = list(mix(home, weights))
    assert [document.id for document in documents] == slow_order(home, weights)
    chars = {
        name: sum(len(d.text) for d in documents if d.id.startswith(name + "/")) for name in ("long", "short", "folder")
    }
    for (name, count), weight in zip(chars.items(), weights, strict=True):
        assert abs(count - sum(chars.values()) * weight / sum(weights)) < 100, name


def test_until_all_reads_every_text_once(home: Path) -> None:
    source = mix(home, until="all")
    ids = [record.id for record in source.records() if isinstance(record, Document)]
    assert len(ids) == len(set(ids)) == 200 + 300 + 80 and source.ended() == ["long", "short", "folder"]
    assert source.left_out.entries == {
        "folder: its name does not match *.txt|*.md": {"count": 1, "example": "folder: other.rst"}
    }


class Cut(MixSource):
    """Ends with an error before record `until_record`."""

    until_record = 0

    def read(self, place: dict) -> Iterator:
        for number, record in enumerate(super().read(place)):
            if number == self.until_record:
                raise RuntimeError("cut")
            yield record


def write(folder: Path, source: MixSource, **options: float) -> dict:
    return CorpusWriter(folder, val_fraction=0.1, test_fraction=0.05, **options).write(source, lambda *_: None)  # type: ignore


@pytest.mark.parametrize("until", ["first", "all"])
def test_stopped_anywhere_it_ends_in_the_same_bytes_and_figures(home: Path, tmp_path: Path, until: str) -> None:
    whole = write(tmp_path / "whole", mix(home, until=until), every=2)
    assert sum(part["chars"] for part in whole["mix"].values()) == sum(s["chars"] for s in whole["splits"].values())
    for stop in (0, 1, 2, 5, 17, 40):
        folder = tmp_path / f"cut{stop}"
        for _ in range(2):
            cut = Cut([MixPart(p.name, p.weight, p.source) for p in mix(home)._parts], until)
            cut.until_record = stop
            with pytest.raises(RuntimeError, match="cut"):
                write(folder, cut, every=2, commit_seconds=0.0)
        assert write(folder, mix(home, until=until), every=2) == whole
        assert finished_content(folder) == finished_content(tmp_path / "whole")


def test_every_source_is_held_out_in_its_share(tmp_path: Path) -> None:
    """Equal texts in turn: every tenth of all would be of one source alone."""
    for name in ("a", "b"):
        write_jsonl(tmp_path / f"{name}.jsonl", [f"{name} {i:03d}" for i in range(200)])
    parts = [(name, 1.0, "jsonl", {"path": tmp_path / f"{name}.jsonl"}) for name in ("a", "b")]
    write(tmp_path / "out", open_mix(parts, "first"))
    for split in SPLITS:
        ids = [document.id for document in Corpus(tmp_path / "out" / "text").documents(split)]
        assert sum(one.startswith("a/") for one in ids) in (len(ids) // 2, (len(ids) + 1) // 2), split


def test_the_stage_records_what_each_source_contributed(home: Path) -> None:
    parts = f"[{{source: jsonl, name: long, weight: 3, options: {{path: {home}/long.jsonl}}}}, {{source: sotu}}]"
    recipe = next((Path(__file__).parents[2] / "src/cocomix/recipes").glob("tiny.yaml"))
    plain, mixed = load_config(recipe), load_config(recipe, [f"corpus.mix={parts}"])
    assert (
        "mix" not in CorpusStage(home / "p", plain).settings()
        and "mix_until" not in CorpusStage(home, plain).settings()
    )
    assert set(CorpusStage(home, mixed).settings()).isdisjoint({"source", "options"})
    stage = CorpusStage(home / "run", mixed)
    figures = stage.run(lambda *_: None)
    assert figures["source"] == "mix of long, sotu" and figures["mix"]["long"]["share"] == 0.75
    assert "long" in stage.describe(figures) and "% of the text" in stage.describe(figures)
    record = json.loads((stage.folder / "stage.json").read_text())
    assert record["figures"]["mix"]["sotu"]["documents"] >= 1


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (
            "[{source: jsonl, options: {path: x}}, {source: jsonl, options: {path: y}}]",
            "two sources of `mix`",
        ),
        ("[{source: nothing}]", "corpus.mix: there is no text source 'nothing'"),
        ("[{source: sotu, weight: 0}]", "weight"),
        ("[{source: sotu, weight: .inf}]", "weight"),
    ],
)
def test_what_is_no_mixture_is_refused(tmp_path: Path, setting: str, words: str) -> None:
    recipe = next((Path(__file__).parents[2] / "src/cocomix/recipes").glob("tiny.yaml"))
    with pytest.raises(CocomixError, match=words):
        CorpusStage(tmp_path, load_config(recipe, [f"corpus.mix={setting}"])).run(lambda *_: None)


def test_until_is_one_of_two() -> None:
    with pytest.raises(CocomixError, match="first or all"):
        MixSource([], "none")

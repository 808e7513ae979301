"""The harness that breaks runs: what counts as a refusal, and that it does what the sentence says and no more."""

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.faults import __main__ as faults
from benchmarks.faults.advice import follow, refusal
from benchmarks.faults.damage import FAULTS, SPOILING, plan
from benchmarks.faults.kill_plan import TARGETS


def ended(code: int, said: str) -> Any:
    return SimpleNamespace(popen=SimpleNamespace(returncode=code), said=said)


def test_a_refusal_is_a_sentence_and_exit_code_2() -> None:
    assert refusal(ended(2, "[1/9] corpus\ncocomix: x is damaged; mend it\n")) == "x is damaged; mend it"
    assert refusal(ended(1, "cocomix: x is damaged; mend it\n")) is None
    assert refusal(ended(2, "Traceback (most recent call last):\ncocomix: x\n")) is None
    assert refusal(ended(2, "Usage: cocomix\n")) is None


@pytest.mark.parametrize(
    ("sentence", "gone", "commands"),
    [
        ("run/a/x was altered; delete run/a and run `cocomix sae --run run`", "a", [["sae", "--run", "run"]]),
        ("run/a/x is damaged; delete its folder and run `cocomix label` again", "a", [["label"]]),
        ("x was altered; delete . and run `cocomix sae`", None, [["sae"]]),
        ("x was altered; delete run/../../other and mend it", None, None),
        ("x was altered; delete run/ and mend it", None, None),
        ("x is odd", None, None),
    ],
)
def test_a_sentence_is_followed_to_the_letter(
    tmp_path: Path, sentence: str, gone: str | None, commands: list[list[str]] | None
) -> None:
    home, other = tmp_path / "home", tmp_path / "other"
    for folder in (home / "run" / "a", home / "run" / "b", other):
        folder.mkdir(parents=True)
        (folder / "x").write_text("x")
    assert follow(sentence, home, None) == commands
    left = {path.name for path in (home / "run").iterdir()}
    assert left == {"a", "b"} - {gone} and other.exists()


def test_a_cure_is_used_only_where_the_sentence_asks_for_it(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    used: list[int] = []
    assert follow("the disk is full; free some space", tmp_path, lambda: used.append(1)) == [] and used == [1]
    assert follow("x is odd", tmp_path, lambda: used.append(2)) is None and used == [1]


@pytest.mark.parametrize("how", list(dict.fromkeys(SPOILING)), ids=lambda how: how.__name__)
def test_spoiling_spoils(tmp_path: Path, how: Any) -> None:
    path, content = tmp_path / "x", bytes(range(1, 200))
    for seed in range(20):
        path.write_bytes(content)
        how(path, random.Random(seed))
        assert not path.exists() or path.read_bytes() != content


def test_the_plan_has_every_fault_and_every_stage() -> None:
    drawn = plan()
    assert {fault for fault, _ in drawn} == FAULTS.keys() and {stage for _, stage in drawn} == TARGETS.keys()
    assert drawn == plan()


def test_the_page_shows_what_was_found() -> None:
    root = Path(__file__).parents[2]
    report = json.loads((root / "results/faults/report.json").read_text(encoding="utf-8"))
    assert faults.table(report) in (root / "docs/explanation/withstands.md").read_text(encoding="utf-8")
    assert "wrong" not in report["counts"]

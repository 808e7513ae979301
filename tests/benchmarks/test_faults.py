"""The fault harness: what counts as an error message, and that it does exactly what the message says."""

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.faults import __main__ as faults
from benchmarks.faults.damage import CORRUPTIONS, FAULTS, plan
from benchmarks.faults.fixes import apply_fix, error_message
from benchmarks.faults.kill_plan import TARGETS


def ended(code: int, output: str) -> Any:
    return SimpleNamespace(popen=SimpleNamespace(returncode=code), output=output)


def test_an_error_message_is_a_sentence_with_exit_code_2() -> None:
    assert error_message(ended(2, "[1/9] corpus\ncocomix: x is damaged; fix it\n")) == "x is damaged; fix it"
    assert error_message(ended(1, "cocomix: x is damaged; fix it\n")) is None
    assert error_message(ended(2, "Traceback (most recent call last):\ncocomix: x\n")) is None
    assert error_message(ended(2, "Usage: cocomix\n")) is None


@pytest.mark.parametrize(
    ("sentence", "gone", "commands"),
    [
        ("run/a/x was altered; delete run/a and run `cocomix sae --run run`", "a", [["sae", "--run", "run"]]),
        ("run/a/x is damaged; delete its folder and run `cocomix label` again", "a", [["label"]]),
        ("x was altered; delete . and run `cocomix sae`", None, [["sae"]]),
        ("x was altered; delete run/../../other and fix it", None, None),
        ("x was altered; delete run/ and fix it", None, None),
        ("x is odd", None, None),
    ],
)
def test_a_message_is_followed_to_the_letter(
    tmp_path: Path, sentence: str, gone: str | None, commands: list[list[str]] | None
) -> None:
    home, other = tmp_path / "home", tmp_path / "other"
    for folder in (home / "run" / "a", home / "run" / "b", other):
        folder.mkdir(parents=True)
        (folder / "x").write_text("x")
    assert apply_fix(sentence, home, None) == commands
    left = {path.name for path in (home / "run").iterdir()}
    assert left == {"a", "b"} - {gone} and other.exists()


def test_a_repair_is_used_only_if_the_message_asks_for_it(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    used: list[int] = []
    assert apply_fix("the disk is full; free some space", tmp_path, lambda: used.append(1)) == [] and used == [1]
    assert apply_fix("x is odd", tmp_path, lambda: used.append(2)) is None and used == [1]


@pytest.mark.parametrize("corruption", list(dict.fromkeys(CORRUPTIONS)), ids=lambda corruption: corruption.__name__)
def test_a_corruption_changes_the_file(tmp_path: Path, corruption: Any) -> None:
    path, content = tmp_path / "x", bytes(range(1, 200))
    for seed in range(20):
        path.write_bytes(content)
        corruption(path, random.Random(seed))
        assert not path.exists() or path.read_bytes() != content


def test_the_plan_has_every_fault_and_every_stage() -> None:
    planned = plan()
    assert {fault for fault, _ in planned} == FAULTS.keys() and {stage for _, stage in planned} == TARGETS.keys()
    assert planned == plan()


def test_the_page_shows_the_report() -> None:
    root = Path(__file__).parents[2]
    report = json.loads((root / "results/faults/report.json").read_text(encoding="utf-8"))
    assert faults.table(report) in (root / "docs/explanation/withstands.md").read_text(encoding="utf-8")
    assert "wrong" not in report["counts"]

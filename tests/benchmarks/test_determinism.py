"""A repeated run is the same, other conditions stay within bounds, and the command that checks this can fail."""

import json
import math
from pathlib import Path

import pytest
import yaml

from benchmarks.determinism import (
    CONDITIONS,
    compare_figures,
    compare_runs,
    count_same_files,
    figures,
    list_differences,
    stage_hashes,
    table,
)
from benchmarks.faults.kill_plan import write_texts
from benchmarks.faults.run_copies import recipe


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("determinism")
    write_texts(folder / "texts", beginning=400, copies=0)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe()))
    return compare_runs(["again", "threads 2"], ["-c", "../recipe.yaml"], folder)


@pytest.mark.long
def test_a_run_made_twice_is_the_same(runs: dict) -> None:
    again = runs["again"]
    assert list_differences(again) == [] and again["relative"] == 0
    assert again["figures"] > 200 and all(found["files"] > 0 for found in again["stages"].values())
    assert len(again["stages"]) == 7 and again["shown"] == runs["first"]["shown"]


def test_threads_change_last_digits_and_no_data(runs: dict) -> None:
    other = runs["threads 2"]
    for stage in ("corpus", "tokens"):
        assert other["stages"][stage]["files"] == other["stages"][stage]["same"] > 0
    for name, value in runs["first"]["shown"].items():
        assert other["shown"][name] == pytest.approx(value, rel=1e-3), name


def test_clock_readings_are_not_figures() -> None:
    report = {
        "created": "now",
        "machine": {"threads": 2},
        "students": [{"name": "a", "seconds": 1.0, "runs": [{"loss": 2.0, "wait_share": 0.5, "worse": True}]}],
        "curve": [{"step": 1}],
    }
    assert dict(figures(report)) == {"students.a.runs.0.loss": 2.0, "curve.0.step": 1.0}


def test_the_largest_difference_is_found() -> None:
    first = {"a": 1.0, "b": 2.0, "c": math.nan, "d": 4.0}
    found = compare_figures(first, {"a": 1.0, "b": 2.2, "c": math.nan, "e": 4.0})
    assert (found["figures"], found["equal"]) == (5, 2)  # one that only one of them has is not equal
    assert found["furthest"] == {"figure": "b", "first": 2.0, "second": 2.2}
    assert found["relative"] == pytest.approx(0.2 / 2.2)


def test_a_run_that_is_not_the_same_is_named(tmp_path: Path) -> None:
    for name, loss in (("one", 1.0), ("other", 1.5)):
        for stage in ("tokens", "teacher"):
            (tmp_path / name / "run" / stage).mkdir(parents=True)
        (tmp_path / name / "run/tokens/stage.json").write_text(json.dumps({"loss": 1.0, "seconds": loss}))
        (tmp_path / name / "run/teacher/weights").write_text(str(loss))
    files = count_same_files(stage_hashes(tmp_path / "one"), stage_hashes(tmp_path / "other"))
    assert files == {"tokens": {"files": 1, "same": 1}, "teacher": {"files": 1, "same": 0}}
    assert list_differences({"figures": 3, "equal": 2, "stages": files}) == ["1 figures", "teacher"]


def test_a_run_that_fails_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"ended with 2:\ncocomix: there is no config file nowhere\.yaml"):
        CONDITIONS["again"].run(tmp_path, ["-c", "nowhere.yaml"])


@pytest.mark.parametrize("name", ["demo", "tiny"])
def test_the_page_shows_the_report(name: str) -> None:
    root = Path(__file__).parents[2]
    report = json.loads((root / f"results/determinism/{name}.json").read_text(encoding="utf-8"))
    assert list_differences(report["runs"]["again"]) == []
    assert table(report) in (root / "docs/explanation/same.md").read_text(encoding="utf-8")

"""A run made twice is the same, and what else can change it stays within bounds; the command that says so can fail."""

import json
import math
from pathlib import Path

import pytest
import yaml

from benchmarks.determinism import CIRCUMSTANCES, compare, compared, differing, figures, judged, stages, table
from benchmarks.faults.kill_plan import write_texts
from benchmarks.faults.run_copies import recipe


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("determinism")
    write_texts(folder / "texts", beginning=400, copies=0)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe()))
    return compare(["again", "threads 2"], ["-c", "../recipe.yaml"], folder)


def test_a_run_made_twice_is_the_same(made: dict) -> None:
    again = made["again"]
    assert differing(again) == [] and again["relative"] == 0
    assert again["figures"] > 200 and all(found["files"] > 0 for found in again["stages"].values())
    assert len(again["stages"]) == 7 and again["shown"] == made["first"]["shown"]


def test_threads_change_last_digits_and_no_data(made: dict) -> None:
    other = made["threads 2"]
    for stage in ("corpus", "tokens"):
        assert other["stages"][stage]["files"] == other["stages"][stage]["same"] > 0
    for name, value in made["first"]["shown"].items():
        assert other["shown"][name] == pytest.approx(value, rel=1e-3), name


def test_readings_of_a_clock_are_no_figures() -> None:
    report = {
        "created": "now",
        "machine": {"threads": 2},
        "students": [{"name": "a", "seconds": 1.0, "runs": [{"loss": 2.0, "wait_share": 0.5, "worse": True}]}],
        "curve": [{"step": 1}],
    }
    assert dict(figures(report)) == {"students.a.runs.0.loss": 2.0, "curve.0.step": 1.0}


def test_the_figure_furthest_off_is_found() -> None:
    first = {"a": 1.0, "b": 2.0, "c": math.nan, "d": 4.0}
    found = compared(first, {"a": 1.0, "b": 2.2, "c": math.nan, "e": 4.0})
    assert (found["figures"], found["equal"]) == (5, 2)  # one that only one of them has is not equal
    assert found["furthest"] == {"figure": "b", "first": 2.0, "second": 2.2}
    assert found["relative"] == pytest.approx(0.2 / 2.2)


def test_a_run_that_is_not_the_same_is_named(tmp_path: Path) -> None:
    for name, loss in (("one", 1.0), ("other", 1.5)):
        for stage in ("tokens", "teacher"):
            (tmp_path / name / "run" / stage).mkdir(parents=True)
        (tmp_path / name / "run/tokens/stage.json").write_text(json.dumps({"loss": 1.0, "seconds": loss}))
        (tmp_path / name / "run/teacher/weights").write_text(str(loss))
    files = judged(stages(tmp_path / "one"), stages(tmp_path / "other"))
    assert files == {"tokens": {"files": 1, "same": 1}, "teacher": {"files": 1, "same": 0}}
    assert differing({"figures": 3, "equal": 2, "stages": files}) == ["1 figures", "teacher"]


def test_a_run_that_fails_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"ended with 2:\ncocomix: there is no config file nowhere\.yaml"):
        CIRCUMSTANCES["again"].run(tmp_path, ["-c", "nowhere.yaml"])


@pytest.mark.parametrize("name", ["demo", "tiny"])
def test_the_page_shows_what_was_found(name: str) -> None:
    root = Path(__file__).parents[2]
    report = json.loads((root / f"results/determinism/{name}.json").read_text(encoding="utf-8"))
    assert differing(report["runs"]["again"]) == []
    assert table(report) in (root / "docs/explanation/same.md").read_text(encoding="utf-8")

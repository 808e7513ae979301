"""A sample of the injector: file operations of one stage killed and failed; `make test-all` tries more."""

import json
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.faults.kill_plan import TARGETS
from benchmarks.faults.operations import GOOD, in_turn, report_so_far, spread, table

ROOT = Path(__file__).parents[2]


def test_the_sample_is_spread_and_has_both_ends() -> None:
    assert sorted(spread(5, None)) == [1, 2, 3, 4, 5] == sorted(spread(5, 9))
    assert sorted(spread(100, 3)) == [1, 50, 100] and spread(100, 1) == [1]
    assert spread(8, None) == [1, 5, 3, 7, 2, 6, 4, 8]  # wherever it is cut, those before are spread
    assert in_turn({"a": [1, 2, 3, 4], "b": [1, 2]}) == [("a", 1), ("b", 1), ("a", 2), ("a", 3), ("b", 2), ("a", 4)]


def test_after_a_mend_only_the_stages_asked_for_are_tried_anew(tmp_path: Path) -> None:
    asked = Namespace(output=tmp_path, sample=None, kinds=["kill"], stages=["report"], again=True)
    failures = [{"stage": stage, "kind": "kill", "number": 1, "outcome": GOOD[0]} for stage in ("corpus", "report")]
    earlier = {"commit": "old", "sample": None, "kinds": ["kill"], "operations": {"corpus": 1, "report": 1}}
    (tmp_path / "operations.json").write_text(json.dumps(earlier | {"failures": failures}))
    report = report_so_far(asked)
    assert report["failures"] == failures[:1] and report["commit"] == "old" != report["again"]["report"]
    assert f"report as of commit {report['again']['report']}." in table(report)
    asked.again = False
    assert report_so_far(asked)["failures"] == []


def test_the_page_shows_what_was_tried() -> None:
    folder = ROOT / "results/faults"
    report = json.loads((folder / "operations.json").read_text(encoding="utf-8"))
    shown = table(report)
    assert (folder / "operations.md").read_text(encoding="utf-8") == shown
    assert shown.partition("\n\n")[2] in (ROOT / "docs/explanation/withstands.md").read_text(encoding="utf-8")
    tried = {(entry["stage"], entry["kind"], entry["number"]) for entry in report["failures"]}
    assert report["sample"] is None and len(tried) == 3 * sum(report["operations"].values())
    assert report["operations"].keys() == TARGETS.keys()
    assert {entry["outcome"] for entry in report["failures"]} <= set(GOOD)


@pytest.mark.long
def test_killed_and_failed_operations_of_the_tokens(tmp_path: Path) -> None:
    if sys.platform != "linux" or shutil.which("cc") is None:
        pytest.skip("the injector takes a C compiler and Linux")
    program = [sys.executable, "-m", "benchmarks.faults.operations", "--stages", "tokens", "--sample", "3"]
    done = subprocess.run(
        [*program, "-o", str(tmp_path / "report"), "--folder", str(tmp_path / "runs")],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report/operations.json").read_text())
    assert report["operations"]["tokens"] > 20 and len(report["failures"]) == 9
    assert {entry["outcome"] for entry in report["failures"]} <= set(GOOD)
    assert "| tokens |" in (tmp_path / "report/operations.md").read_text()

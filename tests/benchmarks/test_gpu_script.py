"""The script for a GPU runs end to end at toy size where there is none, and says what failed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu
from cocomix.utils.errors import CocomixError

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_every_part_at_toy_size(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(ROOT / "benchmarks/gpu.sh"), str(tmp_path / "gpu.json"), "--toy"],
        env=os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["toy"] and report["machine"]["cpu"] and report["commit"]
    assert set(gpu.PARTS) <= set(report) and sum(gpu.LIMITS.values()) <= 12 * 60
    assert "skipped" in report["tests"]["summary"] or "passed" in report["tests"]["summary"]
    for name in ("gpt2 tiny", "gpt2 tiny compiled", "cocomix tiny", "cocomix tiny compiled"):
        step = report["steps"][name]
        assert step["tokens_per_second"] > 0 and 0 < step["mfu"] < 1 and step["peak_bytes"] > 0
    assert report["labelling"]["exact"]["tokens_per_second"] > 0
    curve = report["training"]["curve"]
    assert curve[-1]["step"] == 20 and curve[-1]["train_loss"] < curve[0]["train_loss"]


def test_a_part_that_fails_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(machine: gpu.Machine, limit: float) -> dict[str, float]:
        raise CocomixError("no memory left")

    monkeypatch.setattr(gpu, "PARTS", {"steps": failing, "labelling": lambda machine, limit: {"limit": limit}})
    monkeypatch.setattr("sys.argv", ["gpu", str(tmp_path / "new/gpu.json"), "--toy", "--only", "steps", "labelling"])
    with pytest.raises(SystemExit):
        gpu.main()
    report = json.loads((tmp_path / "new/gpu.json").read_text())
    assert report["steps"]["failed"] == "no memory left" and report["labelling"]["limit"] == 45 * gpu.TOY_PATIENCE
    assert "no memory left" in capsys.readouterr().out


def test_a_command_that_takes_too_long_or_fails_is_one_sentence() -> None:
    with pytest.raises(CocomixError, match="longer than its 1 s"):
        gpu.command(["-c", "import time; time.sleep(30)"], 1)
    with pytest.raises(CocomixError, match="exit code 3: what it said"):
        gpu.command(["-c", "print('what it said'); raise SystemExit(3)"], 30)

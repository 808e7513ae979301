"""What a run says before its students are trained: how long it will take here."""

from pathlib import Path

import pytest

from cocomix.pipeline.config import load_config
from cocomix.pipeline.run import Run
from cocomix.pipeline.training import seconds_of_a_step

pytestmark = pytest.mark.slow
MEASURED = "cocomix.pipeline.student_stages.seconds_of_a_step"


def with_steps(tiny: Path, steps: int) -> Run:
    folder = tiny / "runs" / "tiny"
    return Run(folder, load_config(folder / "config.yaml", [f"students_train.steps={steps}", "seeds=[0, 1]"]))


def test_trainings_are_timed_once_a_student_and_added_up(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    timed: list[int] = []

    def half_a_second(objective: object, data: object, config: object) -> float:
        timed.append(1)
        return 0.5

    monkeypatch.setattr(MEASURED, half_a_second)
    with_steps(tiny, 200).say_how_long()
    assert "  6 trainings: about 10 min 00 s on this machine" in capsys.readouterr().out
    assert len(timed) == 3


def test_nothing_is_said_of_what_is_short_or_done(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_steps(tiny, 99).say_how_long()
    folder = tiny / "runs" / "tiny"
    Run(folder, load_config(folder / "config.yaml")).say_how_long()
    assert capsys.readouterr().out == ""


def test_timing_leaves_nothing_behind(tiny: Path) -> None:
    run = with_steps(tiny, 200)
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    student = run.students[-1]
    assert 0 < seconds_of_a_step(student.objective(), student.batches(), student.train) < 60
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before

"""The time a stage is said to take: no promise from its slow start, and the truth soon after."""

import io
import re
import time

import pytest

from cocomix.utils.console import StageProgress, Terminal

HOURS, MINUTES = re.compile(r"\d+ h"), re.compile(r"about (\d+) min")


def lines(monkeypatch: pytest.MonkeyPatch, seconds: list[float], total: int) -> list[str]:
    """What is printed after each of a stage's first steps, which take these seconds."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    output = io.StringIO()
    shown: list[str] = []
    with StageProgress(Terminal(file=output, width=200), "labels", every_seconds=0.0) as progress:
        for step, passed in enumerate(seconds):
            now[0] += passed
            progress(step + 1, total, {"loss": 1.0})
            shown.append(output.getvalue())
            output.seek(0)
            output.truncate()
    return shown


@pytest.mark.parametrize(
    "start", [[40.0], [40.0, 20.0, 10.0], [0.2, 30.0], [0.2, 0.2, 0.2, 30.0], [0.2] * 7 + [45.0], [1.0, 25.0, 3.0]]
)
def test_a_slow_start_promises_no_hours(monkeypatch: pytest.MonkeyPatch, start: list[float]) -> None:
    steps = 6000
    shown = lines(monkeypatch, [*start, *[0.2] * 40], steps)  # 20 minutes
    assert not any(map(HOURS.search, shown))
    assert all("about" not in line for line in shown[:8])
    (minutes,) = MINUTES.findall(shown[-1])
    assert 15 <= int(minutes) <= 25


def test_a_stage_of_few_slow_steps_has_an_estimate_after_some(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = lines(monkeypatch, [90.0, *[60.0] * 11], 12)
    assert [("about" in line) for line in shown] == [False] * 4 + [True] * 8
    assert "about 7 min 00 s left" in shown[4]


def test_a_resumed_stage_counts_its_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    output = io.StringIO()
    with StageProgress(Terminal(file=output, width=200), "labels", every_seconds=0.0) as progress:
        for step in range(5000, 5020):
            now[0] += 1.0
            progress(step, 6000)
    assert "about 16 min 21 s left" in output.getvalue().splitlines()[-1]

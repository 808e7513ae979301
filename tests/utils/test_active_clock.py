"""The clock that stands still while a process is stopped."""

from types import SimpleNamespace

import pytest

from cocomix.utils import clock
from cocomix.utils.clock import TICK_SECONDS, ActiveClock


def test_only_time_in_which_nothing_ran_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now, used = [100.0], [5.0]
    fake = SimpleNamespace(monotonic=lambda: now[0], process_time=lambda: used[0], sleep=lambda _: None)
    monkeypatch.setattr(clock, "time", fake)
    watched = ActiveClock()
    watched._started = True  # the test looks in place of the thread
    begun = watched.seconds()

    def passes(seconds: float, computing: float) -> float:
        now[0] += seconds
        used[0] += computing
        return watched.seconds() - begun

    assert passes(TICK_SECONDS, 0.0) == pytest.approx(0.5)  # it waits for a disk or another process
    assert passes(1.5, 0.0) == pytest.approx(2.0)  # a busy machine
    assert passes(30.0, 29.0) == pytest.approx(32.0)  # a long call that blocks the interpreter
    assert passes(25.0 + TICK_SECONDS, 0.01) == pytest.approx(32.5)  # SIGSTOP for 25 s
    assert watched.stopped() == pytest.approx(25.0)
    assert passes(TICK_SECONDS, 0.5) == pytest.approx(33.0)

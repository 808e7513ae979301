"""Turns, laps and ratios, on a clock of our own."""

import gc
from itertools import pairwise

import pytest

from benchmarks.speed.measure import figure, ratios, time_interleaved
from benchmarks.speed.workload import Lap, Workload


class Clock:
    """Seconds that pass only when somebody spends them."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Spender(Workload):
    """Takes the next of its `costs` a run, half of it in a lap."""

    unit, units, precision = "run", 1.0, "fp32"

    def __init__(self, name: str, costs: list[float], clock: Clock, log: list[str]) -> None:
        self.name, self.costs, self.clock, self.log = name, iter(costs), clock, log

    def prepare(self) -> None:
        return None

    def run(self, lap: Lap) -> None:
        assert not gc.isenabled()
        cost = next(self.costs)
        self.log.append(self.name)
        self.clock.now += cost / 2
        lap("half")
        self.clock.now += cost / 2
        lap("rest")


def test_each_round_runs_everyone_once_and_begins_with_the_next() -> None:
    clock, log = Clock(), []
    everyone = [Spender(name, [1.0] * 4, clock, log) for name in "abc"]
    time_interleaved(everyone, 3, clock=clock)
    rounds = [log[start : start + 3] for start in range(0, len(log), 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds) and len(rounds) == 4
    following = {"a": "b", "b": "c", "c": "a"}
    assert all(later[0] == following[earlier[0]] for earlier, later in pairwise(rounds[1:]))


def test_who_is_warm_has_no_run_thrown_away() -> None:
    clock, log = Clock(), []
    cold, warm = (Spender(name, [1.0, 2.0], clock, log) for name in ("cold", "warm"))
    warm.warm = True
    found = time_interleaved([cold, warm], 1, clock=clock)
    assert log == ["cold", "cold", "warm"]
    assert found["cold"].seconds == [2.0] and found["warm"].seconds == [1.0]


def test_seconds_and_laps_leave_the_warm_up_out() -> None:
    clock = Clock()
    costs = [64.0, 2.0, 4.0, 8.0]
    found = time_interleaved([Spender("a", costs, clock, [])], 3, clock=clock)["a"]
    assert found.seconds == costs[1:]
    assert found.laps == {"half": [cost / 2 for cost in costs[1:]], "rest": [cost / 2 for cost in costs[1:]]}


def test_what_the_device_still_does_counts_for_who_asked_for_it() -> None:
    clock, owed = Clock(), []

    class Lazy(Spender):
        def run(self, lap: Lap) -> None:
            owed.append(next(self.costs))

    def synchronize() -> None:
        clock.now += sum(owed)
        owed.clear()

    everyone = [Lazy("a", [9.0, 1.0, 3.0], clock, []), Lazy("b", [9.0, 2.0, 5.0], clock, [])]
    found = time_interleaved(everyone, 2, synchronize=synchronize, clock=clock)
    assert {name: timing.seconds for name, timing in found.items()} == {"a": [1.0, 3.0], "b": [2.0, 5.0]}


def test_progress_ends_at_its_total() -> None:
    clock, seen = Clock(), []
    everyone = [Spender(name, [1.0] * 3, clock, []) for name in "ab"]
    time_interleaved(everyone, 2, clock=clock, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == list(range(1, seen[-1][1] + 1))


def test_a_contestant_that_fails_leaves_the_garbage_collector_on() -> None:
    with pytest.raises(StopIteration):
        time_interleaved([Spender("a", [], Clock(), [])], 1)
    assert gc.isenabled()


def test_ratios_are_taken_round_by_round() -> None:
    above, below = [2.0, 9.0, 4.0, 8.0], [1.0, 3.0, 1.0, 16.0]
    runs = ratios(above, below)
    assert runs == [above[i] / below[i] for i in range(len(above))]
    found = figure(runs, more="kept")
    ordered = sorted(runs)
    assert found["value"] == (ordered[1] + ordered[2]) / 2
    assert found["spread"] == [ordered[0], ordered[-1]] and found["runs"] == runs and found["more"] == "kept"
    with pytest.raises(ValueError):
        ratios(above, below[:2])

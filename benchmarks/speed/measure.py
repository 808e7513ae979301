"""Timing in turns.

A round runs every contestant once; the next round begins with the next contestant. Whatever slows the machine for a
while then slows all of them, and a ratio is taken within each round: the figure is the median of these ratios, its
spread the smallest and the largest of them. Before anything is timed every contestant has run once, in a round that is
not counted or while it was prepared. Garbage is collected between runs, not within.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.speed.contestant import Contestant, Lap, Progress


@dataclass
class Timing:
    """Seconds of one contestant.

    Attributes:
        seconds: of each round.
        laps: of each round, by the names the contestant gave.
    """

    seconds: list[float] = field(default_factory=list)
    laps: dict[str, list[float]] = field(default_factory=dict)


def interleaved(
    contestants: Sequence[Contestant],
    rounds: int,
    *,
    settle: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress = lambda done, total: None,
) -> dict[str, Timing]:
    """Time `contestants`, prepared, in `rounds` rounds after one for those that are not warm; by name.

    Args:
        settle: waits for the device; called before each look at the clock.
    """
    timings = {one.name: Timing() for one in contestants}
    cold = [one for one in contestants if not one.warm]
    total, done = len(cold) + rounds * len(contestants), 0
    gc.collect()
    gc.freeze()  # the libraries' millions of objects need not be looked through before every run
    try:
        for one in cold:
            _run_once(one, Timing(), settle, clock)
            progress(done := done + 1, total)
        for number in range(rounds):
            first = number % len(contestants)
            for one in [*contestants[first:], *contestants[:first]]:
                _run_once(one, timings[one.name], settle, clock)
                progress(done := done + 1, total)
    finally:
        gc.unfreeze()
    return timings


def _run_once(one: Contestant, timing: Timing, settle: Callable[[], None], clock: Callable[[], float]) -> None:
    gc.collect()
    gc.disable()
    try:
        settle()
        started = last = clock()

        def lap(name: str) -> None:
            nonlocal last
            settle()
            now = clock()
            timing.laps.setdefault(name, []).append(now - last)
            last = now

        one.run(lap)
        settle()
        timing.seconds.append(clock() - started)
    finally:
        gc.enable()


def no_laps() -> Lap:
    """For running a contestant outside a measurement."""
    return lambda name: None


def figure(runs: Sequence[float], **more: Any) -> dict[str, Any]:
    """`value` (median), `spread` (smallest and largest) and `runs` of the figures of several rounds."""
    return {"value": median(runs), "spread": [min(runs), max(runs)], "runs": list(runs), **more}


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """above / below, round by round."""
    return [one / other for one, other in zip(above, below, strict=True)]

"""Timing in turns.

A round runs every workload once; the next round starts with the next workload. Whatever slows the machine for a while
then slows all of them. A ratio is taken within each round: the figure is the median of these ratios, its spread the
smallest and the largest. Before timing, every workload has run once, in a warm-up round or while it was prepared.
Garbage is collected between runs, not during them.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.speed.workload import Progress, Workload


@dataclass
class Timing:
    """Times of one workload.

    Attributes:
        seconds: time of each round.
        laps: time of each lap in each round, by name.
    """

    seconds: list[float] = field(default_factory=list)
    laps: dict[str, list[float]] = field(default_factory=dict)


def time_interleaved(
    workloads: Sequence[Workload],
    rounds: int,
    *,
    synchronize: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress = lambda done, total: None,
) -> dict[str, Timing]:
    """Time prepared workloads in turns, after one warm-up run of those that are not warm.

    Args:
        workloads: prepared workloads.
        rounds: number of timed rounds.
        synchronize: waits for the device; called before every reading of the clock.
        clock: returns seconds.
        progress: progress callback, called after every run.

    Returns:
        timings by the workload's name.
    """
    timings = {workload.name: Timing() for workload in workloads}
    cold = [workload for workload in workloads if not workload.warm]
    total, done = len(cold) + rounds * len(workloads), 0
    gc.collect()
    gc.freeze()  # so that the libraries' millions of objects are not scanned before every run
    try:
        for workload in cold:
            _run_once(workload, Timing(), synchronize, clock)
            progress(done := done + 1, total)
        for number in range(rounds):
            first = number % len(workloads)
            for workload in [*workloads[first:], *workloads[:first]]:
                _run_once(workload, timings[workload.name], synchronize, clock)
                progress(done := done + 1, total)
    finally:
        gc.unfreeze()
    return timings


def _run_once(workload: Workload, timing: Timing, synchronize: Callable[[], None], clock: Callable[[], float]) -> None:
    gc.collect()
    gc.disable()
    try:
        synchronize()
        started = last = clock()

        def lap(name: str) -> None:
            nonlocal last
            synchronize()
            now = clock()
            timing.laps.setdefault(name, []).append(now - last)
            last = now

        workload.run(lap)
        synchronize()
        timing.seconds.append(clock() - started)
    finally:
        gc.enable()


def figure(runs: Sequence[float], **more: Any) -> dict[str, Any]:
    """Return `value` (median), `spread` (smallest and largest) and `runs` of the figures of several rounds."""
    return {"value": median(runs), "spread": [min(runs), max(runs)], "runs": list(runs), **more}


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return above / below, round by round."""
    return [numerator / denominator for numerator, denominator in zip(above, below, strict=True)]

"""Equal FLOPs and equal wall clock: a variant against the frontier of next-token students.

The frontier is made of NTP students trained with different lengths, each with its own complete learning-rate
schedule. For each seed their final points give test loss as a function of log cost, by linear interpolation; a
variant's difference is its test loss less the frontier's at the variant's own cost, paired by seed, and negative is
better. Reading one NTP student's curve at its middle would be unfair to NTP: its learning rate has not fallen there.
Loss falls ever more slowly with log cost, so a straight line between two of these points lies a little above the true
frontier: more lengths make a variant's gain smaller and more exact. Nothing is extrapolated: a variant dearer than
the longest NTP student or cheaper than the shortest has no figure.

Costs: `flops` and `seconds` of training alone; `..._with_labels` adds the one-off cost of making labels, charged to
each student by the share of them that it reads. Seconds are steps times the measured time of a step where every
student concerned was timed (in turns, on a quiet machine), else the seconds training took.
"""

from bisect import bisect_left
from collections.abc import Sequence
from math import log
from typing import Any

from cocomix.experiments.comparisons import compared, estimate, find_student

COSTS = ("flops", "flops_with_labels", "seconds", "seconds_with_labels")


def interpolate(points: Sequence[tuple[float, float]], cost: float) -> float | None:
    """Loss at `cost` on the line through `points` (cost, loss), linear in log cost; None outside their range."""
    points = sorted(points)
    costs = [point[0] for point in points]
    if not points or not costs[0] <= cost <= costs[-1]:
        return None
    right = bisect_left(costs, cost)
    if costs[right] == cost:
        return points[right][1]
    (before, high), (after, low) = points[right - 1], points[right]
    share = (log(cost) - log(before)) / (log(after) - log(before))
    return high + share * (low - high)


def run_cost(student: dict[str, Any], run: dict[str, Any], cost: str, timing: dict[str, float]) -> float:
    """What `run` cost; seconds from `timing` (seconds a step by variant) if the variant is in it."""
    axis, _, labels = cost.partition("_with_")
    spent = run[axis]
    if axis == "seconds" and student["name"] in timing and run["curve"]:
        spent = run["curve"][-1]["step"] * timing[student["name"]]
    return spent + (run[f"label_{axis}"] if labels else 0.0)


def against_frontier(setting: dict[str, Any], frontier: Sequence[str], name: str, cost: str) -> dict[str, Any]:
    """`difference`, `ci95`, `n`, `verdict` of the variant `name` at equal `cost`, and `why` there is no figure.

    All seeds of the variant that have a frontier must lie within its range: leaving out some would choose seeds by
    their cost.
    """
    student = find_student(setting, name)
    lengths = [found for found in (find_student(setting, one) for one in frontier) if found is not None]
    if student is None or len(lengths) < 2:
        return _without("not trained here" if student is None else "no frontier of NTP students here")
    timed = all(one["name"] in setting["timing"] for one in (student, *lengths))
    timing = setting["timing"] if timed else {}
    differences = []
    for run in student["runs"]:
        points = [
            (run_cost(one, other, cost, timing), other["test_loss"])
            for one in lengths
            for other in one["runs"]
            if other["seed"] == run["seed"]
        ]
        if len(points) < 2:
            continue
        spent = run_cost(student, run, cost, timing)
        loss = interpolate(points, spent)
        if loss is None:
            return _outside(spent, [point[0] for point in points])
        differences.append(run["test_loss"] - loss)
    if not differences:
        return _without("no seed has a frontier")
    return compared(differences) | {"why": None}


def _outside(spent: float, costs: Sequence[float]) -> dict[str, Any]:
    dearer = spent > max(costs)
    by = spent / (max(costs) if dearer else min(costs))
    end = f"{by:.2f}x the cost of its {'longest' if dearer else 'shortest'} student"
    return _without(f"outside the frontier's range: {end}") | {"range": "dearer" if dearer else "cheaper"}


def _without(why: str) -> dict[str, Any]:
    return estimate([]) | {"verdict": "undecided", "why": why}

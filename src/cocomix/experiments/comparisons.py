"""Comparisons at equal cost, and the best variant at equal tokens, at equal FLOPs and at equal wall clock.

At equal tokens every variant with the baseline's token count is compared with the baseline. At equal FLOPs and equal
wall clock it is compared with the frontier of next-token (NTP) students trained with different lengths, each with its
own complete learning-rate schedule. For each seed their final points give test loss as a function of log cost, by
linear interpolation; a variant's difference is its test loss less the frontier's at the variant's own cost, paired by
seed, and negative is better. Reading one NTP student's curve at its middle would be unfair to NTP: its learning rate
has not fallen there. Loss falls ever more slowly with log cost, so a straight line between two of these points lies a
little above the true frontier: more lengths make a variant's gain smaller and more exact. Nothing is extrapolated: a
variant that costs more than the longest NTP student or less than the shortest has no figure.

Costs: `flops` and `seconds` of training alone; `..._with_labels` adds the one-off cost of making labels in full,
`..._with_shared_labels` the student's part of it (see `cocomix.experiments.charges`). Seconds are steps times the
measured time of a step where every student concerned was timed (in turns, on a quiet machine), else the seconds that
training took.

The reference itself stands in each ranking with a difference of 0: where nothing is better, it wins. The winner is
picked among all variants after the fact, so its own difference flatters it; the words say among how many.
"""

from bisect import bisect_left
from collections.abc import Sequence
from math import log
from typing import Any

from cocomix.report.formats import difference
from cocomix.report.statistics import compared, equal_tokens, estimate, find_student, loss_pairs

AXES = {
    "tokens": "equal tokens",
    "flops": "equal FLOPs",
    "flops_with_shared_labels": "equal FLOPs, labels shared",
    "flops_with_labels": "equal FLOPs, labels included",
    "seconds": "equal wall clock",
    "seconds_with_shared_labels": "equal wall clock, labels shared",
    "seconds_with_labels": "equal wall clock, labels included",
}
"""What is held equal in each ranking."""
LABELS = {"": (), "labels": ("label",), "shared_labels": ("shared_label",)}
"""What of a run is added to its training's cost, by what a cost is `with`."""


def axes(results: dict[str, Any]) -> dict[str, str]:
    """The rankings there are: those of shared labels only where it is known who read them."""
    runs = [run for setting in results["settings"].values() for one in setting["students"] for run in one["runs"]]
    known = all("shared_label_flops" in run for run in runs)
    return {axis: words for axis, words in AXES.items() if known or not axis.endswith("_shared_labels")}


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
    return spent + sum(run[f"{charge}_{axis}"] for charge in LABELS[labels])


def against_frontier(setting: dict[str, Any], frontier: Sequence[str], name: str, cost: str) -> dict[str, Any]:
    """`difference`, `ci95`, `n`, `verdict` of the variant `name` at equal `cost`, and `why` there is no figure.

    All seeds of the variant that have a frontier must lie within its range: leaving out some would choose seeds by
    their cost.
    """
    student = find_student(setting, name)
    lengths = [other for other in (find_student(setting, each) for each in frontier) if other is not None]
    if student is None or len(lengths) < 2:
        return _without("not trained here" if student is None else "no frontier of NTP students here")
    timed = all(each["name"] in setting["timing"] for each in (student, *lengths))
    timing = setting["timing"] if timed else {}
    differences = []
    for run in student["runs"]:
        points = [
            (run_cost(length, other, cost, timing), other["test_loss"])
            for length in lengths
            for other in length["runs"]
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


def best(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """For each setting and axis the `ranking` (best first, unmeasured last), the `winner`, the result in `words`."""
    return {
        name: {axis: _entry(results, setting, axis) for axis in axes(results)}
        for name, setting in results["settings"].items()
    }


def statement(results: dict[str, Any], best_of: dict[str, dict[str, Any]]) -> list[str]:
    """Plain sentences: for each setting and axis the winner, whether that is decided, and where CoCoMix stands."""
    return [
        f"{results['settings'][name]['title']}: at {AXES[axis]}, {entry['words']}"
        for name, axes in best_of.items()
        for axis, entry in axes.items()
    ]


def main_variant(results: dict[str, Any]) -> str:
    """The variant that stands for CoCoMix: the one claim 1, raw or judged, favours."""
    tests = [claim.get("parts") or claim.get("compare") or () for claim in results["claims"] if claim["id"] == 1]
    return next((test["better"] for claim_tests in tests for test in claim_tests), "cocomix")


def _entry(results: dict[str, Any], setting: dict[str, Any], axis: str) -> dict[str, Any]:
    rows = _rows(setting, results["frontier"], axis)
    measured = sorted((row for row in rows if row["difference"] is not None), key=lambda row: row["difference"])
    rest = [row for row in rows if row["difference"] is None]
    measured = measured if len(measured) > 1 else []  # the reference alone is no comparison
    return {
        "ranking": measured + rest,
        "winner": measured[0]["variant"] if measured else None,
        "words": _words(measured, rest, main_variant(results), _reference(setting, axis)),
    }


def _rows(setting: dict[str, Any], frontier: list[str], axis: str) -> list[dict[str, Any]]:
    base, names = setting["baseline"], [student["name"] for student in setting["students"]]
    reference = {"variant": base, "difference": 0.0, "ci95": None, "n": 0, "verdict": "reference", "why": None}
    if axis != "tokens":
        others = [name for name in names if name != base and name not in frontier]
        return [reference] + [{"variant": name} | against_frontier(setting, frontier, name, axis) for name in others]
    others = [name for name in names if name != base and equal_tokens(setting, name)]
    rows = [{"variant": name} | compared(list(loss_pairs(setting, name, base).values())) for name in others]
    return [reference] + [row | {"why": None if row["n"] else "no seed of both is finished"} for row in rows]


def _reference(setting: dict[str, Any], axis: str) -> str:
    return f"{setting['baseline']} of any length" if axis != "tokens" else setting["baseline"]


def _words(measured: list[dict[str, Any]], rest: list[dict[str, Any]], main: str, reference: str) -> str:
    if not measured:
        reasons = list(dict.fromkeys(row["why"] for row in rest if row["why"]))
        return f"nothing can be said ({'; '.join(reasons) or 'no other variant was trained'})."
    among = f"of {len(measured) - 1} variants"
    first = measured[0]
    if first["verdict"] == "reference":
        nearest = measured[1]
        text = f"none {among} beats {reference}; the nearest is {nearest['variant']}, {_figures(nearest)}"
        shown = nearest["variant"]
    else:
        text = f"the best {among} is {first['variant']}, {_figures(first)} against {reference}"
        shown = first["variant"]
    outside = [row["variant"] for row in rest if "range" in row and row["variant"] != main]
    if outside:
        text += f" (out of the frontier's range: {', '.join(outside)})"
    if main == shown:
        return text + "."
    row = next((row for row in measured + rest if row["variant"] == main), None)
    if row is None:
        return text + "."
    return f"{text}; {main} itself: {_figures(row) if row['difference'] is not None else row['why']}."


def _figures(row: dict[str, Any]) -> str:
    decided = {
        "better": "lower beyond the spread of seeds",
        "worse": "higher beyond the spread of seeds",
        "undecided": "not decided by " + ("one seed" if row["n"] == 1 else f"{row['n']} seeds"),
    }[row["verdict"]]
    return f"{difference(row)} nats ({decided})"

"""What the raw figures say: means with confidence intervals, paired differences, cost to the same perplexity."""

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

STUDENT_T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045),
)
"""0.975 quantiles of Student's t for 1 to 29 degrees of freedom; beyond, the last one, a little wide."""


def summary(values: Sequence[float]) -> dict[str, Any]:
    """`mean`, `sd`, `n` and `ci95` (half width, Student's t); sd and ci95 are None for a single value."""
    n = len(values)
    if n < 2:
        return {"mean": values[0] if n else math.nan, "sd": None, "ci95": None, "n": n}
    t = STUDENT_T_975[min(n - 2, len(STUDENT_T_975) - 1)]
    sd = stdev(values)
    return {"mean": mean(values), "sd": sd, "ci95": t * sd / math.sqrt(n), "n": n}


def pairs(student: dict[str, Any], other: dict[str, Any], figure: str) -> dict[int, float]:
    """`student - other` of a per-run figure for every seed that both have."""
    theirs = {run["seed"]: run[figure] for run in other["runs"]}
    return {run["seed"]: run[figure] - theirs[run["seed"]] for run in student["runs"] if run["seed"] in theirs}


def paired_difference(student: dict[str, Any], other: dict[str, Any], figure: str) -> dict[str, Any]:
    """Difference `student - other` of a per-run figure, paired by seed; negative is better for perplexity.

    The verdict is `undecided` for a single seed and wherever the interval holds 0.
    """
    stats = summary(list(pairs(student, other, figure).values()))
    half = stats["ci95"]
    decided = half is not None and abs(stats["mean"]) > half
    verdict = ("better" if stats["mean"] < 0 else "worse") if decided else "undecided"
    return stats | {"verdict": verdict}


def cost_to_reach(curve: Sequence[dict[str, Any]], target: float, axis: str) -> float | None:
    """Where on `axis` a curve's validation perplexity first falls to `target` (interpolated); None if never."""
    before: dict[str, Any] | None = None
    for point in curve:
        if point["val_perplexity"] <= target:
            if before is None:
                return point[axis]
            share = (before["val_perplexity"] - target) / (before["val_perplexity"] - point["val_perplexity"])
            return before[axis] + share * (point[axis] - before[axis])
        before = point
    return None


def same_perplexity(student: dict[str, Any], baseline: dict[str, Any]) -> dict[str, Any]:
    """Cost at which each seed of `student` reaches the same seed's final perplexity of `baseline`.

    Ratios to the baseline's whole cost: `tokens`, `flops`, `seconds` for training alone, and `flops_with_labels`,
    `seconds_with_labels` with the labels' cost added. None where a seed never gets there.
    """
    rows = []
    for run in student["runs"]:
        base = next((other for other in baseline["runs"] if other["seed"] == run["seed"]), None)
        if base is None or not base["curve"]:
            continue
        target, row = base["curve"][-1]["val_perplexity"], {}
        for axis in ("tokens", "flops", "seconds"):
            reached = cost_to_reach(run["curve"], target, axis)
            row[axis] = None if reached is None else reached / base[axis]
            if axis != "tokens":
                label = run.get(f"label_{axis}") or 0.0
                row[f"{axis}_with_labels"] = None if reached is None else (reached + label) / base[axis]
        rows.append(row)
    names = ("tokens", "flops", "seconds", "flops_with_labels", "seconds_with_labels")
    return {
        name: mean(row[name] for row in rows) if rows and all(row[name] is not None for row in rows) else None
        for name in names
    } | {"reached": sum(row["tokens"] is not None for row in rows), "seeds": len(rows)}


def derive(results: dict[str, Any]) -> dict[str, Any]:
    """Everything computed from the raw results, per student."""
    students = {student["name"]: student for student in results["students"]}
    baseline = students[results["baseline"]]
    references = {name: student for name, student in students.items() if student["objective"] == "ntp"}
    derived = {}
    for name, student in students.items():
        figures: dict[str, Any] = {
            figure: summary([run[figure] for run in student["runs"]])
            for figure in ("val_perplexity", "test_perplexity", "seconds", "flops", "tokens")
        }
        recalls = [run["recall"] for run in student["runs"] if run.get("recall") is not None]
        figures["recall"] = summary(recalls) if recalls else None
        others = {other: reference for other, reference in references.items() if other != name}
        figures["difference"] = {
            other: {
                figure: paired_difference(student, reference, figure)
                for figure in ("val_perplexity", "test_perplexity")
            }
            for other, reference in others.items()
        }
        figures["to_same_perplexity"] = {
            other: same_perplexity(student, reference) for other, reference in others.items()
        }
        derived[name] = figures
    return {"students": derived, "baseline": baseline["name"]}


# The headline in plain words, whichever way it came out.


def headline(results: dict[str, Any], derived: dict[str, Any]) -> list[str]:
    """One sentence for each concept student and each next-token student it is compared with."""
    sentences = []
    labels = {student["name"]: student for student in results["students"]}
    for name, student in labels.items():
        if student["objective"] == "ntp":
            continue
        for other, difference in derived["students"][name]["difference"].items():
            sentences.append(_compare(name, other, labels, derived, difference["test_perplexity"]))
    return sentences


def held_equal(student: dict[str, Any], other: dict[str, Any]) -> str:
    """What a comparison of two students holds equal besides tokens, read off the models themselves."""
    if student["width"] == other["width"]:
        return "equal width"
    ours, theirs = student["parameters"], other["parameters"]
    share = abs(ours - theirs) / max(ours, theirs)
    return f"equal parameters (within {max(share, 0.001):.1%})" if share < 0.1 else "unequal width and parameters"


def _compare(
    name: str, other: str, students: dict[str, Any], derived: dict[str, Any], difference: dict[str, Any]
) -> str:
    ours = derived["students"][name]["test_perplexity"]["mean"]
    theirs = derived["students"][other]["test_perplexity"]["mean"]
    equal = held_equal(students[name], students[other])
    word = "lower" if difference["mean"] < 0 else "higher"
    spread = "" if difference["ci95"] is None else f" ± {difference['ci95']:.2f}"
    verdict = {
        "better": "a gain beyond the spread of seeds",
        "worse": "a loss beyond the spread of seeds",
        "undecided": "not decided by " + ("one seed" if difference["n"] == 1 else f"these {difference['n']} seeds"),
    }[difference["verdict"]]
    cost = derived["students"][name]["to_same_perplexity"][other]
    if cost["tokens"] is None:
        reach = f"It reached {other}'s final validation perplexity in {cost['reached']} of {cost['seeds']} runs."
    else:
        reach = (
            f"It reached {other}'s final validation perplexity with {cost['tokens']:.2f}x the tokens,"
            f" {cost['flops_with_labels']:.2f}x the FLOPs and {cost['seconds_with_labels']:.2f}x the seconds,"
            " labels included."
        )
    return (
        f"At equal tokens and {equal}, {name} has test perplexity {ours:.1f} against {theirs:.1f} of {other}:"
        f" {abs(difference['mean']):.2f}{spread} {word}, {verdict}. {reach}"
    )

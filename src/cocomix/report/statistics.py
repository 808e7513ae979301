"""What the raw figures say: means with confidence intervals, paired differences, cost to the same perplexity.

`better` against `than` is a difference in test loss (nats a token), one figure for each seed both students have. Losses
are additive over corpora and may be pooled; perplexities are not, and are only ever given as a change in percent.
"""

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from scipy import special

CONFIDENCE = 0.95


def summary(values: Sequence[float]) -> dict[str, Any]:
    """`mean`, `sd`, `n` and `ci95` (half width, Student's t); sd and ci95 are None for a single value."""
    n = len(values)
    if n < 2:
        return {"mean": values[0] if n else math.nan, "sd": None, "ci95": None, "n": n}
    sd = stdev(values)
    return {"mean": mean(values), "sd": sd, "ci95": t_quantile(n - 1) * sd / math.sqrt(n), "n": n}


def t_quantile(degrees: float) -> float:
    """The 0.975 quantile of Student's t: half the width of a 95 % interval, in standard errors of the mean."""
    return float(special.stdtrit(degrees, (1 + CONFIDENCE) / 2))


def t_tail(value: float, degrees: float) -> float:
    """The share of Student's t above `value`."""
    return float(special.stdtr(degrees, -value))


def pairs(student: dict[str, Any], other: dict[str, Any], figure: str) -> dict[int, float]:
    """`student - other` of a per-run figure for every seed that both have."""
    by_seed = {run["seed"]: run[figure] for run in other["runs"]}
    return {run["seed"]: run[figure] - by_seed[run["seed"]] for run in student["runs"] if run["seed"] in by_seed}


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
        for figure in ("val_bits_per_byte", "test_bits_per_byte"):  # runs of earlier versions have none
            known = [run[figure] for run in student["runs"] if run.get(figure) is not None]
            if len(known) == len(student["runs"]):
                figures[figure] = summary(known)
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


def find_student(setting: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The student called `name`, or None if this setting does not train it or has not yet."""
    return next((student for student in setting["students"] if student["name"] == name and student["runs"]), None)


def loss_pairs(setting: dict[str, Any], better: str, than: str) -> dict[int, float]:
    """Difference in test loss by seed; empty where either student is missing."""
    ours, theirs = find_student(setting, better), find_student(setting, than)
    return {} if ours is None or theirs is None else pairs(ours, theirs, "test_loss")


def estimate(values: Sequence[float]) -> dict[str, Any]:
    """`difference` (mean), `ci95` ([low, high], Student's t; None for fewer than two values) and `n`."""
    stats = summary(values)
    half = stats["ci95"]
    middle = stats["mean"] if values else None
    return {
        "difference": middle,
        "ci95": None if half is None else [stats["mean"] - half, stats["mean"] + half],
        "n": stats["n"],
    }


def compared(values: Sequence[float]) -> dict[str, Any]:
    """`estimate` with a `verdict` for a loss: `better` or `worse` if the interval lies on one side of 0."""
    stats = estimate(values)
    low, high = stats["ci95"] or (0.0, 0.0)
    return stats | {"verdict": "better" if high < 0 else "worse" if low > 0 else "undecided"}


def equal_tokens(setting: dict[str, Any], name: str) -> bool:
    """Whether the variant was trained on as many tokens as the setting's baseline."""
    ours, base = find_student(setting, name), find_student(setting, setting["baseline"])
    return ours is not None and base is not None and ours["runs"][0]["tokens"] == base["runs"][0]["tokens"]


def headline(results: dict[str, Any], derived: dict[str, Any]) -> list[str]:
    """The result in plain words: a sentence for each concept student and next-token student it is compared with."""
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

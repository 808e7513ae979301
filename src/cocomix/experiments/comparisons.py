"""Paired differences with their intervals: what every comparison of an experiment is made of.

A difference is `better - than` in test loss (nats per token), one figure for each seed both students have. Losses
are additive over corpora and may be pooled; perplexities are not, and are only ever given as a change in percent.
"""

from collections.abc import Sequence
from typing import Any

from cocomix.report.statistics import pairs, summary


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


def in_words(stats: dict[str, Any], digits: int = 4) -> str:
    """`-0.0123 [-0.0200, -0.0046]`."""
    if stats["difference"] is None:
        return "not measured"
    text = f"{stats['difference']:+.{digits}f}"
    if stats["ci95"] is None:
        return text + " (no interval)"
    low, high = stats["ci95"]
    return f"{text} [{low:+.{digits}f}, {high:+.{digits}f}]"

"""Rows of the variants' table, and the two CSV files."""

import csv
import io
from collections.abc import Callable, Iterable
from statistics import mean
from typing import Any

from cocomix.experiments.comparisons import compared, estimate, find_student, loss_pairs
from cocomix.report.statistics import same_perplexity


def variant_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each setting and variant; what was not measured is None.

    Perplexities, tokens, FLOPs and seconds are means over seeds; `vs_baseline` is the paired difference in test loss
    (nats per token); `..._ratio` and `..._to_baseline` are multiples of the baseline's.
    """
    return [
        _row(name, setting, student)
        for name, setting in results["settings"].items()
        for student in setting["students"]
        if student["runs"]
    ]


def _row(name: str, setting: dict[str, Any], student: dict[str, Any]) -> dict[str, Any]:
    base, runs, timing = find_student(setting, setting["baseline"]), student["runs"], setting["timing"]
    other = None if base is None or base is student else base
    difference = compared(list(loss_pairs(setting, student["name"], base["name"]).values()) if other and base else [])
    reach = same_perplexity(student, other) if other else {}
    step, base_step = timing.get(student["name"]), timing.get(setting["baseline"])

    def average(figure: str) -> float | None:
        values = [run[figure] for run in runs if run.get(figure) is not None]
        return mean(values) if values else None

    return {
        "setting": name,
        "variant": student["name"],
        "about": student.get("about") or "",
        "objective": student["objective"],
        "label_rule": student["label_rule"],
        "width": student["width"],
        "parameters": student["parameters"],
        "seeds": len(runs),
        "val_perplexity": average("val_perplexity"),
        "test_perplexity": average("test_perplexity"),
        "test_ci95": estimate([run["test_perplexity"] for run in runs])["ci95"],
        "vs_baseline": difference["difference"],
        "vs_baseline_ci95": difference["ci95"],
        "vs_baseline_verdict": difference["verdict"] if other else "reference",
        "recall": average("recall"),
        "recall_baseline": average("recall_baseline"),
        "tokens": average("tokens"),
        "flops": average("flops"),
        "label_flops": average("label_flops"),
        "seconds": average("seconds"),
        "label_seconds": average("label_seconds"),
        "seconds_per_step": step,
        "step_ratio": step / base_step if step and base_step else None,
        "flops_ratio": student["flops_per_token"] / base["flops_per_token"] if base else None,
        "tokens_to_baseline": reach.get("tokens"),
        "flops_to_baseline": reach.get("flops"),
        "seconds_to_baseline": reach.get("seconds"),
        "flops_to_baseline_with_labels": reach.get("flops_with_labels"),
        "seconds_to_baseline_with_labels": reach.get("seconds_with_labels"),
        "reached_baseline": reach.get("reached"),
    }


def variants_csv(rows: list[dict[str, Any]]) -> str:
    """The variants' table; an interval is two columns, what is missing an empty cell."""
    return _csv(map(_flat, rows))


def claims_csv(claims: list[dict[str, Any]]) -> str:
    """One line for each claim, without its parts."""
    return _csv(
        _flat({key: _TEXT.get(key, _same)(value) for key, value in claim.items() if key != "parts"}) for claim in claims
    )


def _same(value: Any) -> Any:
    return value


_TEXT: dict[str, Callable[[Any], Any]] = {"corpora": " ".join}


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if key.endswith("ci95"):
            flat[f"{key}_low"], flat[f"{key}_high"] = value or (None, None)
        else:
            flat[key] = value
    return flat


def _csv(rows: Iterable[dict[str, Any]]) -> str:
    rows, stream = list(rows), io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()

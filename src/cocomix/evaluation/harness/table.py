"""The harness's results as rows and as a small table."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table


class Metric(NamedTuple):
    """One figure of one task."""

    task: str
    metric: str
    """as the harness calls it, with its filter where that is not "none", e.g. `acc` or `exact_match,strict-match`"""
    value: float
    stderr: float | None
    """the harness's standard error; None where it has none"""
    higher_is_better: bool | None


def metrics(results: dict[str, Any]) -> list[Metric]:
    """Every figure in results of the harness, tasks in its order."""
    out = []
    for task, figures in results["results"].items():
        better = results.get("higher_is_better", {}).get(task, {})
        for key, value in figures.items():
            name, _, filtered = key.partition(",")
            if not filtered or name.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = figures.get(f"{name}_stderr,{filtered}")
            shown = name if filtered == "none" else key
            known = float(error) if isinstance(error, int | float) else None
            out.append(Metric(task, shown, float(value), known, better.get(name)))
    return out


def results_table(rows: Iterable[tuple[str, str, Metric]]) -> Table:
    """A table of (model, seed, metric) rows."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("task", "metric", "model", "seed", "value"):
        table.add_column(heading, justify="right" if heading == "value" else "left", overflow="fold")
    for model, seed, one in rows:
        arrow = {True: " ↑", False: " ↓", None: ""}[one.higher_is_better]
        error = "" if one.stderr is None else f" ± {one.stderr:.4f}"
        table.add_row(one.task, one.metric + arrow, model, seed, f"{one.value:.4f}{error}")
    return table

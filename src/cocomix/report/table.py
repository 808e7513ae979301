"""The results table, for the terminal and for Markdown."""

from typing import Any

from rich.table import Table

from cocomix.report.statistics import derive
from cocomix.report.wording import headline

COLUMNS = (
    "student",
    "width",
    "parameters",
    "val ppl",
    "test ppl",
    "vs baseline",
    "train s",
    "PFLOP",
    "tokens to same ppl",
    "recall",
)


def rows(results: dict[str, Any]) -> list[list[str]]:
    """The table's cells, one list a student, in the order of `COLUMNS`."""
    derived = derive(results)
    out = []
    for student in results["students"]:
        name, figures = student["name"], derived["students"][student["name"]]
        difference = figures["difference"].get(results["baseline"])
        reach = figures["to_same_perplexity"].get(results["baseline"])
        recall = figures["recall"]
        out.append(
            [
                name + (f" ({student['label_rule']})" if student.get("label_rule") else ""),
                str(student["width"]),
                f"{student['parameters'] / 1e6:.2f}M",
                spread(figures["val_perplexity"]),
                spread(figures["test_perplexity"]),
                "" if difference is None else signed(difference["test_perplexity"]),
                f"{figures['seconds']['mean']:.0f}",
                f"{figures['flops']['mean'] / 1e15:.3f}",
                "" if reach is None else ("never" if reach["tokens"] is None else f"{reach['tokens']:.2f}x"),
                "" if recall is None else f"{recall['mean']:.3f}",
            ]
        )
    return out


def spread(stats: dict[str, Any]) -> str:
    """`93.1 ± 0.4`, with the 95 % interval where there is one."""
    half = stats["ci95"]
    return f"{stats['mean']:.2f}" + ("" if half is None else f" ± {half:.2f}")


def signed(stats: dict[str, Any]) -> str:
    """A difference with sign, interval and verdict."""
    half = stats["ci95"]
    return f"{stats['mean']:+.2f}" + ("" if half is None else f" ± {half:.2f} {stats['verdict']}")


def summary_table(results: dict[str, Any]) -> Table:
    """One screen for the terminal."""
    seeds = len(results["students"][0]["runs"])
    table = Table(
        title=results["title"],
        caption=" ".join(headline(results, derive(results))),
        caption_justify="left",
        title_style="bold",
    )
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "student" else "right")
    for row in rows(results):
        table.add_row(*row)
    table.caption = f"{seeds} seed{'s' if seeds > 1 else ''}; ± is the 95 % interval. {table.caption}"
    return table


def markdown_table(results: dict[str, Any]) -> str:
    """The same table in Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(row) + " |" for row in rows(results)]
    return "\n".join(lines)

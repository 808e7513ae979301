"""The results table, for the page and for the terminal."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from cocomix.report.statistics import derive, headline

COLUMNS: tuple[str, ...] = (
    "student",
    "width",
    "parameters",
    "val ppl",
    "test ppl",
    "vs baseline",
    "train s",
    "PFLOP",
    "tokens",
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
                name,
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
    """A difference with sign and interval."""
    half = stats["ci95"]
    return f"{stats['mean']:+.2f}" + ("" if half is None else f" ± {half:.2f}")


TERMINAL = {
    "student": "student",
    "parameters": "params",
    "test ppl": "test ppl",
    "vs baseline": "vs base",
    "tokens": "tokens",
    "train s": "train s",
    "recall": "recall",
}
"""The columns that fit 80 characters, and their short headings there."""


def summary_table(results: dict[str, Any]) -> Group:
    """One screen for the terminal: the table, then the result in words."""
    seeds = len(results["students"][0]["runs"])
    table = Table(title=results["title"], title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in TERMINAL.values():
        table.add_column(
            heading, justify="left" if heading == "student" else "right", no_wrap=heading != "student", overflow="fold"
        )
    for row in rows(results):
        cells: dict[str, str] = dict(zip(COLUMNS, row, strict=True))
        cells["test ppl"] = cells["test ppl"].partition(" ")[0]  # its interval is on the page; paired ones say more
        table.add_row(*(cells[column] for column in TERMINAL))
    note = (
        f"{seeds} seed{'s' if seeds > 1 else ''}. vs base: difference in test perplexity from {results['baseline']},"
        " ± the 95 % interval paired by seed. tokens: share of them that reached its final validation perplexity."
    )
    return Group(table, Text(note, style="dim"), *(Text(sentence) for sentence in headline(results, derive(results))))

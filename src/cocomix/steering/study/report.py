"""The summary table, for the page and for the terminal."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from cocomix.steering.study.method_result import GAINS
from cocomix.steering.study.wording import BY, between, percent

COLUMNS = (
    "method",
    "area, SAE",
    "area, tokens",
    "area, next",
    "best dose",
    "gain, SAE",
    "gain, tokens",
    "gain, next",
    "nats lost",
    "distinct-2",
    "repeated-4",
    "leak",
)
TERMINAL = {
    "method": "method",
    "area, SAE": "area, SAE",
    "area, tokens": "area, tokens",
    "area, next": "area, next",
    "best dose": "dose",
    "gain, SAE": "gain",
    "nats lost": "nats",
}
"""The columns that fit 80 characters, and their short headings there."""


def rows(report: dict[str, Any]) -> list[list[str]]:
    """The table's cells, one list a method, in the order of `COLUMNS`."""
    return [[name, *_cells(one)] for name, one in report["methods"].items()]


def _cells(one: dict[str, Any]) -> list[str]:
    areas = [between(one["area"][gain]) for gain in GAINS]
    at = next((dose for dose in one["doses"] if dose["dose"] == one["best"]), None)
    if at is None:
        return [*areas, *["–"] * (len(COLUMNS) - 1 - len(areas))]
    gains = [between(at[gain]) for gain in GAINS]
    rest = [f"{at[figure]['mean']:.2f}" for figure in ("distinct2", "repeated4", "leak")]
    return [*areas, f"{at['dose']:g}", *gains, f"{at['fluency_loss']['mean']:+.2f}", *rest]


def legend(report: dict[str, Any]) -> str:
    """What the columns of gains are."""
    subjects = {one["subject"]: one["unsteered"] for one in report["methods"].values()}
    base = "; ".join(
        f"{subject}: " + ", ".join(f"{percent(found[gain])} {BY[gain]}" for gain in GAINS)
        for subject, found in subjects.items()
    )
    return (
        "Gains are generated positions of 100 that carry the concept, more than unsteered, with 95 % intervals: SAE, by"
        " the teacher's SAE; tokens, by tokens that distinguish the concept; next, by tokens that distinguish what"
        " follows it. area: mean of the best gain over all fluency budgets from 0 to"
        f" {report['bound']:g} nat a token. best dose: the one of the largest gain by the SAE within that budget, and"
        f" what it does. Unsteered text has it at, of 100 positions, {base}."
    )


def costs_legend(report: dict[str, Any]) -> str:
    """What the columns of costs are."""
    floor = report["methods"].get("none")
    leak = "" if floor is None else f"; {floor['doses'][0]['leak']['mean']:.2f} for a second unsteered sample"
    return (
        "nats lost: a token, under the independent model. distinct-2: different pairs of tokens, as a share of all in a"
        " text. repeated-4: share of 4-grams that came before in their text. leak: how far all other concepts move, as"
        f" a share of what they are{leak}."
    )


def steering_table(report: dict[str, Any]) -> Group:
    """Table, legend and headline for a terminal."""
    table = Table(title=report["title"], title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column, heading in TERMINAL.items():
        table.add_column(heading, justify="left" if column == "method" else "right", no_wrap=True)
    for row in rows(report):
        cells: dict[str, str] = dict(zip(COLUMNS, row, strict=True))
        cells["gain, SAE"] = cells["gain, SAE"].partition(" ")[0]  # its interval is on the page
        table.add_row(*(Text(cells[column].replace(" to ", "–")) for column in TERMINAL))
    return Group(table, Text(legend(report), style="dim"), *(Text(one) for one in report["headline"]))

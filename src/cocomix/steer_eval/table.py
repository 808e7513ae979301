"""The summary table, for the page and for the terminal."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from cocomix.steer_eval.wording import between, percent

COLUMNS = (
    "method",
    "area, SAE",
    "area, tokens",
    "best dose",
    "gain, SAE",
    "gain, tokens",
    "nats lost",
    "distinct-2",
    "repeated-4",
    "leak",
)
TERMINAL = {
    "method": "method",
    "area, SAE": "area, SAE",
    "area, tokens": "area, tokens",
    "best dose": "dose",
    "gain, SAE": "gain",
    "nats lost": "nats",
    "repeated-4": "rep-4",
    "leak": "leak",
}
"""The columns that fit 80 characters, and their short headings there."""


def rows(report: dict[str, Any]) -> list[list[str]]:
    """The table's cells, one list a method, in the order of `COLUMNS`."""
    return [[name, *_cells(one)] for name, one in report["methods"].items()]


def _cells(one: dict[str, Any]) -> list[str]:
    areas = [between(one["area"][gain]) for gain in ("presence", "words")]
    at = next((dose for dose in one["doses"] if dose["dose"] == one["best"]), None)
    if at is None:
        return [*areas, *["–"] * (len(COLUMNS) - 3)]
    gains = [between(at[gain]) for gain in ("presence", "words")]
    rest = [f"{at[figure]['mean']:.2f}" for figure in ("distinct2", "repeated4", "leak")]
    return [*areas, f"{at['dose']:g}", *gains, f"{at['fluency_loss']['mean']:+.2f}", *rest]


def legend(report: dict[str, Any]) -> str:
    """What the columns are."""
    floor = report["methods"].get("none")
    leak = "" if floor is None else f" ({floor['doses'][0]['leak']['mean']:.2f} for a second unsteered sample)"
    base = "".join(
        f" {name}: {percent(one['unsteered']['presence'])} by the SAE, {percent(one['unsteered']['words'])} by tokens,"
        f" distinct-2 {one['unsteered']['distinct2']:.2f}."
        for name, one in report["methods"].items()
        if one["subject"] != "student" or name == "none"
    )
    return (
        "Gains are positions of 100 that carry the concept, more than unsteered, with 95 % intervals. area: mean of the"
        f" best gain over fluency budgets from 0 to {report['bound']:g} nat a token. best dose: of those within that"
        f" budget, and what it does; repeated-4: share of 4-grams that came before in their text; leak: how"
        f" far all other concepts move, as a share of what they are{leak}."
        f" Unsteered:{base}"
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

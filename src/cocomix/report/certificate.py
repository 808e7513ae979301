"""The table "does the channel matter": what a student loses when its vector is replaced, beside trained controls.

All figures are losses on validation text, nats a token. A variant's difference is measured on the evaluation's channel
windows and its interval is over these. Of several seeds it is the mean, with the mean of their intervals, which is at
least as wide as the interval of the mean: the seeds share their windows. A control is another student; its difference
is over the whole validation split, paired by seed, with an interval over seeds.
"""

from collections.abc import Sequence
from statistics import mean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from cocomix.report.statistics import estimate, find_student, pairs

VARIANTS = {"zero": "zeroed", "shuffled": "shuffled", "mean": "mean", "labels": "labels'"}
CONTROLS = {"random": "random labels", "hash": "token hashes", "mlp": "MLP"}
CERTIFICATE_COLUMNS = ("student", "loss", *VARIANTS.values(), *CONTROLS.values(), "reading")
SMALL = 0.1
"""A cost of shuffling below this share of the cost of zeros is called hardly about the text."""

LEGEND = (
    "Nats a token that are lost when the vector is zeroed, another window's (shuffled) or the mean of all, or when the"
    " labels' concepts are mixed in instead of those predicted; then the loss of a student that was trained on random"
    " labels, on hashes of the current token or with an MLP in the channel's place, less this student's. Positive: this"
    " student is better as it is. Validation text; ± is half a 95 % interval, over windows for the first four and over"
    " seeds for the controls; –: not measured, or no such student."
)


def certificate_rows(students: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each student that mixes a vector in.

    Returns:
        `student`, `seeds` (measured), `windows`, `loss`, and for each of `VARIANTS` and `CONTROLS` None or
        `difference` with `ci95`; controls with the name of the student as `control`, too.
    """
    rows = []
    for student in students:
        measured = [run["channel"] for run in student["runs"] if run.get("channel")]
        if not measured and not student.get("mixes_vector"):
            continue
        row: dict[str, Any] = {
            "student": student["name"],
            "seeds": len(measured),
            "windows": measured[0]["windows"] if measured else None,
            "loss": mean(one["loss"] for one in measured) if measured else None,
        }
        row |= {name: _over_seeds([one["variants"].get(name) for one in measured]) for name in VARIANTS}
        row |= {kind: _against(student, (student.get("controls") or {}).get(kind), students) for kind in CONTROLS}
        rows.append(row)
    return rows


def _over_seeds(variants: list[dict[str, Any] | None]) -> dict[str, Any] | None:
    known = [one for one in variants if one is not None]
    if not known or len(known) < len(variants):
        return None
    ci95 = [mean(one["ci95"][end] for one in known) for end in (0, 1)]
    return {"difference": mean(one["difference"] for one in known), "ci95": ci95}


def _against(student: dict[str, Any], name: str | None, students: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    control = None if name is None else find_student({"students": students}, name)
    if control is None:
        return None
    ours, theirs = (
        {"runs": [run for run in one["runs"] if run.get("val_loss") is not None]} for one in (student, control)
    )
    differences = list(pairs(theirs, ours, "val_loss").values())
    return {"control": name} | estimate(differences) if differences else None


def is_known(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether any student's vector was replaced; evaluations of earlier versions did not."""
    return any(row["loss"] is not None for row in rows)


def reading(row: dict[str, Any]) -> str:
    """What a row's first columns say, in a few words."""
    zero, shuffled = row["zero"], row["shuffled"]
    if zero is None or shuffled is None:
        return "–"
    if zero["ci95"][0] <= 0:
        return "no use seen"
    if shuffled["ci95"][0] <= 0:
        return "used, not for the text"
    return "used, hardly for the text" if shuffled["difference"] < SMALL * zero["difference"] else "used for the text"


def certificate_cells(row: dict[str, Any]) -> list[str]:
    """A row as text, in the order of `CERTIFICATE_COLUMNS`."""
    figures = [_cell(row[name]) for name in (*VARIANTS, *CONTROLS)]
    return [row["student"], "–" if row["loss"] is None else f"{row['loss']:.4f}", *figures, reading(row)]


def _cell(stats: dict[str, Any] | None) -> str:
    if stats is None:
        return "–"
    text = f"{stats['difference']:+.4f}"
    return (
        text if stats["ci95"] is None else f"{text} ±\N{NO-BREAK SPACE}{(stats['ci95'][1] - stats['ci95'][0]) / 2:.4f}"
    )


def certificate_table(title: str, rows: Sequence[dict[str, Any]]) -> Group:
    """The table for the terminal, 80 columns: a line for each student and what stands in its vector's place."""
    table = Table(title=title, title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("student", overflow="fold")
    table.add_column("in the vector's place")
    table.add_column("nats a token", justify="right")
    for number, row in enumerate(rows):
        cells = dict(zip(CERTIFICATE_COLUMNS, certificate_cells(row), strict=True))
        if number:
            table.add_section()
        table.add_row(Text(row["student"]), "nothing else, loss", Text(cells["loss"]))
        for name in (*VARIANTS.values(), *CONTROLS.values()):
            table.add_row("", Text(name), Text(cells[name]))
        table.add_row("", "", Text(cells["reading"]))
    return Group(table, Text(LEGEND, style="dim"))

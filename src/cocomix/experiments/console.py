"""An experiment's result for the terminal, at most 100 columns: claims with verdicts, then the best variants."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.table import Table
from rich.text import Text

from cocomix.experiments.best import AXES, best, main_variant
from cocomix.experiments.claims import judge_claims
from cocomix.experiments.comparisons import in_words

WIDTH = 100
STYLES = {"reproduced": "bold blue", "not reproduced": "bold yellow", "undecided": "dim"}


def console_summary(results: dict[str, Any]) -> RenderableType:
    """The nine claims with verdicts, then for each setting the best variant at equal tokens, FLOPs and wall clock.

    Args:
        results: the raw results, or what `write_experiment_report` returned.
    """
    complete = "statement" in results
    claims = results["claims"] if complete else judge_claims(results)
    ranked = results["best"] if complete else best(results)
    table = _table(results["title"])
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("claim", overflow="fold")
    table.add_column("difference [95 %]", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for claim in claims:
        figures = "" if claim["difference"] is None else in_words(claim, 3)
        verdict = Text(claim["verdict"], style=STYLES[claim["verdict"]])
        table.add_row(str(claim["id"]), Text(claim["statement"]), figures, verdict)
    note = (
        "Differences in test loss, nats a token, negative is better; claim 9: share of positions, positive is better."
    )
    settings = [_setting(results, name, axes) for name, axes in ranked.items()]
    return Constrain(Group(table, Text(note, style="dim"), *settings), WIDTH)


def _setting(results: dict[str, Any], name: str, axes: dict[str, Any]) -> Table:
    """The winner of each ranking, its difference, and where CoCoMix stands."""
    main = main_variant(results)
    table = _table(results["settings"][name]["title"])
    table.add_column("", overflow="fold")
    table.add_column("best variant", overflow="fold")
    table.add_column("difference [95 %]", no_wrap=True)
    table.add_column(f"{main} [95 %]", overflow="fold")
    for axis, entry in axes.items():
        rows = {row["variant"]: row for row in entry["ranking"]}
        cells = [_cell(rows.get(variant)) for variant in (entry["winner"], main)]
        table.add_row(AXES[axis], Text(entry["winner"] or "–"), *cells)
    return table


def _cell(row: dict[str, Any] | None) -> str:
    if row is None or row["verdict"] == "reference":
        return "–" if row is None else "0 (reference)"
    return row.get("range") or in_words(row, 3)


def _table(title: str) -> Table:
    return Table(
        title=Text(title), title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, expand=True
    )

"""Findings as a table for a terminal."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cocomix.doctor_check import Finding, State

COLOURS = {State.FINE: "green", State.NOTE: "yellow", State.FIX: "red"}


def print_findings(findings: Iterable[Finding], console: Console) -> bool:
    """Print a table and one line of summary; returns whether nothing must be mended."""
    table = Table("", box=None, pad_edge=False)
    for name in ("what", "found", "what to do"):
        table.add_column(name, overflow="fold")
    to_fix = 0
    for one in findings:
        to_fix += one.state is State.FIX
        mark = Text(one.state.value, style=COLOURS[one.state])
        table.add_row(mark, Text(one.what), Text(one.found), Text(one.mend))
    console.print(table)
    said = f"{to_fix} to be mended" if to_fix else "Nothing must be mended"
    console.print(f"{said}.", style=COLOURS[State.FIX if to_fix else State.FINE], highlight=False)
    return to_fix == 0

"""What is printed: the contestants of a group as soon as it is measured, and the ratios."""

from collections.abc import Mapping
from statistics import median
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.speed.keys import BAR_SHAPE, KEYS, bar_of


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def contestants_table(title: str, raw: Mapping[str, Any], shares: Mapping[str, Any]) -> Table:
    """Seconds of one group's contestants; `shares` of the machine's peak by name."""
    unit = next((about["unit"] for about in raw["contestants"].values()), "unit")
    table = _table(title, "", "median s", "spread s", f"{unit}s/s", "of peak", "")
    for name, about in raw["contestants"].items():
        runs = about["seconds"]
        table.add_row(
            name,
            f"{median(runs):.3f}",
            f"{min(runs):.2f}–{max(runs):.2f}",
            f"{about['units'] / median(runs):,.1f}",
            f"{shares[name]['value']:.0%}" if name in shares else "",
            about["note"],
        )
    for name, reason in raw["missing"].items():
        table.add_row(name, "–", "", "", "", reason)
    return table


def memory_table(title: str, raw: Mapping[str, Any]) -> Table:
    """Peak memory of each student."""
    table = _table(title, "", "step, GiB", "forward and backward, GiB", "before, GiB")
    for name, found in raw["bytes"].items():
        kinds = ("step", "forward_backward", "before")
        table.add_row(name, *(f"{median(found[kind]) / 2**30:.2f}" for kind in kinds))
    return table


def slopes_table(title: str, slopes: Mapping[str, Mapping[str, float]]) -> Table:
    """Log-log slopes by axis."""
    names = list(next(iter(slopes.values()), {}))
    table = _table(title, "seconds grow as axis^", *names)
    for axis, found in slopes.items():
        table.add_row(axis, *(f"{found[name]:.2f}" for name in names))
    return table


def gpu_table(title: str, found: Mapping[str, Mapping[str, float]]) -> Table:
    """Sizes on a GPU."""
    table = _table(title, "", "tokens/s", "MFU", "peak GiB")
    for name, one in found.items():
        table.add_row(name, f"{one['tokens_per_second']:,.0f}", f"{one['mfu']:.1%}", f"{one['peak_bytes'] / 2**30:.2f}")
    return table


def ratios_table(found: Mapping[str, Mapping[str, Any]], *, shape: str, device: str) -> Table:
    """The ratios that are there; bars only where they are meant."""
    barred = shape == BAR_SHAPE and device == "cpu"
    table = _table(f"Ratios at {shape} on {device}", "", "median", "spread", "runs", *(("bar", "") if barred else ()))
    for name, one in found.items():
        low, high = one["spread"]
        row = [KEYS[name].title, f"{one['value']:.2f}", f"{low:.2f}–{high:.2f}", str(len(one["runs"]))]
        if barred:
            bar = bar_of(name, one)
            row += [str(bar), "met" if bar.met(one["value"]) else "not met"]
        table.add_row(*row)
    return table

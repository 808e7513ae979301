"""The printed tables: the workloads of a group, and the ratios."""

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


def workloads_table(title: str, raw: Mapping[str, Any], shares: Mapping[str, Any]) -> Table:
    """Return a table of one group's workloads; `shares` of the machine's peak are by name."""
    unit = next((record["unit"] for record in raw["contestants"].values()), "unit")
    table = _table(title, "", "median s", "spread s", f"{unit}s/s", "of peak", "")
    for name, record in raw["contestants"].items():
        runs = record["seconds"]
        table.add_row(
            name,
            f"{median(runs):.3f}",
            f"{min(runs):.2f}–{max(runs):.2f}",
            f"{record['units'] / median(runs):,.1f}",
            f"{shares[name]['value']:.0%}" if name in shares else "",
            record["note"],
        )
    for name, reason in raw["missing"].items():
        table.add_row(name, "–", "", "", "", reason)
    return table


def memory_table(title: str, raw: Mapping[str, Any]) -> Table:
    """Return a table of each student's peak memory."""
    table = _table(title, "", "step, GiB", "forward and backward, GiB", "before, GiB")
    for name, peaks in raw["bytes"].items():
        kinds = ("step", "forward_backward", "before")
        table.add_row(name, *(f"{median(peaks[kind]) / 2**30:.2f}" for kind in kinds))
    return table


def slopes_table(title: str, slopes: Mapping[str, Mapping[str, float]]) -> Table:
    """Return a table of log-log slopes by axis."""
    names = list(next(iter(slopes.values()), {}))
    table = _table(title, "seconds grow as axis^", *names)
    for axis, by_name in slopes.items():
        table.add_row(axis, *(f"{by_name[name]:.2f}" for name in names))
    return table


def gpu_table(title: str, sizes: Mapping[str, Mapping[str, float]]) -> Table:
    """Return a table of the model sizes measured on a GPU."""
    table = _table(title, "", "tokens/s", "MFU", "peak GiB")
    for name, size in sizes.items():
        table.add_row(
            name, f"{size['tokens_per_second']:,.0f}", f"{size['mfu']:.1%}", f"{size['peak_bytes'] / 2**30:.2f}"
        )
    return table


def ratios_table(ratios: Mapping[str, Mapping[str, Any]], *, shape: str, device: str) -> Table:
    """Return a table of the measured ratios, with bars only at the shape and device they apply to."""
    barred = shape == BAR_SHAPE and device == "cpu"
    table = _table(f"Ratios at {shape} on {device}", "", "median", "spread", "runs", *(("bar", "") if barred else ()))
    for name, ratio in ratios.items():
        low, high = ratio["spread"]
        row = [KEYS[name].title, f"{ratio['value']:.2f}", f"{low:.2f}–{high:.2f}", str(len(ratio["runs"]))]
        if barred:
            bar = bar_of(name, ratio)
            row += [str(bar), "met" if bar.met(ratio["value"]) else "not met"]
        table.add_row(*row)
    return table

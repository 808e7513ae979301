"""A plan for the terminal, at most 100 columns."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.table import Table
from rich.text import Text

WIDTH = 100
COLUMNS = ("variant", "params", "width", "steps", "tokens", "FLOPs/tok", "FLOPs", "GiB", "sharded")
UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def plan_table(plan: dict[str, Any]) -> RenderableType:
    """A table a setting, what its shared stages and its disk take, and what was assumed.

    Args:
        plan: what `cocomix.experiments.plan.plan` returned.
    """
    parts: list[RenderableType] = [Text(plan["title"], style="bold")]
    for name, setting in plan["settings"].items():
        parts += [_variants(name, setting), *(Text(line) for line in _lines(setting))]
        parts += [Text(f"Note: {note}.", style="dim") for note in setting["notes"]]
    parts.append(Text(f"\nAll settings: {count(plan['flops'])} FLOPs{_hours(plan)}", style="bold"))
    parts.append(
        Text(
            "FLOPs: training, all seeds. GiB: weights, gradients, moments, activations and logits of a micro-batch"
            f" on each of {plan['gpus']} GPUs under DDP; sharded: with the first three split over them; ! is more"
            f" than {plan['gpu_memory_gib']:g} GiB. An estimate: leave a tenth free.",
            style="dim",
        )
    )
    hours = [f"Assumed: {plan['assumption']}."] if plan["assumption"] else []
    return Constrain(Group(*parts, *(Text(line, style="dim") for line in hours)), WIDTH)


def _variants(name: str, setting: dict[str, Any]) -> Table:
    title = Text(f"\n{name}: {setting['title']}", style="bold")
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in COLUMNS:
        is_name = column == "variant"
        table.add_column(column, justify="left" if is_name else "right", no_wrap=not is_name, overflow="fold")
    for row in setting["variants"]:
        table.add_row(*_cells(row))
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    memory = row["memory"]
    return [
        row["name"],
        count(row["parameters"]),
        "?" if row["width"] is None else str(row["width"]),
        f"{row['steps']:,}",
        count(row["tokens"]),
        count(row["flops_per_token"]),
        count(row["flops"]),
        *("?" if memory is None else _gib(memory[f"{way}_gib"], memory[f"fits_{way}"]) for way in ("ddp", "sharded")),
    ]


def _gib(size: float, fits: bool) -> str:
    return f"{size:.{1 if size >= 10 else 2}f}" + ("" if fits else " !")


def _lines(setting: dict[str, Any]) -> list[str]:
    seeds, corpus = len(setting["seeds"]), setting["corpus"]
    shared = ", ".join(f"{name} {count(flops)}" for name, flops in setting["shared"].items())
    disk = ", ".join(f"{name} {count(size, BYTES)}" for name, size in setting["disk"].items())
    splits = ", ".join(f"{split} {count(corpus[split])}" for split in ("train", "val", "test"))
    return [
        f"{seeds} seed{'s' if seeds > 1 else ''}, windows of {setting['seq_len']} tokens, vocabulary of"
        f" {setting['vocab_size']}; tokens ({corpus['basis']}): {splits}",
        f"Made once, FLOPs: {shared or 'nothing'}",
        f"Disk: {disk}; together {count(sum(setting['disk'].values()), BYTES)}",
        f"Together: {count(setting['flops'])} FLOPs{_hours(setting)}",
    ]


def _hours(part: dict[str, Any]) -> str:
    return "" if part["hours"] is None else f", {part['hours']:,.2f} hours"


def count(number: float | None, units: tuple[tuple[float, str], ...] = UNITS) -> str:
    """Three figures with a unit: `85.1M`, `2.10TB`; beyond the units as `3.1e+18`, `?` for None."""
    if number is None:
        return "?"
    if number >= 1000 * units[0][0]:
        return f"{number:.2e}"
    size, unit = next(((size, unit) for size, unit in units if number >= size), (1, ""))
    scaled = number / size
    return f"{scaled:.{0 if unit == '' else 2 if scaled < 10 else 1 if scaled < 100 else 0}f}{unit}"

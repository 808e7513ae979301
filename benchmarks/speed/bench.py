"""Measure group after group, print and save after each."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.speed.contestant import Setting
from benchmarks.speed.groups import GROUPS
from benchmarks.speed.keys import BAR_SHAPE, all_keys, bar_of, matmul_peak, on_gpu, peak_shares, slopes, waiting_shares
from benchmarks.speed.shapes import SHAPES
from benchmarks.speed.table import contestants_table, gpu_table, memory_table, ratios_table, slopes_table
from cocomix.utils.console import StageProgress
from cocomix.utils.env import git_commit, machine
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import write_json


def run_bench(
    shape: str, path: Path, *, repeats: int | None, only: Sequence[str], device: str, seed: int, console: Console
) -> None:
    """Measure the groups `only` names (all, if none) at `shape` and write `path`, anew after each group.

    Raises:
        CocomixError: a shape, group or device that does not exist, or a path that cannot be written.
    """
    if shape not in SHAPES:
        raise CocomixError(f"there is no shape {shape!r}; choose one of {', '.join(SHAPES)}")
    unknown = [name for name in only if name not in GROUPS]
    if unknown:
        raise CocomixError(f"there is nothing called {unknown[0]!r} to measure; choose from {', '.join(GROUPS)}")
    if not path.absolute().parent.is_dir():
        raise CocomixError(f"{path} cannot be written: its folder does not exist; make it or choose another file")
    setting = Setting(SHAPES[shape], repeats, choose_device(device), seed)
    wanted = [name for name in GROUPS if (name in only or not only)]
    impossible = [name for name in only if not GROUPS[name].fits(setting)]
    if impossible:
        raise CocomixError(f"{impossible[0]} cannot be measured on {setting.device.type}; leave it out or use a GPU")
    busy = busy_share()
    if busy > MOST_BUSY:
        console.print(f"This machine is busy ({busy:.0%} of its cores); the spreads will be wide.", highlight=False)
    raw: dict[str, Any] = {}
    for name in wanted:
        group = GROUPS[name]
        if not group.fits(setting):
            continue
        with StageProgress(console, group.title) as progress:
            raw[name] = group.measure(setting, progress)
        console.print(group_table(name, raw))
        write_json(path, {"busy": busy} | report(setting, raw))
    console.print(ratios_table(all_keys(raw), shape=shape, device=setting.device.type))
    console.print(f"{path}", highlight=False, markup=False, soft_wrap=True)


MOST_BUSY = 0.5
"""Load above which it is said; this process's own start takes some."""


def busy_share() -> float:
    """The load average of the last minute, in shares of all cores."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def choose_device(name: str) -> torch.device:
    """The device called `name`; `auto` is a GPU where there is one.

    Raises:
        CocomixError: no such device, or none here.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise CocomixError(f"there is no device {name!r}; choose one of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise CocomixError("PyTorch finds no CUDA device here; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def group_table(name: str, raw: dict[str, Any]) -> Table:
    """What to show of a group just measured."""
    title = GROUPS[name].title.capitalize()
    if "contestants" in raw[name]:
        return contestants_table(title, raw[name], peak_shares(raw).get(name, {}))
    special = {
        "memory": lambda: memory_table(title, raw["memory"]),
        "growth": lambda: slopes_table(title, slopes(raw)),
        "gpu": lambda: gpu_table(title, on_gpu(raw)),
    }
    return special[name]()


def report(setting: Setting, raw: dict[str, Any]) -> dict[str, Any]:
    """Everything known so far, ready for JSON: the keys first, then what they were made of."""
    found = all_keys(raw)
    if setting.shape.name == BAR_SHAPE and setting.device.type == "cpu":
        for name, one in found.items():
            bar = bar_of(name, one)
            found[name] = one | {"bar": str(bar), "met": bar.met(one["value"])}
    return _finite(
        {
            "machine": machine() | {"device": setting.device.type},
            "commit": git_commit(),
            "shape": setting.shape.model_dump(mode="json"),
            "seed": setting.seed,
            **found,
            "slopes": slopes(raw),
            "matmul_peak": matmul_peak(raw),
            "peak_share": peak_shares(raw),
            "waiting_share": waiting_shares(raw),
            "gpu": on_gpu(raw),
            "raw": raw,
        }
    )


def _finite(content: Any) -> Any:
    """`content` with None for what JSON has no number for."""
    if isinstance(content, dict):
        return {name: _finite(one) for name, one in content.items()}
    if isinstance(content, list):
        return [_finite(one) for one in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content

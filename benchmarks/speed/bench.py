"""Measure the groups one after the other; print and save the results after each."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.speed.groups import GROUPS
from benchmarks.speed.keys import BAR_SHAPE, all_keys, bar_of, matmul_peak, on_gpu, peak_shares, slopes, waiting_shares
from benchmarks.speed.shapes import SHAPES
from benchmarks.speed.table import gpu_table, memory_table, ratios_table, slopes_table, workloads_table
from benchmarks.speed.workload import Setting
from cocomix.utils.console import StageProgress
from cocomix.utils.env import git_commit, machine
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import write_json


def run_bench(
    shape: str, path: Path, *, repeats: int | None, only: Sequence[str], device: str, seed: int, console: Console
) -> None:
    """Measure the groups named in `only` (all if empty) at `shape`; rewrite the report `path` after each group.

    Raises:
        CocomixError: if the shape, a group or the device does not exist, or `path` cannot be written.
    """
    if shape not in SHAPES:
        raise CocomixError(f"there is no shape {shape!r}; choose one of {', '.join(SHAPES)}")
    unknown = [name for name in only if name not in GROUPS]
    if unknown:
        raise CocomixError(f"there is no group {unknown[0]!r}; choose from {', '.join(GROUPS)}")
    if not path.absolute().parent.is_dir():
        raise CocomixError(f"{path} cannot be written: its folder does not exist; create it or choose another file")
    setting = Setting(SHAPES[shape], repeats, choose_device(device), seed)
    requested = [name for name in GROUPS if (name in only or not only)]
    unsupported = [name for name in only if not GROUPS[name].fits(setting)]
    if unsupported:
        raise CocomixError(f"{unsupported[0]} cannot be measured on {setting.device.type}; leave it out or use a GPU")
    busy = busy_share()
    if busy > BUSY_WARNING:
        console.print(f"This machine is busy ({busy:.0%} of its cores); the spreads will be wide.", highlight=False)
    raw: dict[str, Any] = {}
    for name in requested:
        group = GROUPS[name]
        if not group.fits(setting):
            continue
        with StageProgress(console, group.title) as progress:
            raw[name] = group.measure(setting, progress)
        console.print(group_table(name, raw))
        write_json(path, {"busy": busy} | report(setting, raw))
    console.print(ratios_table(all_keys(raw), shape=shape, device=setting.device.type))
    console.print(f"{path}", highlight=False, markup=False, soft_wrap=True)


BUSY_WARNING = 0.5
"""Load above which a warning is printed; the start of this process alone causes some load."""


def busy_share() -> float:
    """Return the load average of the last minute as a share of all cores."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` is a GPU if there is one.

    Raises:
        CocomixError: if there is no such device.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise CocomixError(f"there is no device {name!r}; choose one of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise CocomixError("PyTorch finds no CUDA device here; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def group_table(name: str, raw: dict[str, Any]) -> Table:
    """Return the table to print for a group that has just been measured."""
    title = GROUPS[name].title.capitalize()
    if "contestants" in raw[name]:
        return workloads_table(title, raw[name], peak_shares(raw).get(name, {}))
    special = {
        "memory": lambda: memory_table(title, raw["memory"]),
        "growth": lambda: slopes_table(title, slopes(raw)),
        "gpu": lambda: gpu_table(title, on_gpu(raw)),
    }
    return special[name]()


def report(setting: Setting, raw: dict[str, Any]) -> dict[str, Any]:
    """Return the report so far, ready for JSON: first the ratios, then the raw figures they come from."""
    ratios = all_keys(raw)
    if setting.shape.name == BAR_SHAPE and setting.device.type == "cpu":
        for name, ratio in ratios.items():
            bar = bar_of(name, ratio)
            ratios[name] = ratio | {"bar": str(bar), "met": bar.met(ratio["value"])}
    return _finite(
        {
            "machine": machine() | {"device": setting.device.type},
            "commit": git_commit(),
            "shape": setting.shape.model_dump(mode="json"),
            "seed": setting.seed,
            **ratios,
            "slopes": slopes(raw),
            "matmul_peak": matmul_peak(raw),
            "peak_share": peak_shares(raw),
            "waiting_share": waiting_shares(raw),
            "gpu": on_gpu(raw),
            "raw": raw,
        }
    )


def _finite(content: Any) -> Any:
    """Return `content` with None in place of infinities and NaN, which JSON does not have."""
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list):
        return [_finite(item) for item in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content

"""Write the tables of docs/performance.md from results/bench, so that no number is typed by hand.

python -m benchmarks.speed.performance_tables
"""

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.speed.keys import KEYS
from cocomix.utils.console import use_any_encoding

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "docs/performance.md",)


def page(text: str, bench: dict[str, Any], spots: dict[str, Any]) -> str:
    """Return `text` with the content between its marks replaced by tables of the two reports."""
    tables = {
        "machine": machine(bench),
        "ratios": ratios(bench),
        "contestants": contestants(bench),
        "memory": memory(bench),
        "slopes": slopes(bench),
        "spots": hot_spots(spots),
    }
    for name, content in tables.items():
        before, start, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- end of {name} -->")
        if end:
            text = f"{before}{start}{content}\n{end}{after}"
    return text


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine(bench: dict[str, Any]) -> str:
    facts = ", ".join(f"{key} {value}" for key, value in bench["machine"].items())
    peak = ", ".join(f"{key} {value / 1e9:.0f}" for key, value in bench["matmul_peak"].items())
    return f"Machine: {facts}. Commit {bench['commit']}, seed {bench['seed']}. Fastest product, GFLOP/s: {peak}."


def ratios(bench: dict[str, Any]) -> str:
    rows = []
    for name, key in KEYS.items():
        if name in bench:
            figures = bench[name]
            low, high = figures["spread"]
            verdict = "met" if figures["met"] else "not met"
            runs = str(len(figures["runs"]))
            rows.append([f"`{name}`", key.title, f"{figures['value']:.2f}", f"{low:.2f} to {high:.2f}", runs])
            rows[-1] += [figures["bar"], verdict]
    return table(["key", "", "median", "spread", "rounds", "bar", ""], rows)


def contestants(bench: dict[str, Any]) -> str:
    rows = []
    for group, raw in bench["raw"].items():
        for name, figures in raw.get("contestants", {}).items():
            share = bench["peak_share"].get(group, {}).get(name)
            rows.append(
                [
                    group,
                    name,
                    f"{median(figures['seconds']):.3f}",
                    f"{min(figures['seconds']):.3f} to {max(figures['seconds']):.3f}",
                    f"{figures['units'] / median(figures['seconds']):,.1f} {figures['unit']}s/s",
                    f"{share['value']:.0%}" if share else "",
                ]
            )
    return table(["group", "", "median s", "spread s", "", "of peak"], rows)


def memory(bench: dict[str, Any]) -> str:
    kinds = ("before", "forward_backward", "step")
    rows = [
        [name, *(f"{median(figures[kind]) / 2**30:.2f}" for kind in kinds)]
        for name, figures in bench["raw"]["memory"]["bytes"].items()
    ]
    return table(["GiB", "weights and the like, before", "forward and backward", "step"], rows)


def slopes(bench: dict[str, Any]) -> str:
    figures = bench["slopes"]
    names = list(next(iter(figures.values())))
    rows = [[axis, *(f"{by_name[name]:.2f}" for name in names)] for axis, by_name in figures.items()]
    return table(["seconds grow as", *names], rows)


def hot_spots(spots: dict[str, Any]) -> str:
    rows = []
    for name, figures in spots["spots"].items():
        low, high = figures["spread"]
        before, after = median(figures["before"]), median(figures["after"])
        rows.append([name, figures["plain"], f"{before:.4f}", figures["ours"], f"{after:.4f}"])
        rows[-1] += [f"{figures['value']:.2f}", f"{low:.2f} to {high:.2f}"]
    return table(["", "plain", "s", "ours", "s", "times faster", "spread"], rows)


def main() -> None:
    """Rewrite the pages."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.speed.performance_tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    reports = [json.loads((ROOT / f"results/bench/{name}.json").read_text()) for name in ("cpu-2core", "hot_spots")]
    for path in PAGES:
        path.write_text(page(path.read_text(encoding="utf-8"), *reports), encoding="utf-8")


if __name__ == "__main__":
    use_any_encoding()
    main()

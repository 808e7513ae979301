"""Repeat a run under the same and under different conditions, and report what came out the same.

    python -m benchmarks.determinism -o results/determinism                        # toy models, all conditions
    python -m benchmarks.determinism -c demo --only again -o results/determinism   # the demo itself, twice

Every run starts from scratch in a fresh folder. A figure is any number in a run's report that is not a clock reading.
Files are compared byte by byte, apart from clock readings (`benchmarks.same_bits`).

The condition `again` must reproduce everything, or the command ends with an error. The other conditions are not
expected to: floating-point sums in another order differ in their last bits, and training amplifies that. The report
measures by how much.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults.processes import launcher
from benchmarks.provenance import provenance
from benchmarks.same_bits import CLOCK_OF_NEW_RUN, contents
from cocomix.utils.console import use_any_encoding

STAGES = ("corpus", "tokens", "teacher", "sae", "labels", "students", "evaluation")
NOT_FIGURES = ("second", "wait_share", "machine", "created", "command", "commits", "reused")
"""Parts of keys whose values are durations, places or times, not figures."""
SHOWN = ("teacher.val_perplexity", "sae.explained_variance", "students.{}.runs.0.test_perplexity")
"""Figures that are printed and kept for every run; `{}` stands for each student."""


@dataclass(frozen=True)
class Condition:
    """How and where a run is made.

    Attributes:
        description: the condition in words.
        environment: environment variables of the process.
        processes: number of processes; more than one means torchrun.
        available: whether this machine can run it.
    """

    description: str
    environment: dict[str, str] = field(default_factory=dict)
    processes: int = 1
    available: bool = True

    def run(self, home: Path, arguments: list[str]) -> dict[str, Any]:
        """Make the run `run` in the folder `home` and return its report."""
        result = subprocess.run(
            [*launcher(self.processes), "cocomix", "demo", "-r", "run", *arguments],
            cwd=home,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
        )
        if result.returncode:
            raise SystemExit(f"the run {self.description} ended with {result.returncode}:\n{result.stderr[-2000:]}")
        return json.loads((home / "run" / "report.json").read_text(encoding="utf-8"))


CUDA = torch.cuda.is_available()
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
ONE_THREAD = NO_GPU | {"OMP_NUM_THREADS": "1"}
CONDITIONS = {
    "again": Condition("in the same circumstances", NO_GPU),
    "threads 1": Condition("on one thread", ONE_THREAD),
    "threads 2": Condition("on two threads", NO_GPU | {"OMP_NUM_THREADS": "2"}),
    "threads 4": Condition("on four threads", NO_GPU | {"OMP_NUM_THREADS": "4"}),
    "processes 2": Condition("in two processes of one thread", ONE_THREAD, processes=2),
    "older cpu": Condition(
        "with the instructions of a processor that has AVX2 and no more",
        NO_GPU | {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    ),
    "cuda": Condition("on a GPU", available=CUDA),
    "cuda again": Condition("on a GPU, once more", available=CUDA),
}
"""Conditions by name. Every run is compared with a first run under the condition `again`."""


def figures(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Yield (path, number) of every figure in a report."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if not any(part in str(key) for part in NOT_FIGURES):
                name = item.get("name", key) if isinstance(item, dict) else key
                yield from figures(item, f"{path}.{name}" if path else str(name))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, float(value)


def compare_figures(first: dict[str, float], second: dict[str, float]) -> dict[str, Any]:
    """Count the equal figures of two reports, and find the one with the largest relative difference."""
    shared = first.keys() & second.keys()
    distances = {name: _relative_difference(first[name], second[name]) for name in shared}
    furthest = max(sorted(distances), key=lambda name: distances[name], default="")
    return {
        "figures": len(first.keys() | second.keys()),
        "equal": sum(distance == 0 for distance in distances.values()),
        "furthest": {"figure": furthest, "first": first.get(furthest), "second": second.get(furthest)},
        "relative": distances.get(furthest, 0.0),
    }


def _relative_difference(first: float, second: float) -> float:
    if first == second or (math.isnan(first) and math.isnan(second)):
        return 0.0
    return abs(first - second) / max(abs(first), abs(second))


def stage_hashes(home: Path) -> dict[str, dict[str, str]]:
    """Return the hashes of each stage's files."""
    return {
        stage: contents(home / "run" / stage, clock=CLOCK_OF_NEW_RUN)
        for stage in STAGES
        if (home / "run" / stage).exists()
    }


def count_same_files(first: dict[str, dict[str, str]], second: dict[str, dict[str, str]]) -> dict[str, dict[str, int]]:
    """Count, for each stage, the files of either run and those that are the same in both."""
    counts = {}
    for stage in first.keys() | second.keys():
        before, after = first.get(stage, {}), second.get(stage, {})
        names = before.keys() | after.keys()
        counts[stage] = {"files": len(names), "same": sum(before.get(name) == after.get(name) for name in names)}
    return {stage: counts[stage] for stage in STAGES if stage in counts}


def shown_figures(report: dict[str, float]) -> dict[str, float]:
    """Return the figures named in `SHOWN`."""
    patterns = [tuple(name.split(".")) for name in SHOWN]
    return {
        name: value
        for name, value in report.items()
        if any(len(parts := name.split(".")) == len(pattern) and _matches(parts, pattern) for pattern in patterns)
    }


def _matches(parts: list[str], pattern: tuple[str, ...]) -> bool:
    return all(expected in ("{}", part) for part, expected in zip(parts, pattern, strict=True))


def compare_runs(conditions: list[str], arguments: list[str], folder: Path) -> dict[str, Any]:
    """Make a first run and one run under each of `conditions`; return how each compares with the first."""
    default = CONDITIONS["again"]
    homes = {name: folder / name.replace(" ", "-") for name in ("first", *conditions)}
    reports = {}
    for name, home in homes.items():
        home.mkdir(parents=True)
        reports[name] = dict(figures(CONDITIONS.get(name, default).run(home, arguments)))
        print(f"{name}: {shown_figures(reports[name])}", flush=True)
    first = stage_hashes(homes["first"])
    return {
        name: {
            "about": CONDITIONS[name].description,
            **compare_figures(reports["first"], reports[name]),
            "stages": count_same_files(first, stage_hashes(homes[name])),
            "shown": shown_figures(reports[name]),
        }
        for name in conditions
    } | {"first": {"about": "what the others are compared with", "shown": shown_figures(reports["first"])}}


def table(content: dict[str, Any]) -> str:
    """Return a Markdown table of what is the same in each run of a report."""
    lines = ["| repeated | data, same files | models, same files | figures equal | largest difference |"]
    lines.append("|---|---|---|---|---|")
    for name, entry in content["runs"].items():
        if name == "first":
            continue
        data, models = ([entry["stages"][stage] for stage in group] for group in (STAGES[:2], STAGES[2:]))
        largest = entry["furthest"]
        difference = (
            f"`{largest['figure']}`: {largest['first']:.6g}, {largest['second']:.6g}" if entry["relative"] else "none"
        )
        counts = [
            f"{sum(stage['same'] for stage in group)} of {sum(stage['files'] for stage in group)}"
            for group in (data, models)
        ]
        lines.append(
            f"| {entry['about']} | {counts[0]} | {counts[1]} | {entry['equal']} of {entry['figures']} | {difference} |"
        )
    return "\n".join(lines)


def list_differences(entry: dict[str, Any]) -> list[str]:
    """Return in words what differs between two runs under the same conditions."""
    figures_off = [f"{entry['figures'] - entry['equal']} figures"] if entry["figures"] != entry["equal"] else []
    return figures_off + [stage for stage, count in entry["stages"].items() if count["files"] != count["same"]]


def main() -> None:
    """Parse the command line, make the runs, and write the report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.determinism",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-c", "--config", choices=("tiny", "demo"), default="tiny", help="recipe of the runs")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/determinism"), help="folder for the report")
    parser.add_argument("--only", nargs="*", choices=CONDITIONS, help="conditions; default: all this machine can run")
    arguments = parser.parse_args()
    names = [
        name for name, condition in CONDITIONS.items() if condition.available and name in (arguments.only or CONDITIONS)
    ]
    origin = provenance()
    with tempfile.TemporaryDirectory() as folder:
        comparisons = compare_runs(names, ["--tiny"] if arguments.config == "tiny" else [], Path(folder))
    content = {
        **origin,
        "recipe": arguments.config,
        "left_out": [name for name, condition in CONDITIONS.items() if not condition.available],
        "runs": comparisons,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / f"{arguments.config}.json").write_text(json.dumps(content, indent=1) + "\n")
    print(table(content))
    differences = list_differences(comparisons["again"]) if "again" in comparisons else []
    if differences:
        sys.exit(f"a repeated run differs from the first: {', '.join(differences)}")


if __name__ == "__main__":
    use_any_encoding()
    main()

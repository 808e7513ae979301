"""Make a run again, in the same circumstances and in others, and say what came out the same.

    python -m benchmarks.determinism -o results/determinism                        # toy models, in all circumstances
    python -m benchmarks.determinism -c demo --only again -o results/determinism   # the demo itself, twice

Every run starts from nothing in a fresh folder. A figure of the report is any number in it that is not a reading of a
clock; files are compared byte by byte, but for those readings (`same_bits`). `again` must be the same in everything, or
the command ends with an error. The other circumstances are not expected to be: floating-point sums in another order
differ in their last bits, and training amplifies that. What they come to is what the report says.
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
from benchmarks.same_bits import ANEW, contents

STAGES = ("corpus", "tokens", "teacher", "sae", "labels", "students", "evaluation")
NOT_FIGURES = ("second", "wait_share", "machine", "created", "command", "commits", "reused")
"""Parts of the keys whose values say how long it took, where and when."""
SHOWN = ("teacher.val_perplexity", "sae.explained_variance", "students.{}.runs.0.test_perplexity")
"""What is shown of each run; a figure of a student for each of them."""


@dataclass(frozen=True)
class Circumstances:
    """Where and how a run is made.

    Attributes:
        about: in words.
        environment: variables of the process.
        processes: more than one: under torchrun.
        available: whether this machine has it.
    """

    about: str
    environment: dict[str, str] = field(default_factory=dict)
    processes: int = 1
    available: bool = True

    def run(self, home: Path, arguments: list[str]) -> dict[str, Any]:
        """Make the run `run` in `home`; returns its report."""
        done = subprocess.run(
            [*launcher(self.processes), "cocomix", "demo", "-r", "run", *arguments],
            cwd=home,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"the run {self.about} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        return json.loads((home / "run" / "report.json").read_text(encoding="utf-8"))


CUDA = torch.cuda.is_available()
HIDDEN = {"CUDA_VISIBLE_DEVICES": ""}
ONE = HIDDEN | {"OMP_NUM_THREADS": "1"}
CIRCUMSTANCES = {
    "again": Circumstances("in the same circumstances", HIDDEN),
    "threads 1": Circumstances("on one thread", ONE),
    "threads 2": Circumstances("on two threads", HIDDEN | {"OMP_NUM_THREADS": "2"}),
    "threads 4": Circumstances("on four threads", HIDDEN | {"OMP_NUM_THREADS": "4"}),
    "processes 2": Circumstances("in two processes of one thread", ONE, processes=2),
    "older cpu": Circumstances(
        "with the instructions of a processor that has AVX2 and no more",
        HIDDEN | {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    ),
    "cuda": Circumstances("on a GPU", available=CUDA),
    "cuda again": Circumstances("on a GPU, once more", available=CUDA),
}
"""Compared with a run in the first of them."""


def figures(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """(path, number) of every figure in a report."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if not any(part in str(key) for part in NOT_FIGURES):
                name = item.get("name", key) if isinstance(item, dict) else key
                yield from figures(item, f"{path}.{name}" if path else str(name))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, float(value)


def compared(first: dict[str, float], second: dict[str, float]) -> dict[str, Any]:
    """How many figures of two reports are equal, and the one that is furthest off."""
    shared = first.keys() & second.keys()
    off = {name: _off(first[name], second[name]) for name in shared}
    furthest = max(sorted(off), key=lambda name: off[name], default="")
    return {
        "figures": len(first.keys() | second.keys()),
        "equal": sum(distance == 0 for distance in off.values()),
        "furthest": {"figure": furthest, "first": first.get(furthest), "second": second.get(furthest)},
        "relative": off.get(furthest, 0.0),
    }


def _off(one: float, other: float) -> float:
    if one == other or (math.isnan(one) and math.isnan(other)):
        return 0.0
    return abs(one - other) / max(abs(one), abs(other))


def stages(home: Path) -> dict[str, dict[str, str]]:
    """Hashes of the files of each stage's output."""
    return {stage: contents(home / "run" / stage, clock=ANEW) for stage in STAGES if (home / "run" / stage).exists()}


def judged(one: dict[str, dict[str, str]], other: dict[str, dict[str, str]]) -> dict[str, dict[str, int]]:
    """Of each stage, how many files there are in either run, and how many are the same in both."""
    found = {}
    for stage in one.keys() | other.keys():
        first, second = one.get(stage, {}), other.get(stage, {})
        names = first.keys() | second.keys()
        found[stage] = {"files": len(names), "same": sum(first.get(name) == second.get(name) for name in names)}
    return {stage: found[stage] for stage in STAGES if stage in found}


def shown(found: dict[str, float]) -> dict[str, float]:
    """The few figures of a report that are printed and kept for every run."""
    patterns = [tuple(name.split(".")) for name in SHOWN]
    return {
        name: value
        for name, value in found.items()
        if any(len(parts := name.split(".")) == len(pattern) and _fits(parts, pattern) for pattern in patterns)
    }


def _fits(parts: list[str], pattern: tuple[str, ...]) -> bool:
    return all(wanted in ("{}", part) for part, wanted in zip(parts, pattern, strict=True))


def compare(chosen: list[str], arguments: list[str], folder: Path) -> dict[str, Any]:
    """Make a first run, then one in each of the circumstances `chosen`; how each compares with the first."""
    usual = CIRCUMSTANCES["again"]
    homes = {name: folder / name.replace(" ", "-") for name in ("first", *chosen)}
    reports = {}
    for name, home in homes.items():
        home.mkdir(parents=True)
        reports[name] = dict(figures(CIRCUMSTANCES.get(name, usual).run(home, arguments)))
        print(f"{name}: {shown(reports[name])}", flush=True)
    first = stages(homes["first"])
    return {
        name: {
            "about": CIRCUMSTANCES[name].about,
            **compared(reports["first"], reports[name]),
            "stages": judged(first, stages(homes[name])),
            "shown": shown(reports[name]),
        }
        for name in chosen
    } | {"first": {"about": "what the others are compared with", "shown": shown(reports["first"])}}


def table(content: dict[str, Any]) -> str:
    """What is the same in each of the runs of a report, in Markdown."""
    lines = ["| made again | data, same files | models, same files | figures equal | the figure furthest off |"]
    lines.append("|---|---|---|---|---|")
    for name, entry in content["runs"].items():
        if name == "first":
            continue
        data, models = ([entry["stages"][stage] for stage in part] for part in (STAGES[:2], STAGES[2:]))
        off = entry["furthest"]
        furthest = f"`{off['figure']}`: {off['first']:.6g}, {off['second']:.6g}" if entry["relative"] else "none"
        counts = [
            f"{sum(one['same'] for one in part)} of {sum(one['files'] for one in part)}" for part in (data, models)
        ]
        lines.append(
            f"| {entry['about']} | {counts[0]} | {counts[1]} | {entry['equal']} of {entry['figures']} | {furthest} |"
        )
    return "\n".join(lines)


def differing(entry: dict[str, Any]) -> list[str]:
    """In words, what a second run in the same circumstances has that the first has not."""
    wrong = [f"{entry['figures'] - entry['equal']} figures"] if entry["figures"] != entry["equal"] else []
    return wrong + [stage for stage, found in entry["stages"].items() if found["files"] != found["same"]]


def main() -> None:
    """Parse the command line, make the runs, and report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.determinism",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-c", "--config", choices=("tiny", "demo"), default="tiny", help="which recipe")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/determinism"), help="folder of the report")
    parser.add_argument("--only", nargs="*", choices=CIRCUMSTANCES, help="circumstances; default: all there are here")
    chosen = parser.parse_args()
    names = [name for name, one in CIRCUMSTANCES.items() if one.available and name in (chosen.only or CIRCUMSTANCES)]
    origin = provenance()
    with tempfile.TemporaryDirectory() as folder:
        found = compare(names, ["--tiny"] if chosen.config == "tiny" else [], Path(folder))
    content = {
        **origin,
        "recipe": chosen.config,
        "left_out": [name for name, one in CIRCUMSTANCES.items() if not one.available],
        "runs": found,
    }
    chosen.output.mkdir(parents=True, exist_ok=True)
    (chosen.output / f"{chosen.config}.json").write_text(json.dumps(content, indent=1) + "\n")
    print(table(content))
    wrong = differing(found["again"]) if "again" in found else []
    if wrong:
        sys.exit(f"the same run is not the same: {', '.join(wrong)}")


if __name__ == "__main__":
    main()

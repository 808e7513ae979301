"""Kill every stage at each of its file operations, and fail each with a full or a broken disk.

    python -m benchmarks.faults.operations -o results/faults            # every operation of every stage
    python -m benchmarks.faults.operations --sample 12 -o build/faults  # evenly spread ones

`interpose.c`, preloaded, numbers the calls that change a file of the run. For each number and each kind of failure a
copy of a finished run does the stage, the failure happens at that call, and the same command is run again. Expected:

- killed: the second command ends in the undisturbed run's bits;
- ENOSPC, EIO: the first command ends with 2 and one sentence, or the failure did not matter and it ends with 0 and the
  undisturbed bits; the second command ends in the undisturbed bits.

`lost` are training steps taken again beyond those since the last checkpoint, here after every step. A temporary file
or an unfinished attempt that stays is `left`. All operations of all stages take hours. The outcomes so far are written
every minute, and the same command goes on from them if the commit is the same; numbers come in an order that spreads
those tried evenly at any time. Needs a C compiler and Linux.
"""

import argparse
import ctypes
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.faults.fixes import apply_fix, error_message
from benchmarks.faults.forked_commands import ForkedCommand, preload
from benchmarks.faults.kill_plan import TARGETS, TRAINING, Target
from benchmarks.faults.run_copies import RunCopies, recipe, stage_command
from benchmarks.provenance import provenance

SOURCE = Path(__file__).with_name("interpose.c")
LIBRARY = "COCOMIX_INTERPOSE"
COUNT, KILL, FAIL = 1, 2, 3
KINDS = {"kill": (KILL, 0), "ENOSPC": (FAIL, errno.ENOSPC), "EIO": (FAIL, errno.EIO)}
GOOD = ("same bits", "refused, then the same bits")
STEPS = 4
SAVE_SECONDS = 60
MOST_AGAIN = 2
"""Training steps that a kill may cost: the one it happened in, and the one whose checkpoint was not complete."""


class MicroCopies(RunCopies):
    """Copies of a run of a few steps, with a checkpoint after each."""

    beginning = 120

    def settings(self) -> dict[str, Any]:
        settings = recipe()
        for section in TRAINING.values():
            place: Any = settings
            for part in section.split("."):
                place = place[part]
            place |= {"steps": STEPS, "n_evals": 2, "checkpoint_seconds": 1e-9}
        return settings


class Armed(NamedTuple):
    """What happens at which operation of a command."""

    mode: int
    number: int = 0
    code: int = 0
    log: Path | None = None


def command(arguments: list[str], home: Path, armed: Armed | None, steps: Path) -> ForkedCommand:
    """Run a command to its end in a fork; each training step it takes adds a byte to the file `steps`."""

    def prepare() -> None:
        from cocomix.train.trainer import Trainer

        real = Trainer.train_step

        def counted(self: Trainer, loss_fn: Any) -> Any:
            with steps.open("ab") as stream:
                stream.write(b".")
            return real(self, loss_fn)

        Trainer.train_step = counted
        if armed is not None:
            library = ctypes.CDLL(os.environ[LIBRARY])
            log = None if armed.log is None else os.fsencode(armed.log)
            run = os.fsencode(home / "run")
            library.arm(run, armed.mode, ctypes.c_long(armed.number), armed.code, log)

    started = ForkedCommand(arguments, home, prepare)
    started.popen.wait_quietly()
    started.wait()
    return started


def count(path: Path) -> int:
    """Bytes in a file that may not exist."""
    return path.stat().st_size if path.exists() else 0


def one_failure(copies: RunCopies, target: Target, kind: str, number: int) -> dict[str, Any]:
    """Do `target` with the failure `kind` at operation `number`, then again, and judge both."""
    mode, code = KINDS[kind]
    home = copies.home(target.name, done=False)
    steps = Path(tempfile.gettempdir()) / f"{home.name}.steps"
    first = command(stage_command(target), home, Armed(mode, number, code), steps)
    said, shown = error_message(first) or "", first.output
    problems = []
    if kind != "kill":
        if "Traceback" in first.output or (first.popen.returncode != 0 and not said):
            problems.append("traceback")
        announced = "could not be deleted" in first.output  # the stage is finished, and takes more room than it needs
        if first.popen.returncode == 0 and not announced and copies.differing_files(home, target.outputs):
            problems.append("silent")
    taken = count(steps)
    again = command(stage_command(target), home, None, steps)
    refused = False
    if again.popen.returncode == 2 and (message := error_message(again)):
        refused = True
        for arguments in apply_fix(message, home, None) or []:
            command(arguments, home, None, steps)
        again = command(stage_command(target), home, None, steps)
    differing = copies.differing_files(home, target.outputs) if again.popen.returncode == 0 else ["no output"]
    if differing:
        problems.append(f"other bits: {', '.join(differing[:3])}")
    if target.name in TRAINING and taken and count(steps) > STEPS + MOST_AGAIN:
        problems.append(f"lost: {count(steps)} steps for {STEPS}")
    left = [path for path in (home / "run").rglob("*") if ".tmp" in path.name or path.parent.name == ".partial"]
    if left:
        problems.append(f"left: {left[0].relative_to(home / 'run')}")
    for file in (steps, first.log):
        file.unlink(missing_ok=True)
    shutil.rmtree(home)
    outcome = "; ".join(problems) or GOOD[refused or bool(said)]
    entry = {"stage": target.name, "kind": kind, "number": number, "outcome": outcome, "said": said}
    return entry | ({"output": shown[-2000:]} if problems else {})


def operations(copies: RunCopies, target: Target) -> list[str]:
    """The operations of an undisturbed command, `NAME PATH`, in order."""
    home = copies.home(target.name, done=False)
    log = home / "operations.tsv"
    steps = Path(tempfile.gettempdir()) / f"{home.name}.steps"
    calm = command(stage_command(target), home, Armed(COUNT, log=log), steps)
    if calm.popen.returncode or (differing := copies.differing_files(home, target.outputs)):
        raise SystemExit(f"{target.name} is not the same undisturbed: {calm.output[-500:]} {differing}")
    lines = [line.split("\t")[1:] for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    for file in (steps, calm.log):
        file.unlink(missing_ok=True)
    shutil.rmtree(home)
    return [f"{name} {path.removeprefix(str(home))}" for name, path in lines]


def spread(total: int, sample: int | None) -> list[int]:
    """Numbers from 1 to `total`, all or `sample` of them evenly spread with both ends, every first part spread, too."""
    if sample is None or sample >= total:
        numbers = list(range(1, total + 1))
    else:
        numbers = sorted({round(1 + index * (total - 1) / max(1, sample - 1)) for index in range(sample)})
    digits = (len(numbers) - 1).bit_length()
    reversed_bits = (int(f"{place:0{digits}b}"[::-1], 2) for place in range(2**digits))
    return [numbers[place] for place in reversed_bits if place < len(numbers)]


def table(report: dict[str, Any]) -> str:
    """The outcomes as a Markdown table, a line for each stage."""
    kinds = report["kinds"]
    lines = [["stage", "operations", *kinds, *GOOD, "anything else"], ["---"] * (len(kinds) + 5)]
    for stage, total in report["operations"].items():
        entries = [entry for entry in report["failures"] if entry["stage"] == stage]
        tried = Counter(entry["kind"] for entry in entries)
        good = [sum(entry["outcome"] == outcome for entry in entries) for outcome in GOOD]
        row = [stage, total, *(tried[kind] for kind in kinds), *good, len(entries) - sum(good)]
        lines.append([str(cell) for cell in row])
    sample = "every operation" if report["sample"] is None else f"{report['sample']} operations a stage, evenly spread"
    if report["sample"] is None and len(report["failures"]) < sum(report["operations"].values()) * len(kinds):
        sample = "those tried so far, evenly spread"
    mended = "".join(f" {stage} as of commit {commit}." for stage, commit in report.get("again", {}).items())
    head = f"Commit {report['commit']}; {sample}.{mended} Columns with a kind's name say how many of it were tried."
    return head + "\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def report_so_far(arguments: argparse.Namespace) -> dict[str, Any]:
    """The report that an interrupted run of the same commit left, or an empty one.

    With `--again` it may be of another commit: all that was tried of the stages asked for is left out and tried anew.
    """
    report = provenance(threads=1) | {
        "sample": arguments.sample,
        "kinds": arguments.kinds,
        "operations": {},
        "failures": [],
    }
    written = arguments.output / "operations.json"
    if written.exists():
        earlier = json.loads(written.read_text(encoding="utf-8"))
        if arguments.again:
            others = [entry for entry in earlier["failures"] if entry["stage"] not in arguments.stages]
            again = earlier.get("again", {}) | dict.fromkeys(arguments.stages, report["commit"])
            report = earlier | {"failures": others, "again": again}
        elif earlier["commit"] == report["commit"]:
            report |= {"operations": earlier["operations"], "failures": earlier["failures"]}
    return report


def write(report: dict[str, Any], folder: Path) -> None:
    """Write `operations.json` and `operations.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "operations.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (folder / "operations.md").write_text(table(report), encoding="utf-8")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Try everything that `arguments` ask for and that was not tried yet."""
    preload()
    copies = MicroCopies(arguments.folder.resolve())
    last = max(list(TARGETS).index(name) for name in arguments.stages)
    copies.prepare(until=list(TARGETS)[last])
    report = report_so_far(arguments)
    tried = {(entry["stage"], entry["kind"], entry["number"]) for entry in report["failures"]}
    listed = {name: operations(copies, TARGETS[name]) for name in arguments.stages}
    report["operations"] |= {name: len(calls) for name, calls in listed.items()}
    saved = time.monotonic()
    for name, number in in_turn(
        {name: arguments.numbers or spread(len(listed[name]), arguments.sample) for name in listed}
    ):
        for kind in arguments.kinds:
            if (name, kind, number) in tried:
                continue
            entry = one_failure(copies, TARGETS[name], kind, number) | {"operation": listed[name][number - 1]}
            report["failures"].append(entry)
            if entry["outcome"] not in GOOD or arguments.verbose:
                said = entry["said"][:150]
                print(name, kind, number, listed[name][number - 1], entry["outcome"], said, flush=True)
        if time.monotonic() - saved > SAVE_SECONDS:
            write(report, arguments.output)
            saved = time.monotonic()
    write(report, arguments.output)
    return report


def in_turn(numbers: dict[str, list[int]]) -> list[tuple[str, int]]:
    """Stages with their numbers, the same share of each stage's at any place of the list."""
    places = [(place / len(todo), name, number) for name, todo in numbers.items() for place, number in enumerate(todo)]
    return [(name, number) for _, name, number in sorted(places, key=lambda entry: entry[0])]


def preloaded(arguments: Sequence[str]) -> None:
    """Start this program again with the library preloaded, unless it is; does not return then."""
    if LIBRARY in os.environ:
        return
    library = Path(tempfile.mkdtemp(prefix="cocomix-interpose-")) / "interpose.so"
    compiler = os.environ.get("CC", "cc")
    build = [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl", "-lpthread"]
    try:
        subprocess.run(build, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"{SOURCE.name} cannot be compiled ({error}); install a C compiler or set CC") from error
    single = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    environment = os.environ | single | {LIBRARY: str(library), "LD_PRELOAD": str(library)}
    os.execve(sys.executable, [sys.executable, "-m", "benchmarks.faults.operations", *arguments], environment)


def main() -> None:
    """Parse the command line, try, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults.operations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--stages", nargs="*", default=list(TARGETS), choices=TARGETS, help="default: all")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS, help="default: all")
    parser.add_argument("--sample", type=int, help="operations of each stage; default: all")
    parser.add_argument(
        "--again", action="store_true", help="after a mend: these stages anew, the rest as reported by another commit"
    )
    parser.add_argument("--numbers", type=int, nargs="*", help="only these operations, to look into a failure")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/faults"), help="folder for the report")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/cocomix-operations"), help="folder for the runs")
    parser.add_argument("--verbose", action="store_true", help="print good outcomes, too")
    preloaded(sys.argv[1:])
    report = run(parser.parse_args())
    print(table(report))
    if any(entry["outcome"] not in GOOD for entry in report["failures"]):
        sys.exit("some failures were not withstood; they are printed above and in operations.json")


if __name__ == "__main__":
    main()

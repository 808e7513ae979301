"""Break a run in every way a machine can, run the same command again, and see what it makes of it.

    python -m benchmarks.faults --faults 224 -o results/faults

Each fault spoils a fresh copy of one finished run. A command may refuse: with one sentence and exit code 2; the
harness then does what the sentence says, and nothing else, and runs the command again. In the end every file must be
the undisturbed run's, byte by byte apart from clocks (`same_bits`). Outcomes: `resumed-identical`, `refused` (and
identical after what the sentence said), or `wrong`. `lost` names finished stages before the fault that were made again.

Finished faults are kept in `finished.jsonl` beside the report: the same command goes on. Needs root, to mount small
disks; permissions hold all the same (the command gives up the privilege to pass over them).
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.faults.advice import follow, refusal
from benchmarks.faults.damage import FAULTS, Struck, plan
from benchmarks.faults.forked_commands import Forked, preload
from benchmarks.faults.kill_plan import TARGETS
from benchmarks.faults.processes import Command
from benchmarks.faults.run_copies import Arena, records
from benchmarks.provenance import provenance

STUDENTS = {"ntp": "student", "cocomix": "student"}
ATTEMPTS = 6


def suffer(arena: Arena, number: int, seed: int) -> dict[str, Any]:
    """Fault `number`, and what came of it."""
    rounds = plan()
    fault, stage = rounds[number % len(rounds)]
    target, begun = TARGETS[stage], time.monotonic()
    struck = FAULTS[fault].strike(arena, target, random.Random(f"{seed} {number}"))
    before = records(struck.home, stage)
    said, why = _until_done(struck)
    if why is None:
        outputs = struck.outputs
        wrong = arena.wrong_together(struck.home, target) if struck.processes > 1 else arena.wrong(struck.home, outputs)
        why = f"not as undisturbed: {', '.join(wrong[:8])}" if wrong else None
    found = {
        "number": number,
        "stage": STUDENTS.get(stage, stage),
        "fault": f"{fault}: {struck.about}",
        "outcome": "wrong" if why else "refused" if said else "resumed-identical",
        "lost": [name for name, was in before.items() if records(struck.home, stage).get(name) != was],
        "said": [sentence.replace(str(struck.home), "") for sentence in said],
        "seconds": round(time.monotonic() - begun, 1),
    }
    if why:
        kept = arena.folder / "wrong" / str(number)
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(struck.home, kept, symlinks=True)
        found |= {"why": why, "target": stage}
    shutil.rmtree(struck.home, ignore_errors=True)
    for close in struck.close:
        close()
    (Path(tempfile.gettempdir()) / f"{struck.home.name}.log").unlink(missing_ok=True)
    return found


def _until_done(struck: Struck) -> tuple[list[str], str | None]:
    """Run the command, and do what it says, until it is content; its sentences, and what was wrong if anything."""
    said: list[str] = []
    for _ in range(ATTEMPTS):
        command = _run(struck, struck.arguments)
        if command.popen.returncode == 0:
            return said, None
        sentence = refusal(command)
        if sentence is None:
            return said, f"ended with {command.popen.returncode}: {command.said[-1500:]}"
        said.append(sentence)
        commands = follow(sentence, struck.home, struck.cure)
        if commands is None:
            return said, f"nothing can be done by the sentence: {sentence}"
        for arguments in commands:
            _run(struck, arguments)
    return said, f"it refused {ATTEMPTS} times"


def _run(struck: Struck, arguments: list[str]) -> Command:
    if struck.processes > 1:
        command = Command(arguments, struck.home, struck.processes)
    else:
        command = Forked(arguments, struck.home, struck.before)
    command.ended()
    return command


def finished(folder: Path) -> dict[int, dict[str, Any]]:
    """Faults that are over, by number; the last word on each."""
    path = folder / "finished.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {entry["number"]: entry for entry in map(json.loads, lines)}


def work(arena: Arena, numbers: list[int], seed: int, output: Path) -> None:
    """Suffer the faults `numbers`, one after the other, noting each."""
    for number in numbers:
        try:
            found = suffer(arena, number, seed)
        except (Exception, SystemExit):  # the latter from a command that does not end
            fault, stage = plan()[number % len(plan())]
            found = {"number": number, "stage": stage, "fault": fault, "outcome": "wrong", "lost": [], "said": []}
            found["why"] = f"the harness failed: {traceback.format_exc()[-1500:]}"
        with (output / "finished.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(found) + "\n")
        print(number, found["outcome"], found["stage"], found["fault"], found.get("why", ""), flush=True)


def report(output: Path, seed: int, origin: dict[str, Any]) -> dict[str, Any]:
    """What is over so far, written to `report.json`; `origin` is its `provenance`."""
    faults = [entry for _, entry in sorted(finished(output).items())]
    content = {
        **origin,
        "seed": seed,
        "counts": dict(Counter(entry["outcome"] for entry in faults)),
        "lost": sum(len(entry["lost"]) for entry in faults),
        "kinds": dict(Counter(entry["fault"].split(":")[0] for entry in faults)),
        "stages": dict(Counter(entry["stage"] for entry in faults)),
        "faults": faults,
    }
    (output / "report.json").write_text(json.dumps(content, indent=1) + "\n")
    return content


def table(content: dict[str, Any]) -> str:
    """What came of each kind of fault, in Markdown."""
    lines = ["| fault | times | same bits at once | refused, mended, same bits | wrong | finished stages lost |"]
    lines.append("|---|---|---|---|---|---|")
    for kind in sorted(content["kinds"]):
        faults = [entry for entry in content["faults"] if entry["fault"].split(":")[0] == kind]
        counts = Counter(entry["outcome"] for entry in faults)
        outcomes = " | ".join(str(counts[outcome]) for outcome in ("resumed-identical", "refused", "wrong"))
        lines.append(f"| {kind} | {len(faults)} | {outcomes} | {sum(len(entry['lost']) for entry in faults)} |")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, share the faults among workers, and report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--faults", type=int, default=224, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of moments, files and places")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/faults"), help="folder of the report")
    parser.add_argument("--only", nargs="*", help="kinds of faults or stages; default: all")
    parser.add_argument("--again", action="store_true", help="suffer those again that were wrong")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/cocomix-faults"), help="where runs are broken")
    chosen = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    preload()
    origin = provenance(threads=1)
    arena = Arena(chosen.folder.resolve())
    arena.prepare()
    chosen.output.mkdir(parents=True, exist_ok=True)
    over = {
        number for number, entry in finished(chosen.output).items() if not chosen.again or entry["outcome"] != "wrong"
    }
    drawn = plan()
    numbers = [
        number
        for number in range(chosen.faults)
        if number not in over and (not chosen.only or set(drawn[number % len(drawn)]) & set(chosen.only))
    ]
    workers = []
    for worker in range(chosen.workers):
        pid = os.fork()
        if not pid:
            work(arena, numbers[worker :: chosen.workers], chosen.seed, chosen.output)
            os._exit(0)
        workers.append(pid)
    for pid in workers:
        os.waitpid(pid, 0)
    content = report(chosen.output, chosen.seed, origin)
    print(table(content))
    if content["counts"].get("wrong"):
        sys.exit("not all is as it should be")


if __name__ == "__main__":
    main()

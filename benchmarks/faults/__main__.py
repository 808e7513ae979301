"""Damage a run in the ways a machine can, rerun the same command, and check that it recovers.

    python -m benchmarks.faults --faults 224 -o results/faults

Each fault damages a fresh copy of one finished run. The command may then refuse to work with one sentence and exit
code 2. In that case the harness does exactly what the sentence says and runs the command again. In the end every file
must equal the undisturbed run's, byte by byte apart from clock readings (`benchmarks.same_bits`).

Outcomes: `resumed-identical`, `refused` (identical after following the sentence) and `wrong`. `lost` names stages that
were finished before the fault and had to be made again.

Finished faults are kept in `finished.jsonl` next to the report, so rerun the same command to resume. The harness needs
root to mount small disks. File permissions still apply: the tested command drops the capabilities that bypass them.
"""

import argparse
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.faults.damage import FAULTS, FaultyRun, plan
from benchmarks.faults.fixes import apply_fix, error_message
from benchmarks.faults.forked_commands import ForkedCommand, preload
from benchmarks.faults.kill_plan import TARGETS
from benchmarks.faults.processes import Command
from benchmarks.faults.run_copies import RunCopies, stage_records
from benchmarks.provenance import provenance
from cocomix.utils.console import use_any_encoding

STUDENTS = {"ntp": "student", "cocomix": "student"}
MAX_ATTEMPTS = 6
EDIT = re.compile(r"config\.yaml was edited: .*")
"""How a command says that settings changed; a corrupted value looks like an edit."""
OUTCOMES = ("resumed-identical", "refused", "announced", "wrong")


def run_fault(copies: RunCopies, number: int, seed: int) -> dict[str, Any]:
    """Inject fault `number`, run the command until it succeeds or fails for good, and return the report's entry."""
    planned = plan()
    fault, stage = planned[number % len(planned)]
    target, started = TARGETS[stage], time.monotonic()
    faulty = FAULTS[fault].inject(copies, target, random.Random(f"{seed} {number}"))
    records_before = stage_records(faulty.home, stage)
    messages, why = _run_until_done(faulty)
    if why is None:
        if faulty.processes > 1:
            differing = copies.differing_files_of_two(faulty.home, target)
        else:
            differing = copies.differing_files(faulty.home, faulty.outputs)
        why = f"not as undisturbed: {', '.join(differing[:8])}" if differing else None
    records_after = stage_records(faulty.home, stage)
    entry = {
        "number": number,
        "stage": STUDENTS.get(stage, stage),
        "fault": f"{fault}: {faulty.description}",
        "outcome": "wrong" if why else _outcome(messages),
        "lost": [name for name, record in records_before.items() if records_after.get(name) != record],
        "said": [message.replace(str(faulty.home), "") for message in messages],
        "seconds": round(time.monotonic() - started, 1),
    }
    if why:
        kept = copies.folder / "wrong" / str(number)
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(faulty.home, kept, symlinks=True)
        entry |= {"why": why, "target": stage}
    shutil.rmtree(faulty.home, ignore_errors=True)
    for cleanup in faulty.cleanups:
        cleanup()
    (Path(tempfile.gettempdir()) / f"{faulty.home.name}.log").unlink(missing_ok=True)
    return entry


def _outcome(messages: list[str]) -> str:
    if any(map(EDIT.match, messages)):
        return "announced"
    return "refused" if messages else "resumed-identical"


def _run_until_done(faulty: FaultyRun) -> tuple[list[str], str | None]:
    """Run the command and follow its error messages until it succeeds.

    Returns:
        the error messages, and what went wrong (None if the command succeeded).
    """
    messages: list[str] = []
    for _ in range(MAX_ATTEMPTS):
        command = _run(faulty, faulty.arguments)
        if command.popen.returncode == 0:
            edit = EDIT.search(command.output)
            if edit is None or faulty.repair is None or any(map(EDIT.match, messages)):
                return messages, None
            messages.append(" ".join(edit[0].split()))  # a user who has edited nothing restores the file
            faulty.repair()
            continue
        message = error_message(command)
        if message is None:
            return messages, f"ended with {command.popen.returncode}: {command.output[-1500:]}"
        messages.append(message)
        commands = apply_fix(message, faulty.home, faulty.repair)
        if commands is None:
            return messages, f"the message names nothing that can be done: {message}"
        for arguments in commands:
            _run(faulty, arguments)
    return messages, f"it refused {MAX_ATTEMPTS} times"


def _run(faulty: FaultyRun, arguments: list[str]) -> Command:
    if faulty.processes > 1:
        command = Command(arguments, faulty.home, faulty.processes)
    else:
        command = ForkedCommand(arguments, faulty.home, faulty.preexec)
    command.wait()
    return command


def finished(folder: Path) -> dict[int, dict[str, Any]]:
    """Return the latest entry of every fault that has been run, by number."""
    path = folder / "finished.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {entry["number"]: entry for entry in map(json.loads, lines)}


def work(copies: RunCopies, numbers: list[int], seed: int, output: Path) -> None:
    """Run the faults `numbers` one after the other and append each entry to `finished.jsonl`."""
    for number in numbers:
        try:
            entry = run_fault(copies, number, seed)
        except (Exception, SystemExit):  # SystemExit: a command that did not end in time
            fault, stage = plan()[number % len(plan())]
            entry = {"number": number, "stage": stage, "fault": fault, "outcome": "wrong", "lost": [], "said": []}
            entry["why"] = f"the harness failed: {traceback.format_exc()[-1500:]}"
        with (output / "finished.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")
        print(number, entry["outcome"], entry["stage"], entry["fault"], entry.get("why", ""), flush=True)


def report(output: Path, seed: int, origin: dict[str, Any]) -> dict[str, Any]:
    """Write all entries so far to `report.json` and return its content; `origin` comes from `provenance`."""
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
    """Return a Markdown table of outcomes by kind of fault."""
    columns = ["fault", "times", "same bits at once", "refused, fixed, same bits"]
    columns += ["announced as an edit, restored, same bits", "wrong", "finished stages lost"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for kind in sorted(content["kinds"]):
        faults = [entry for entry in content["faults"] if entry["fault"].split(":")[0] == kind]
        counts = Counter(entry["outcome"] for entry in faults)
        outcomes = " | ".join(str(counts[outcome]) for outcome in OUTCOMES)
        lines.append(f"| {kind} | {len(faults)} | {outcomes} | {sum(len(entry['lost']) for entry in faults)} |")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, distribute the faults over workers, and write the report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--faults", type=int, default=224, help="number of faults")
    parser.add_argument("--seed", type=int, default=0, help="seed of moments, files and positions")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/faults"), help="folder for the report")
    parser.add_argument("--only", nargs="*", help="kinds of faults, or stages; default: all")
    parser.add_argument("--again", action="store_true", help="run faults again whose outcome was wrong")
    parser.add_argument("--workers", type=int, default=2, help="faults that run at the same time")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/cocomix-faults"), help="folder for the damaged runs")
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    preload()
    origin = provenance(threads=1)
    copies = RunCopies(arguments.folder.resolve())
    copies.prepare()
    arguments.output.mkdir(parents=True, exist_ok=True)
    entries = finished(arguments.output)
    skipped = {number for number, entry in entries.items() if not arguments.again or entry["outcome"] != "wrong"}
    numbers = [number for number in range(arguments.faults) if number not in skipped]
    if arguments.only:
        planned = plan()
        numbers = [number for number in numbers if set(planned[number % len(planned)]) & set(arguments.only)]
    workers = []
    for worker in range(arguments.workers):
        pid = os.fork()
        if not pid:
            work(copies, numbers[worker :: arguments.workers], arguments.seed, arguments.output)
            os._exit(0)
        workers.append(pid)
    for pid in workers:
        os.waitpid(pid, 0)
    content = report(arguments.output, arguments.seed, origin)
    print(table(content))
    if content["counts"].get("wrong"):
        sys.exit("some faults were not recovered from; their entries in the report say why")


if __name__ == "__main__":
    use_any_encoding()
    main()

"""Kill every stage at random moments, rerun the same command, and compare with a run that was never stopped.

    python -m benchmarks.faults.resume --kills 24 -o results/resume

The moment of a kill is drawn uniformly over the time the stage's work takes undisturbed (imports are not work), or it
is the writing of a checkpoint after a step drawn uniformly over the training. A kill that comes after the stage is done
does not count and is drawn again. After the rerun every file of the stage's output must equal the undisturbed one byte
by byte, apart from clock readings (`benchmarks.same_bits`). Runs with two processes are compared with an undisturbed
run with two. Every process has one thread.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.faults.kill_plan import CASES, TARGETS, TRAINING, Case, Target, recipes, write_texts
from benchmarks.faults.processes import KILL_METHODS, POLL_SECONDS, Command, Watch
from benchmarks.provenance import provenance
from benchmarks.same_bits import contents, differences
from cocomix.utils.console import use_any_encoding

MAX_DRAWS = 20


@dataclass
class ReferenceRun:
    """The output of a stage that ran without interruption."""

    contents: dict[str, str]
    seconds: float
    """from the start of work until the output is complete"""


@dataclass
class Workspace:
    """The folder with all runs.

    Attributes:
        folder: contains texts, recipes and the runs' working directories.
        undisturbed: outputs to compare with, by stage, number of processes and kind of parallelism.
    """

    folder: Path
    undisturbed: dict[tuple[str, int, str], ReferenceRun] = field(default_factory=dict)

    def prepare(self) -> None:
        """Write texts and recipes, and run every stage once in one process without interruption."""
        write_texts(self.folder / "texts")
        for name, recipe in recipes().items():
            (self.folder / name).mkdir()
            (self.folder / name / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
        _run(["corpus"], self.folder / "models")
        _run(["tokenize"], self.folder / "models")
        for target in TARGETS.values():
            self._run_undisturbed(Case(target.name, ""), self.folder / target.recipe)

    def reference(self, case: Case) -> ReferenceRun:
        """Return the undisturbed output that `case` is compared with."""
        if _key(case) not in self.undisturbed:
            home = self.home(case.target)
            self._run_undisturbed(case._replace(saving=False), home)
            shutil.rmtree(home)
        return self.undisturbed[_key(case)]

    def home(self, name: str) -> Path:
        """Make a new run with copies of all undisturbed stages before `name`, and return its working directory."""
        target = TARGETS[name]
        home = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))
        base = self.folder / target.recipe
        shutil.copy2(base / "recipe.yaml", home)
        (home / "run").mkdir()
        for earlier in list(TARGETS.values())[: list(TARGETS).index(name)]:
            for output in earlier.outputs:
                if (base / "run" / output).is_dir():
                    shutil.copytree(base / "run" / output, home / "run" / output)
        return home

    def _run_undisturbed(self, case: Case, home: Path) -> None:
        target = TARGETS[case.target]
        watch = Watch(home, target.last, target.first_read)
        command = Command(_arguments(target, case), home, case.processes)
        work_started = command.seconds if watch.wait_for_work(command) else 0.0
        while command.running() and not watch.finished():
            time.sleep(POLL_SECONDS)
        seconds = command.seconds - work_started
        command.wait()
        if command.popen.returncode:
            raise SystemExit(f"{case.target} failed undisturbed:\n{command.output}")
        self.undisturbed[_key(case)] = ReferenceRun(_outputs(home, target), seconds)
        print(f"undisturbed: {case.target}, {case.processes} process(es), {seconds:.1f} s of work", flush=True)


def kill_and_resume(workspace: Workspace, case: Case, rng: random.Random) -> list[dict[str, Any]]:
    """Kill, rerun and compare once; return an entry of the report for each kill."""
    reference = workspace.reference(case)
    target = TARGETS[case.target]
    home, kills = _killed_run(workspace, case, reference, rng)
    started = time.monotonic()
    resumed = Command(_arguments(target, case), home, case.processes)
    stragglers = resumed.wait()
    differing = (
        differences(reference.contents, _outputs(home, target)) if resumed.popen.returncode == 0 else ["no output"]
    )
    left = [path.name for path in (home / "run" / ".partial").glob("*") if path.suffix != ".lock"]
    after = {
        "resume_exit": resumed.popen.returncode,
        "resume_seconds": round(time.monotonic() - started, 2),
        "files": len(reference.contents),
        "identical": not differing,
        "clean": not left and not stragglers,
    }
    if differing or left or stragglers:
        after |= {"different": differing, "left_behind": left, "kept_in": str(home), "said": resumed.output[-2000:]}
    else:
        shutil.rmtree(home)
    return [kill | after for kill in kills]


def _killed_run(
    workspace: Workspace, case: Case, reference: ReferenceRun, rng: random.Random
) -> tuple[Path, list[dict[str, Any]]]:
    """Make a run whose stage was killed as often as `case` says; return its directory and the kills."""
    for _ in range(MAX_DRAWS):
        home, kills = workspace.home(case.target), []
        while len(kills) < case.times and (kill := kill_once(home, case, reference, rng)) is not None:
            kills.append(kill)
        if len(kills) == case.times:
            return home, kills
        shutil.rmtree(home)
    raise SystemExit(f"{case} ended before the kill, {MAX_DRAWS} times")


def kill_once(home: Path, case: Case, reference: ReferenceRun, rng: random.Random) -> dict[str, Any] | None:
    """Start the command and kill it once; None if it ended before."""
    target, method = TARGETS[case.target], KILL_METHODS[case.method]
    watch = Watch(home, target.last, target.first_read)
    command = Command(_arguments(target, case), home, case.processes)
    if not watch.wait_for_work(command):
        raise SystemExit(f"{case.target} ended before its work began:\n{command.output}")
    work_started = command.seconds
    step = None
    if case.saving:
        step = _wait_for_a_save(watch, command, rng.randint(1, _steps(case) // case.times))
    else:
        moment = work_started + rng.uniform(0, reference.seconds / case.times)
        while command.seconds < moment and command.running() and not watch.finished():
            time.sleep(POLL_SECONDS)
    killed_at = command.seconds
    processes = method.processes(command, rng)
    ended = watch.finished() or not command.running()
    command.send_signal(method.signal, processes)
    stragglers = command.wait()
    if ended or watch.finished():
        return None
    checkpoints = watch.checkpoints()
    return {
        "stage": case.target,
        "at": round(killed_at, 3),
        "into_work": round(killed_at - work_started, 3),
        "work_seconds": round(reference.seconds, 3),
        "step": step or command.stopped_at(),
        "resumed_from": checkpoints[-1] if checkpoints else None,
        "signal": method.signal,
        "to": method.target,
        "processes": case.processes,
        "parallel": case.parallel if case.processes > 1 else None,
        "during_save": case.saving,
        "kills_in_a_row": case.times,
        "exit": command.popen.returncode,
        "outlived": len(stragglers),
    }


def _wait_for_a_save(watch: Watch, command: Command, step: int) -> int | None:
    while command.running():
        saving = watch.saving()
        if saving is not None and saving >= step:
            return saving
    return None


def _steps(case: Case) -> int:
    section: Any = recipes()["models"]
    for part in TRAINING[case.target].split("."):
        section = section[part]
    return section["steps"]


def _arguments(target: Target, case: Case) -> list[str]:
    return [*target.command, "-r", "run", "-c", "recipe.yaml", *case.overrides]


def _run(arguments: list[str], home: Path) -> None:
    command = Command([*arguments, "-r", "run", "-c", "recipe.yaml"], home)
    command.wait()
    if command.popen.returncode:
        raise SystemExit(command.output)


def _outputs(home: Path, target: Target) -> dict[str, str]:
    return contents(*(home / "run" / output for output in target.outputs))


def _key(case: Case) -> tuple[str, int, str]:
    return case.target, case.processes, case.parallel


COLUMNS = {
    "stage": "stage",
    "processes": "processes",
    "parallel": "sharing",
    "signal": "signal",
    "to": "to",
    "at": "at, s",
    "into_work": "into its work, s",
    "work_seconds": "of, s",
    "step": "step",
    "resumed_from": "checkpoint",
    "during_save": "in a save",
    "exit": "exit code",
    "identical": "identical",
}


def table(report: dict[str, Any]) -> str:
    """Return the report's kills as a Markdown table."""
    rows = [[_cell(kill[key]) for key in COLUMNS] for kill in report["kills"]]
    lines = [["", *COLUMNS.values()], ["---"] * (len(COLUMNS) + 1)]
    lines += [[str(number), *row] for number, row in enumerate(rows, 1)]
    same = sum(kill["identical"] for kill in report["kills"])
    head = (
        f"{same} of {len(rows)} kills were resumed to the same bits (commit {report['commit']}, seed {report['seed']})."
    )
    return head + "\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(value: Any) -> str:
    words = {None: "", True: "yes", False: "no"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def main() -> None:
    """Parse the command line and write `report.json` and `table.md` after every case."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults.resume",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=24, help="minimum number of kills")
    parser.add_argument("--seed", type=int, default=0, help="seed of moments and of the processes that are killed")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/resume"), help="folder for the report")
    parser.add_argument("--only", nargs="*", choices=TARGETS, help="stages to kill; default: all")
    arguments = parser.parse_args()
    # A shell starts background jobs with SIGINT ignored, and the commands would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cases = [case for case in CASES if not arguments.only or case.target in arguments.only]
    report: dict[str, Any] = {
        **provenance(threads=1),
        "seed": arguments.seed,
        "config": recipes(),
        "kills": [],
    }
    started = time.monotonic()
    workspace = Workspace(Path(tempfile.mkdtemp(prefix="cocomix-kills-")))
    workspace.prepare()
    arguments.output.mkdir(parents=True, exist_ok=True)
    rng, number = random.Random(arguments.seed), 0
    while len(report["kills"]) < arguments.kills:
        kills = kill_and_resume(workspace, cases[number % len(cases)], rng)
        number += 1
        report["kills"] += kills
        report["seconds"] = round(time.monotonic() - started, 1)
        (arguments.output / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        (arguments.output / "table.md").write_text(table(report))
        for kill in kills:
            shown = ("stage", "signal", "to", "processes", "at", "step", "resumed_from", "exit", "identical", "clean")
            print(f"{len(report['kills'])}:", *(f"{key} {_cell(kill[key])}" for key in shown), flush=True)
    if all(kill["identical"] and kill["clean"] for kill in report["kills"]):
        shutil.rmtree(workspace.folder)
    else:
        sys.exit(
            f"some kills did not resume to the same bits; see {arguments.output}/report.json and {workspace.folder}"
        )


if __name__ == "__main__":
    use_any_encoding()
    main()

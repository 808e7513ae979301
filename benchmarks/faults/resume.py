"""Kill every stage at random moments, let the same command finish it, and compare with a run that was never stopped.

    python -m benchmarks.faults.resume --kills 24 -o results/resume

Each blow falls at a moment drawn evenly over the time the stage took undisturbed, counted from the beginning of its
work (imports are not work), or while a checkpoint is written after a step drawn evenly over the training. A blow that
comes when the stage is done does not count and is drawn again. Every file of the stage's output must then be equal,
byte by byte, to the undisturbed one's (`same_bits` says what is a clock's reading); runs of two processes are compared
with an undisturbed run of two. One thread a process.
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
from benchmarks.faults.processes import BLOWS, POLL, Command, Watch
from benchmarks.provenance import provenance
from benchmarks.same_bits import contents, differences

MOST_DRAWS = 20


@dataclass
class Undisturbed:
    """A finished stage nobody interrupted."""

    contents: dict[str, str]
    seconds: float
    """from the beginning of work to the output being in place"""


@dataclass
class Field:
    """Where it all happens.

    Attributes:
        folder: texts, recipes and homes of runs.
        undisturbed: outputs to compare with, by stage, processes and way of sharing a model.
    """

    folder: Path
    undisturbed: dict[tuple[str, int, str], Undisturbed] = field(default_factory=dict)

    def prepare(self) -> None:
        """Write texts and recipes, and run every stage once without a disturbance, in one process."""
        write_texts(self.folder / "texts")
        for name, recipe in recipes().items():
            (self.folder / name).mkdir()
            (self.folder / name / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
        _run(["corpus"], self.folder / "models")
        _run(["tokenize"], self.folder / "models")
        for target in TARGETS.values():
            self._run_undisturbed(Case(target.name, ""), self.folder / target.recipe)

    def reference(self, case: Case) -> Undisturbed:
        """The undisturbed output `case` is compared with."""
        if _key(case) not in self.undisturbed:
            home = self.home(case.target)
            self._run_undisturbed(case._replace(saving=False), home)
            shutil.rmtree(home)
        return self.undisturbed[_key(case)]

    def home(self, name: str) -> Path:
        """A new run that has all stages before `name` from the undisturbed one, and nothing else."""
        target = TARGETS[name]
        home = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))
        base = self.folder / target.recipe
        shutil.copy2(base / "recipe.yaml", home)
        (home / "run").mkdir()
        for before in list(TARGETS.values())[: list(TARGETS).index(name)]:
            for output in before.outputs:
                if (base / "run" / output).is_dir():
                    shutil.copytree(base / "run" / output, home / "run" / output)
        return home

    def _run_undisturbed(self, case: Case, home: Path) -> None:
        target = TARGETS[case.target]
        watch = Watch(home, target.last, target.first_read)
        command = Command(_arguments(target, case), home, case.processes)
        begun = command.seconds if watch.wait_for_work(command) else 0.0
        while command.running() and not watch.finished():
            time.sleep(POLL)
        seconds = command.seconds - begun
        command.ended()
        if command.popen.returncode:
            raise SystemExit(f"{case.target} failed undisturbed:\n{command.said}")
        self.undisturbed[_key(case)] = Undisturbed(_outputs(home, target), seconds)
        print(f"undisturbed: {case.target}, {case.processes} process(es), {seconds:.1f} s of work", flush=True)


def attack(ground: Field, case: Case, rng: random.Random) -> list[dict[str, Any]]:
    """Kill, resume and compare once; an entry of the report for each kill."""
    reference = ground.reference(case)
    target = TARGETS[case.target]
    home, kills = _struck(ground, case, reference, rng)
    started = time.monotonic()
    resumed = Command(_arguments(target, case), home, case.processes)
    stragglers = resumed.ended()
    wrong = differences(reference.contents, _outputs(home, target)) if resumed.popen.returncode == 0 else ["no output"]
    left = [path.name for path in (home / "run" / ".partial").glob("*") if path.suffix != ".lock"]
    after = {
        "resume_exit": resumed.popen.returncode,
        "resume_seconds": round(time.monotonic() - started, 2),
        "files": len(reference.contents),
        "identical": not wrong,
        "clean": not left and not stragglers,
    }
    if wrong or left or stragglers:
        after |= {"different": wrong, "left_behind": left, "kept_in": str(home), "said": resumed.said[-2000:]}
    else:
        shutil.rmtree(home)
    return [kill | after for kill in kills]


def _struck(ground: Field, case: Case, reference: Undisturbed, rng: random.Random) -> tuple[Path, list[dict[str, Any]]]:
    """A run whose stage was killed as often as `case` says, and what each kill was."""
    for _ in range(MOST_DRAWS):
        home, kills = ground.home(case.target), []
        while len(kills) < case.times and (kill := strike(home, case, reference, rng)) is not None:
            kills.append(kill)
        if len(kills) == case.times:
            return home, kills
        shutil.rmtree(home)
    raise SystemExit(f"{case} was over before the blow fell, {MOST_DRAWS} times")


def strike(home: Path, case: Case, reference: Undisturbed, rng: random.Random) -> dict[str, Any] | None:
    """Start the command and strike once; None if it was over first."""
    target, blow = TARGETS[case.target], BLOWS[case.blow]
    watch = Watch(home, target.last, target.first_read)
    command = Command(_arguments(target, case), home, case.processes)
    if not watch.wait_for_work(command):
        raise SystemExit(f"{case.target} ended before its work began:\n{command.said}")
    begun = command.seconds
    step = None
    if case.saving:
        step = _wait_for_a_save(watch, command, rng.randint(1, _steps(case) // case.times))
    else:
        moment = begun + rng.uniform(0, reference.seconds / case.times)
        while command.seconds < moment and command.running() and not watch.finished():
            time.sleep(POLL)
    at = command.seconds
    victims = blow.victims(command, rng)
    over = watch.finished() or not command.running()
    command.strike(blow.signal, victims)
    stragglers = command.ended()
    if over or watch.finished():
        return None
    whole = watch.checkpoints()
    return {
        "stage": case.target,
        "at": round(at, 3),
        "into_work": round(at - begun, 3),
        "work_seconds": round(reference.seconds, 3),
        "step": step or command.stopped_at(),
        "resumed_from": whole[-1] if whole else None,
        "signal": blow.signal,
        "to": blow.target,
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
    command.ended()
    if command.popen.returncode:
        raise SystemExit(command.said)


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
    """The report's kills as a Markdown table."""
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
    """Parse the command line and write `report.json` and `table.md` after every attack."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults.resume",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=24, help="at least so many")
    parser.add_argument("--seed", type=int, default=0, help="of stages' moments and victims")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/resume"), help="folder of the report")
    parser.add_argument("--only", nargs="*", choices=TARGETS, help="stages to attack; default: all")
    chosen = parser.parse_args()
    # A shell starts what it puts in the background deaf to SIGINT, and our commands would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cases = [case for case in CASES if not chosen.only or case.target in chosen.only]
    report: dict[str, Any] = {
        **provenance(threads=1),
        "seed": chosen.seed,
        "config": recipes(),
        "kills": [],
    }
    started = time.monotonic()
    ground = Field(Path(tempfile.mkdtemp(prefix="cocomix-kills-")))
    ground.prepare()
    chosen.output.mkdir(parents=True, exist_ok=True)
    rng, number = random.Random(chosen.seed), 0
    while len(report["kills"]) < chosen.kills:
        kills = attack(ground, cases[number % len(cases)], rng)
        number += 1
        report["kills"] += kills
        report["seconds"] = round(time.monotonic() - started, 1)
        (chosen.output / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        (chosen.output / "table.md").write_text(table(report))
        for kill in kills:
            shown = ("stage", "signal", "to", "processes", "at", "step", "resumed_from", "exit", "identical", "clean")
            print(f"{len(report['kills'])}:", *(f"{key} {_cell(kill[key])}" for key in shown), flush=True)
    if all(kill["identical"] and kill["clean"] for kill in report["kills"]):
        shutil.rmtree(ground.folder)
    else:
        sys.exit(f"not all is as it should be; see {chosen.output / 'report.json'} and {ground.folder}")


if __name__ == "__main__":
    main()

"""Where faults happen: one finished run, and copies of it that stand just before or just after a stage."""

import json
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from benchmarks.faults.forked_commands import Forked
from benchmarks.faults.kill_plan import TARGETS, TRAINING, Target, recipes, write_texts
from benchmarks.faults.processes import POLL, Command, Watch
from benchmarks.same_bits import ANEW, contents, differences
from cocomix.utils.env import git_commit

STEPS = 12
BEGINNING = 400
"""Characters of each address."""
WHOLE_RUN = ["demo", "-r", "run"]
FROM_RECIPE = ["-c", "recipe.yaml"]


@dataclass
class Arena:
    """A finished run to take copies of.

    Attributes:
        folder: everything is below it.
        seconds: of each stage's work, undisturbed.
        together: outputs of stages done by two processes, undisturbed.
    """

    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)
    together: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def whole(self) -> Path:
        """Home of the finished run."""
        return self.folder / "whole"

    def prepare(self) -> None:
        """Make the run, stage by stage, unless an earlier attempt made it with the same code, which a report names."""
        noted, commit = self.folder / "made.json", git_commit()
        if noted.exists():
            made = json.loads(noted.read_text(encoding="utf-8"))
            if made["commit"] == commit:
                self.seconds = made["seconds"]
                return
        shutil.rmtree(self.folder, ignore_errors=True)
        write_texts(self.folder / "texts", beginning=BEGINNING, copies=0)
        self.whole.mkdir()
        (self.whole / "recipe.yaml").write_text(yaml.safe_dump(recipe(), sort_keys=False))
        for target in TARGETS.values():
            watch = Watch(self.whole, target.last, target.first_read)
            command = Forked(stage_command(target), self.whole)
            begun = command.seconds if watch.wait_for_work(command) else 0.0
            while command.running() and not watch.finished():
                time.sleep(POLL)
            self.seconds[target.name] = command.seconds - begun
            command.ended()
            if command.popen.returncode:
                raise SystemExit(f"{target.name} failed undisturbed:\n{command.said}")
        noted.write_text(json.dumps({"commit": commit, "seconds": self.seconds}))

    def home(self, name: str, *, done: bool, within: Path | None = None) -> Path:
        """A copy of the run with the stages before `name`, and `name` itself if `done`."""
        home = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=within or self.folder))
        shutil.copytree(self.whole, home, dirs_exist_ok=True)
        for target in list(TARGETS.values())[list(TARGETS).index(name) + done :]:
            for output in target.outputs:
                path = home / "run" / output
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return home

    def wrong(self, home: Path, outputs: Sequence[str]) -> list[str]:
        """Files of `outputs` that are not as in the undisturbed run."""
        return differences(_of(self.whole, outputs), _of(home, outputs))

    def wrong_together(self, home: Path, target: Target) -> list[str]:
        """Files of a stage done by two processes that are not as when nobody disturbed these."""
        if target.name not in self.together:
            calm = self.home(target.name, done=False)
            command = Command(stage_command(target), calm, processes=2)
            command.ended()
            if command.popen.returncode:
                raise SystemExit(f"{target.name} failed undisturbed in two processes:\n{command.said}")
            self.together[target.name] = _of(calm, target.outputs)
            shutil.rmtree(calm)
        return differences(self.together[target.name], _of(home, target.outputs))


def stage_command(target: Target) -> list[str]:
    """What a user types to do one stage."""
    return [*target.command, "-r", "run", *FROM_RECIPE]


def everything() -> list[str]:
    """All outputs of a run, below its folder; not the page, which shows seconds in words."""
    return [output for target in TARGETS.values() for output in target.outputs if output != "report.html"]


def records(home: Path, before: str) -> dict[str, tuple[int, int]]:
    """Inode and time of the record of every finished stage before `before`: others, and it was made again."""
    found = {}
    for target in list(TARGETS.values())[: list(TARGETS).index(before)]:
        for output in target.outputs:
            for path in sorted((home / "run" / output).rglob("stage.json")):
                status = path.stat()
                found[str(path.parent.relative_to(home / "run"))] = (status.st_ino, status.st_mtime_ns)
    return found


def files(home: Path, outputs: Sequence[str]) -> list[Path]:
    """The files a stage left, in order."""
    roots = [home / "run" / output for output in outputs]
    found = [path for root in roots for path in ([root] if root.is_file() else sorted(root.rglob("*")))]
    return [path for path in found if path.is_file()]


def pick(found: Sequence[Path], rng: random.Random) -> Path:
    """One of `found`; each kind of file is as likely as any other, however many there are of it."""
    kinds = sorted({_kind(path) for path in found})
    kind = rng.choice(kinds)
    return rng.choice([path for path in found if _kind(path) == kind])


def _kind(path: Path) -> str:
    return "".join(letter for letter in path.name if not letter.isdigit())


def _of(home: Path, outputs: Sequence[str]) -> dict[str, str]:
    return contents(*(home / "run" / output for output in outputs), clock=ANEW)


def recipe() -> dict:
    """Of the runs that are broken, resolved."""
    recipe = recipes(STEPS)["models"]
    recipe["seq_len"] = 32
    for section in TRAINING.values():
        place = recipe
        for part in section.split("."):
            place = place[part]
        place |= {"checkpoint_seconds": 0.02}
    return recipe

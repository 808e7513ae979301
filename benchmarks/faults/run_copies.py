"""One finished run, and copies of it that end just before or just after a given stage, for faults to damage."""

import json
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from benchmarks.faults.forked_commands import ForkedCommand
from benchmarks.faults.kill_plan import TARGETS, TRAINING, Target, recipes, write_texts
from benchmarks.faults.processes import POLL_SECONDS, Command, Watch
from benchmarks.same_bits import CLOCK_OF_NEW_RUN, contents, differences
from cocomix.utils.env import git_commit

STEPS = 12
WHOLE_RUN = ["demo", "-r", "run"]
FROM_RECIPE = ["-c", "recipe.yaml"]


@dataclass
class RunCopies:
    """A finished run and the copies made of it.

    Attributes:
        folder: contains the finished run and all copies.
        seconds: undisturbed seconds of work, by stage.
        outputs_of_two: undisturbed outputs of stages run by two processes, by stage.
    """

    beginning: ClassVar[int] = 400
    """characters of each address in the corpus"""

    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)
    outputs_of_two: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def finished(self) -> Path:
        """Working directory of the finished run."""
        return self.folder / "whole"

    def settings(self) -> dict[str, Any]:
        """Return the config of the run."""
        return recipe()

    def prepare(self, until: str = "") -> None:
        """Make the run stage by stage, unless an earlier call made it with the same commit.

        Args:
            until: the last stage that is needed; empty: all.
        """
        record_path, commit = self.folder / "made.json", git_commit()
        if record_path.exists():
            record = json.loads(record_path.read_text(encoding="utf-8"))
            if record["commit"] == commit and (until or list(TARGETS)[-1]) in record["seconds"]:
                self.seconds = record["seconds"]
                return
        shutil.rmtree(self.folder, ignore_errors=True)
        write_texts(self.folder / "texts", beginning=self.beginning, copies=0)
        self.finished.mkdir()
        (self.finished / "recipe.yaml").write_text(yaml.safe_dump(self.settings(), sort_keys=False))
        for target in TARGETS.values():
            watch = Watch(self.finished, target.last, target.first_read)
            command = ForkedCommand(stage_command(target), self.finished)
            work_started = command.seconds if watch.wait_for_work(command) else 0.0
            while command.running() and not watch.finished():
                time.sleep(POLL_SECONDS)
            self.seconds[target.name] = command.seconds - work_started
            command.wait()
            if command.popen.returncode:
                raise SystemExit(f"{target.name} failed undisturbed:\n{command.output}")
            if target.name == until:
                break
        record_path.write_text(json.dumps({"commit": commit, "seconds": self.seconds}))

    def home(self, name: str, *, done: bool, within: Path | None = None) -> Path:
        """Copy the run with all stages before `name`, and `name` itself if `done`; return the working directory."""
        home = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=within or self.folder))
        shutil.copytree(self.finished, home, dirs_exist_ok=True)
        for target in list(TARGETS.values())[list(TARGETS).index(name) + done :]:
            for output in target.outputs:
                path = home / "run" / output
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return home

    def differing_files(self, home: Path, outputs: Sequence[str]) -> list[str]:
        """Return the files of `outputs` that differ from the undisturbed run."""
        return differences(_contents(self.finished, outputs), _contents(home, outputs))

    def differing_files_of_two(self, home: Path, target: Target) -> list[str]:
        """Return the files of a stage run by two processes that differ from an undisturbed run by two."""
        if target.name not in self.outputs_of_two:
            undisturbed = self.home(target.name, done=False)
            command = Command(stage_command(target), undisturbed, processes=2)
            command.wait()
            if command.popen.returncode:
                raise SystemExit(f"{target.name} failed undisturbed in two processes:\n{command.output}")
            self.outputs_of_two[target.name] = _contents(undisturbed, target.outputs)
            shutil.rmtree(undisturbed)
        return differences(self.outputs_of_two[target.name], _contents(home, target.outputs))


def stage_command(target: Target) -> list[str]:
    """Return the arguments a user types after `cocomix` to run one stage."""
    return [*target.command, "-r", "run", *FROM_RECIPE]


def all_outputs() -> list[str]:
    """Return all outputs below a run's folder, except the HTML page, which shows seconds in words."""
    return [output for target in TARGETS.values() for output in target.outputs if output != "report.html"]


def stage_records(home: Path, before: str) -> dict[str, tuple[int, int]]:
    """Return inode and modification time of every finished stage's record before stage `before`.

    If they change, the stage was made again.
    """
    records = {}
    for target in list(TARGETS.values())[: list(TARGETS).index(before)]:
        for output in target.outputs:
            for path in sorted((home / "run" / output).rglob("stage.json")):
                status = path.stat()
                records[str(path.parent.relative_to(home / "run"))] = (status.st_ino, status.st_mtime_ns)
    return records


def files(home: Path, outputs: Sequence[str]) -> list[Path]:
    """Return the files below `outputs`, sorted."""
    roots = [home / "run" / output for output in outputs]
    paths = [path for root in roots for path in ([root] if root.is_file() else sorted(root.rglob("*")))]
    return [path for path in paths if path.is_file()]


def pick_file(paths: Sequence[Path], rng: random.Random) -> Path:
    """Draw one of `paths`; every kind of file is equally likely, however many files of that kind there are."""
    kinds = sorted({_kind(path) for path in paths})
    kind = rng.choice(kinds)
    return rng.choice([path for path in paths if _kind(path) == kind])


def _kind(path: Path) -> str:
    return "".join(letter for letter in path.name if not letter.isdigit())


def _contents(home: Path, outputs: Sequence[str]) -> dict[str, str]:
    return contents(*(home / "run" / output for output in outputs), clock=CLOCK_OF_NEW_RUN)


def recipe() -> dict:
    """Return the resolved config of the runs that are damaged."""
    config = recipes(STEPS)["models"]
    config["seq_len"] = 32
    for section in TRAINING.values():
        place = config
        for part in section.split("."):
            place = place[part]
        place |= {"checkpoint_seconds": 0.02}
    return config

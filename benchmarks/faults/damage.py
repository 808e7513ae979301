"""The kinds of faults: what each does to a copy of a run, and how a user repairs it.

A fault happens either while a command runs, or before the command that must handle it.
"""

import random
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.faults.forked_commands import ForkedCommand, without_privilege
from benchmarks.faults.kill_plan import TARGETS, Target
from benchmarks.faults.processes import KILL_METHODS, POLL_SECONDS, Command, Watch
from benchmarks.faults.run_copies import FROM_RECIPE, WHOLE_RUN, RunCopies, all_outputs, files, pick_file, stage_command

MAX_DRAWS = 12


@dataclass
class FaultyRun:
    """A run with a fault in it.

    Attributes:
        home: working directory; the run is in its subfolder `run`.
        description: the fault in words.
        arguments: the command that must handle the fault.
        outputs: what must equal the undisturbed run's output in the end.
        repair: what a user does if told to free space, fix permissions or restore the settings.
        preexec: called in the command's process before the command starts.
        processes: number of processes; more than one means torchrun.
        cleanups: called after the fault has been judged.
    """

    home: Path
    description: str
    arguments: list[str]
    outputs: list[str]
    repair: Callable[[], Any] | None = None
    preexec: Callable[[], None] | None = None
    processes: int = 1
    cleanups: list[Callable[[], None]] = field(default_factory=list)


class Fault(ABC):
    """One kind of fault."""

    name: ClassVar[str]

    @abstractmethod
    def inject(self, copies: RunCopies, target: Target, rng: random.Random) -> FaultyRun:
        """Copy the run and damage the copy. The same `rng` state gives the same fault."""


class Killed(Fault):
    """SIGKILL at a moment drawn uniformly over the stage's work."""

    name = "killed"

    def inject(self, copies: RunCopies, target: Target, rng: random.Random) -> FaultyRun:
        for _ in range(MAX_DRAWS):
            home = copies.home(target.name, done=False)
            moment = rng.uniform(0, copies.seconds[target.name])
            if kill_stage(home, target, moment) is not None:
                description = f"SIGKILL {moment:.2f} s into {copies.seconds[target.name]:.2f} s of work"
                return FaultyRun(home, description, stage_command(target), target.outputs)
            shutil.rmtree(home)
        raise RuntimeError(f"{target.name} ended before the kill, {MAX_DRAWS} times")


def kill_stage(home: Path, target: Target, moment: float, *, written: bool = False) -> Command | None:
    """Start the stage's command and kill it `moment` seconds into its work; None if it ended before.

    Args:
        written: count the seconds from the moment its hidden folder holds a file.
    """
    watch = Watch(home, target.last, target.first_read)
    command = ForkedCommand(stage_command(target), home)
    work_started = command.seconds if watch.wait_for_work(command) else 0.0
    while written and not unfinished_files(home) and command.running() and not watch.finished():
        time.sleep(POLL_SECONDS)
        work_started = command.seconds
    while command.seconds < work_started + moment and command.running() and not watch.finished():
        time.sleep(POLL_SECONDS)
    ended = watch.finished() or not command.running()
    command.send_signal("SIGKILL", command.all_processes())
    command.wait()
    return None if ended or watch.finished() else command


class LostWorker(Fault):
    """SIGKILL to one of two processes under torchrun."""

    name = "lost worker"

    def inject(self, copies: RunCopies, target: Target, rng: random.Random) -> FaultyRun:
        for _ in range(MAX_DRAWS):
            home = copies.home(target.name, done=False)
            watch = Watch(home, target.last, target.first_read)
            command = Command(stage_command(target), home, processes=2)
            moment = (command.seconds if watch.wait_for_work(command) else 0.0) + rng.uniform(
                0, copies.seconds[target.name]
            )
            while command.seconds < moment and command.running() and not watch.finished():
                time.sleep(POLL_SECONDS)
            ended = watch.finished() or not command.running()
            command.send_signal("SIGKILL", KILL_METHODS["kill a worker"].processes(command, rng))
            command.wait()
            if not (ended or watch.finished()):
                description = "SIGKILL to one of two processes"
                return FaultyRun(home, description, stage_command(target), target.outputs, processes=2)
            shutil.rmtree(home)
        raise RuntimeError(f"{target.name} ended before the kill, {MAX_DRAWS} times")


class FullDisk(Fault):
    """A file system too small for the stage's output."""

    name = "full disk"

    def inject(self, copies: RunCopies, target: Target, rng: random.Random) -> FaultyRun:
        disk = copies.folder / f"disk-{rng.getrandbits(32):08x}"
        disk.mkdir()
        needed = _bytes(*files(copies.finished, target.outputs))
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "none", str(disk)], check=True)
        home = copies.home(target.name, done=False, within=disk)
        (disk / "texts").symlink_to(copies.folder / "texts")
        used = int(subprocess.check_output(["du", "-sk", str(disk)]).split()[0]) << 10
        share = rng.random()
        room = used + int(needed * share)
        _resize(disk, room)
        description = f"room for {share:.0%} of the {needed >> 10} KiB the stage leaves"
        cleanups = [lambda: subprocess.run(["umount", str(disk)], check=True), disk.rmdir]
        repair = lambda: _resize(disk, 256 << 20)  # noqa: E731
        return FaultyRun(home, description, stage_command(target), target.outputs, repair=repair, cleanups=cleanups)


def _resize(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={max(size, 4096)}", str(disk)], check=True)


def _bytes(*paths: Path) -> int:
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in paths)


class CorruptedFile(Fault):
    """A file of a finished stage is corrupted before later stages read it."""

    name = "spoilt file"

    def inject(self, copies: RunCopies, target: Target, rng: random.Random) -> FaultyRun:
        home = copies.home(target.name, done=True)
        path = pick_file(files(home, target.outputs), rng)
        description = f"{path.relative_to(home / 'run')}: {corrupt(path, rng)}"
        return FaultyRun(home, description, [*WHOLE_RUN, *FROM_RECIPE], all_outputs())


class CorruptedUnfinishedFile(Fault):
    """A file of a killed, unfinished stage is corrupted before the stage resumes."""

    name = "spoilt unfinished file"

    def inject(self, copies: RunCopies, target: Target, rng: random.Random) -> FaultyRun:
        for _ in range(MAX_DRAWS):
            home = copies.home(target.name, done=False)
            moment = rng.random() ** 2 * copies.seconds[target.name]  # favours early moments
            if kill_stage(home, target, moment, written=True) is not None:
                written_files = unfinished_files(home)
                if written_files:
                    path = pick_file(written_files, rng)
                    description = f"{path.relative_to(home / 'run')}: {corrupt(path, rng)}"
                    return FaultyRun(home, description, stage_command(target), target.outputs)
            shutil.rmtree(home)
        raise RuntimeError(f"{target.name} left nothing half-way, {MAX_DRAWS} times")


def unfinished_files(home: Path) -> list[Path]:
    """Return the files an unfinished stage has written so far."""
    return [path for path in files(home, [".partial"]) if path.suffix != ".lock"]


class CorruptedSettings(Fault):
    """The run's saved settings are corrupted, and the next command relies on them."""

    name = "spoilt settings"

    def inject(self, copies: RunCopies, target: Target, rng: random.Random) -> FaultyRun:
        home = copies.home(target.name, done=False)
        saved = home / "run" / "config.yaml"
        description = f"config.yaml: {corrupt(saved, rng)}"
        repair = lambda: shutil.copy2(copies.finished / "run" / "config.yaml", saved)  # noqa: E731
        return FaultyRun(home, description, WHOLE_RUN, all_outputs(), repair=repair)


class RevokedPermission(Fault):
    """One file or folder loses its read or write permission; the command does not have root's privileges."""

    name = "revoked permission"

    def inject(self, copies: RunCopies, target: Target, rng: random.Random) -> FaultyRun:
        home = copies.home(target.name, done=False)
        inputs = [path for path in files(home, [""]) if path.parent.name != ".partial"]
        places = {
            "a file cannot be read": lambda: (pick_file(inputs, rng), 0o000),
            "a folder cannot be opened": lambda: (pick_file(inputs, rng).parent, 0o000),
            "the run cannot be written": lambda: (home / "run", 0o555),
            "the hidden folder cannot be written": lambda: (_created(home / "run" / ".partial"), 0o555),
        }
        if not inputs:
            places = {words: place for words, place in places.items() if words.startswith("the")}
        words = rng.choice(sorted(places))
        path, mode = places[words]()
        mode_before = path.stat().st_mode & 0o777
        path.chmod(mode)
        description = f"{words}: {path.relative_to(home)}"
        repair = lambda: path.chmod(mode_before)  # noqa: E731
        return FaultyRun(home, description, stage_command(target), target.outputs, repair, preexec=without_privilege)


def _created(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def _flip(path: Path, rng: random.Random) -> str:
    content = bytearray(path.read_bytes())
    place, bit = rng.randrange(len(content)), rng.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {place} of {len(content)} is the other way round"


def _cut(path: Path, rng: random.Random) -> str:
    size = path.stat().st_size
    rest = rng.randrange(size)
    with path.open("r+b") as stream:
        stream.truncate(rest)
    return f"cut from {size} bytes to {rest}"


def _zero(path: Path, rng: random.Random) -> str:
    content = bytearray(path.read_bytes())
    start = rng.randrange(len(content))
    content[start:] = bytes(len(content) - start)
    path.write_bytes(content)
    return f"zeros from byte {start} of {len(content)} on"


def _remove(path: Path, rng: random.Random) -> str:
    path.unlink()
    return "deleted"


def _empty(path: Path, rng: random.Random) -> str:
    path.write_bytes(b"")
    return "emptied"


CORRUPTIONS = (_flip, _flip, _flip, _cut, _cut, _zero, _remove, _empty)


def corrupt(path: Path, rng: random.Random) -> str:
    """Corrupt a file in one of several ways and return a description."""
    corruption = rng.choice(CORRUPTIONS)
    if corruption is not _remove and not path.stat().st_size:
        corruption = _remove
    return corruption(path, rng)


FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in (
        Killed(),
        LostWorker(),
        FullDisk(),
        CorruptedFile(),
        CorruptedUnfinishedFile(),
        CorruptedSettings(),
        RevokedPermission(),
    )
}
WORKING = ("corpus", "tokens", "teacher", "sae", "labels", "ntp", "cocomix", "evaluation")
"""Stages that write to a hidden folder until they finish."""


def plan() -> list[tuple[str, str]]:
    """Return 112 pairs (fault, stage), shuffled with a fixed seed so that any prefix is a sample of the whole."""
    counts = {
        "killed": (list(TARGETS), 3),
        "full disk": (list(TARGETS), 2),
        "spoilt file": (list(TARGETS), 4),
        "spoilt unfinished file": (WORKING[:-1], 2),
        "spoilt settings": (("teacher", "cocomix"), 2),
        "revoked permission": (list(TARGETS), 1),
        "lost worker": (("tokens", "teacher", "sae", "labels"), 1),
    }
    planned = [(fault, stage) for fault, (stages, times) in counts.items() for _ in range(times) for stage in stages]
    random.Random(0).shuffle(planned)
    return planned

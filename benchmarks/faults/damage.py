"""Kinds of faults: what each does to a copy of a run, and what a person does about it who is told to.

A fault either falls while a command runs, or before the command that has to cope with it.
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

from benchmarks.faults.forked_commands import Forked, without_privilege
from benchmarks.faults.kill_plan import TARGETS, Target
from benchmarks.faults.processes import BLOWS, POLL, Command, Watch
from benchmarks.faults.run_copies import FROM_RECIPE, WHOLE_RUN, Arena, everything, files, pick, stage_command

DRAWS = 12


@dataclass
class Struck:
    """A run with a fault in it.

    Attributes:
        home: the run is `run` below it.
        about: the fault in words.
        arguments: the command that has to cope.
        outputs: what must be the undisturbed run's in the end.
        cure: what a person does who is told to free space, to mend permissions or to restore the settings.
        before: done in the command's process before it begins.
        processes: more than one: under torchrun.
        close: done when all is over.
    """

    home: Path
    about: str
    arguments: list[str]
    outputs: list[str]
    cure: Callable[[], Any] | None = None
    before: Callable[[], None] | None = None
    processes: int = 1
    close: list[Callable[[], None]] = field(default_factory=list)


class Fault(ABC):
    """One kind of fault."""

    name: ClassVar[str]

    @abstractmethod
    def strike(self, arena: Arena, target: Target, rng: random.Random) -> Struck:
        """Make a copy of the run and spoil it; the same `rng`, the same fault."""


class Killed(Fault):
    """SIGKILL at a moment drawn evenly over the stage's work."""

    name = "killed"

    def strike(self, arena: Arena, target: Target, rng: random.Random) -> Struck:
        for _ in range(DRAWS):
            home = arena.home(target.name, done=False)
            moment = rng.uniform(0, arena.seconds[target.name])
            if killed(home, target, moment) is not None:
                about = f"SIGKILL {moment:.2f} s into {arena.seconds[target.name]:.2f} s of work"
                return Struck(home, about, stage_command(target), target.outputs)
            shutil.rmtree(home)
        raise RuntimeError(f"{target.name} was over before the blow fell, {DRAWS} times")


def killed(home: Path, target: Target, moment: float, *, written: bool = False) -> Command | None:
    """The stage's command, killed `moment` seconds into its work; None if it was over first.

    Args:
        written: count the seconds from when its hidden folder holds a file.
    """
    watch = Watch(home, target.last, target.first_read)
    command = Forked(stage_command(target), home)
    begun = command.seconds if watch.wait_for_work(command) else 0.0
    while written and not hidden(home) and command.running() and not watch.finished():
        time.sleep(POLL)
        begun = command.seconds
    while command.seconds < begun + moment and command.running() and not watch.finished():
        time.sleep(POLL)
    over = watch.finished() or not command.running()
    command.strike("SIGKILL", command.everyone())
    command.ended()
    return None if over or watch.finished() else command


class LostWorker(Fault):
    """SIGKILL to one of two processes under torchrun."""

    name = "lost worker"

    def strike(self, arena: Arena, target: Target, rng: random.Random) -> Struck:
        for _ in range(DRAWS):
            home = arena.home(target.name, done=False)
            watch = Watch(home, target.last, target.first_read)
            command = Command(stage_command(target), home, processes=2)
            moment = (command.seconds if watch.wait_for_work(command) else 0.0) + rng.uniform(
                0, arena.seconds[target.name]
            )
            while command.seconds < moment and command.running() and not watch.finished():
                time.sleep(POLL)
            over = watch.finished() or not command.running()
            command.strike("SIGKILL", BLOWS["kill a worker"].victims(command, rng))
            command.ended()
            if not (over or watch.finished()):
                about = "SIGKILL to one of two processes"
                return Struck(home, about, stage_command(target), target.outputs, processes=2)
            shutil.rmtree(home)
        raise RuntimeError(f"{target.name} was over before the blow fell, {DRAWS} times")


class FullDisk(Fault):
    """A small file system on which part of the stage's output does not fit."""

    name = "full disk"

    def strike(self, arena: Arena, target: Target, rng: random.Random) -> Struck:
        disk = arena.folder / f"disk-{rng.getrandbits(32):08x}"
        disk.mkdir()
        own = _bytes(*files(arena.whole, target.outputs))
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "none", str(disk)], check=True)
        home = arena.home(target.name, done=False, within=disk)
        (disk / "texts").symlink_to(arena.folder / "texts")
        used = int(subprocess.check_output(["du", "-sk", str(disk)]).split()[0]) << 10
        share = rng.random()
        room = used + int(own * share)
        _resize(disk, room)
        about = f"room for {share:.0%} of the {own >> 10} KiB the stage leaves"
        close = [lambda: subprocess.run(["umount", str(disk)], check=True), disk.rmdir]
        cure = lambda: _resize(disk, 256 << 20)  # noqa: E731
        return Struck(home, about, stage_command(target), target.outputs, cure=cure, close=close)


def _resize(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={max(size, 4096)}", str(disk)], check=True)


def _bytes(*paths: Path) -> int:
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in paths)


class Altered(Fault):
    """A file of a finished stage is spoilt before others read it."""

    name = "spoilt file"

    def strike(self, arena: Arena, target: Target, rng: random.Random) -> Struck:
        home = arena.home(target.name, done=True)
        path = pick(files(home, target.outputs), rng)
        about = f"{path.relative_to(home / 'run')}: {spoil(path, rng)}"
        return Struck(home, about, [*WHOLE_RUN, *FROM_RECIPE], everything())


class AlteredBegun(Fault):
    """A file of a stage that was killed half-way is spoilt before it goes on."""

    name = "spoilt unfinished file"

    def strike(self, arena: Arena, target: Target, rng: random.Random) -> Struck:
        for _ in range(DRAWS):
            home = arena.home(target.name, done=False)
            moment = rng.random() ** 2 * arena.seconds[target.name]  # often soon: little may be left to do by then
            if killed(home, target, moment, written=True) is not None:
                found = hidden(home)
                if found:
                    path = pick(found, rng)
                    about = f"{path.relative_to(home / 'run')}: {spoil(path, rng)}"
                    return Struck(home, about, stage_command(target), target.outputs)
            shutil.rmtree(home)
        raise RuntimeError(f"{target.name} left nothing half-way, {DRAWS} times")


def hidden(home: Path) -> list[Path]:
    """What an unfinished stage has written so far."""
    return [path for path in files(home, [".partial"]) if path.suffix != ".lock"]


class AlteredSettings(Fault):
    """The run's saved settings are spoilt, and the next command relies on them."""

    name = "spoilt settings"

    def strike(self, arena: Arena, target: Target, rng: random.Random) -> Struck:
        home = arena.home(target.name, done=False)
        saved = home / "run" / "config.yaml"
        about = f"config.yaml: {spoil(saved, rng)}"
        cure = lambda: shutil.copy2(arena.whole / "run" / "config.yaml", saved)  # noqa: E731
        return Struck(home, about, WHOLE_RUN, everything(), cure=cure)


class Revoked(Fault):
    """No right to read one file or folder, or to write into one; the command is not root's."""

    name = "revoked permission"

    def strike(self, arena: Arena, target: Target, rng: random.Random) -> Struck:
        home = arena.home(target.name, done=False)
        inputs = [path for path in files(home, [""]) if path.parent.name != ".partial"]
        places = {
            "a file cannot be read": lambda: (pick(inputs, rng), 0o000),
            "a folder cannot be opened": lambda: (pick(inputs, rng).parent, 0o000),
            "the run cannot be written": lambda: (home / "run", 0o555),
            "the hidden folder cannot be written": lambda: (_made(home / "run" / ".partial"), 0o555),
        }
        if not inputs:
            places = {words: place for words, place in places.items() if words.startswith("the")}
        words = rng.choice(sorted(places))
        path, mode = places[words]()
        usual = path.stat().st_mode & 0o777
        path.chmod(mode)
        about = f"{words}: {path.relative_to(home)}"
        cure = lambda: path.chmod(usual)  # noqa: E731
        return Struck(home, about, stage_command(target), target.outputs, cure, before=without_privilege)


def _made(folder: Path) -> Path:
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


SPOILING = (_flip, _flip, _flip, _cut, _cut, _zero, _remove, _empty)


def spoil(path: Path, rng: random.Random) -> str:
    """Spoil a file in one of several ways; says how."""
    how = rng.choice(SPOILING)
    if how is not _remove and not path.stat().st_size:
        how = _remove
    return how(path, rng)


FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in (Killed(), LostWorker(), FullDisk(), Altered(), AlteredBegun(), AlteredSettings(), Revoked())
}
WORKING = ("corpus", "tokens", "teacher", "sae", "labels", "ntp", "cocomix", "evaluation")
"""Stages that work in a hidden folder."""


def plan() -> list[tuple[str, str]]:
    """(fault, stage) of a round of 112, mixed so that its beginning is a sample of it all."""
    rounds = {
        "killed": (list(TARGETS), 3),
        "full disk": (list(TARGETS), 2),
        "spoilt file": (list(TARGETS), 4),
        "spoilt unfinished file": (WORKING[:-1], 2),
        "spoilt settings": (("teacher", "cocomix"), 2),
        "revoked permission": (list(TARGETS), 1),
        "lost worker": (("tokens", "teacher", "sae", "labels"), 1),
    }
    drawn = [(fault, stage) for fault, (stages, times) in rounds.items() for _ in range(times) for stage in stages]
    random.Random(0).shuffle(drawn)
    return drawn

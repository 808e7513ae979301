"""A run's health: its settings, which stages are finished, and whether their files are as they were written.

All files that have a checksum are read again, those that were found whole before included.
"""

import fcntl
import os
import platform
import shutil
import sys
import tempfile
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

import cocomix
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import in_words
from cocomix.utils.integrity import forget_verified

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from cocomix.pipeline.stage import Stage


# What a check is, the list of all of them, and how they are run.
#
# A check looks at one thing and yields findings: fine, worth knowing, or to be mended, with the mend in one sentence.
# It imports what it looks at inside of `look`, since that may be what is broken; a check that fails is a finding, too.


class State(StrEnum):
    """How a finding is to be taken; its value is the mark it is printed with."""

    FINE = "✓"
    NOTE = "·"
    FIX = "✗"


class Finding(NamedTuple):
    """One line of the table."""

    state: State
    what: str
    """what was looked at"""
    found: str
    mend: str = ""
    """what to do, one sentence; empty where there is nothing to do"""

    @classmethod
    def of(cls, what: str, error: Exception) -> "Finding":
        """A failure; of a `CocomixError` cause and mend stand on either side of its last semicolon."""
        if isinstance(error, OSError) and error.filename:
            error = CocomixError(in_words(error))
        if isinstance(error, CocomixError):
            cause, _, mend = str(error).rpartition("; ")
            return cls(State.FIX, what, cause or mend, mend if cause else "")
        return cls(State.FIX, what, f"{type(error).__name__}: {error}", "install cocomix again, with constraints.txt")


class Where(NamedTuple):
    """What is examined."""

    folder: Path
    """where runs are to be written"""
    run: Path | None = None
    """a run whose health is asked for"""


class Check(ABC):
    """Looks at one thing."""

    title: ClassVar[str]

    @abstractmethod
    def look(self, where: Where) -> Iterator[Finding]:
        """What was found; anything raised becomes a finding to be mended."""


# Python, disk, memory, and whether the folder of runs can be written.

OLDEST_PYTHON = (3, 11)
LEAST_DISK, LEAST_MEMORY = 1.0, 2.0
"""GiB; the demo writes 0.2 and takes up to 1.5."""
GIB = 2**30


class PythonCheck(Check):
    """The interpreter's version."""

    title = "Python"

    def look(self, where: Where) -> Iterator[Finding]:
        found = platform.python_version()
        if sys.version_info[:2] >= OLDEST_PYTHON:
            yield Finding(State.FINE, self.title, found)
        else:
            oldest = ".".join(str(part) for part in OLDEST_PYTHON)
            yield Finding(State.FIX, self.title, found, f"install Python {oldest} or newer and cocomix into it")


class DiskCheck(Check):
    """Free space where runs are written."""

    title = "disk"

    def look(self, where: Where) -> Iterator[Finding]:
        free = shutil.disk_usage(nearest(where.folder)).free / GIB
        enough = free >= LEAST_DISK
        mend = "" if enough else f"free some space, {LEAST_DISK:g} GiB is the least the demo wants"
        yield Finding(State.FINE if enough else State.FIX, self.title, f"{free:.1f} GiB free", mend)


class MemoryCheck(Check):
    """Memory that programs could have now."""

    title = "memory"

    def look(self, where: Where) -> Iterator[Finding]:
        free = available_memory()
        if free is None:
            yield Finding(State.NOTE, self.title, "this system does not say")
        elif free >= LEAST_MEMORY:
            yield Finding(State.FINE, self.title, f"{free:.1f} GiB free")
        else:
            mend = f"end other programs, {LEAST_MEMORY:g} GiB is the least the demo wants"
            yield Finding(State.FIX, self.title, f"{free:.1f} GiB free", mend)


class WriteCheck(Check):
    """Files can be made and locked where runs are written."""

    title = "folder"

    def look(self, where: Where) -> Iterator[Finding]:
        place = nearest(where.folder)
        try:
            with tempfile.TemporaryFile(dir=place) as stream:
                stream.write(b"cocomix")
                stream.flush()
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            mend = "mend its permissions, or work in another folder, on a file system that has locks"
            yield Finding(State.FIX, self.title, f"{place} cannot be written ({error.strerror or error})", mend)
        else:
            yield Finding(State.FINE, self.title, f"{place} can be written")


def nearest(folder: Path) -> Path:
    """The folder, or the nearest above it that exists; may be a file."""
    return next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())


def available_memory() -> float | None:
    """GiB that programs could still have without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    kib = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if kib is None else int(kib) * 1024 / GIB


# Required packages and extras, against the ranges that pyproject.toml gives them.

PURPOSE = {
    "hub": "data sets of the Hugging Face hub, and Parquet files",
    "eval": "the tasks of lm-evaluation-harness",
    "track": "TensorBoard and other trackers",
    "interop": "comparing with SAELens and sparsify",
    "docs": "building the documentation",
    "audit": "looking for known vulnerabilities",
    "dev": "the tests",
}
"""What each extra is for."""


class Wanted(NamedTuple):
    """What the package asks for."""

    core: "list[Requirement]"
    extras: "dict[str, list[Requirement]]"


class RequirementsCheck(Check):
    """Every required package is there, in a version that fits."""

    title = "packages"

    def look(self, where: Where) -> Iterator[Finding]:
        core = wanted().core
        wrong = [problem for one in core if (problem := _problem(one)) is not None]
        for one, found in wrong:
            yield Finding(State.FIX, one.name, f"{found}, needed is {one}", f"pip install '{one}'")
        if not wrong:
            yield Finding(State.FINE, self.title, f"all {len(core)} required ones fit")


class ExtrasCheck(Check):
    """Which extras are there, and how to have the others."""

    title = "extras"

    def look(self, where: Where) -> Iterator[Finding]:
        for name, needed in wanted().extras.items():
            wrong = [problem for one in needed if (problem := _problem(one)) is not None]
            purpose = f" (for {PURPOSE[name]})" if name in PURPOSE else ""
            if not wrong:
                yield Finding(State.FINE, f"extra {name}", f"installed{purpose}")
            else:
                missing = ", ".join(f"{one.name}: {found}" for one, found in wrong)
                mend = f"pip install 'cocomix[{name}]' if you want it"
                yield Finding(State.NOTE, f"extra {name}", f"{missing}{purpose}", mend)


def wanted() -> Wanted:
    """What the source tree's pyproject.toml asks for, or what was recorded when the package was installed.

    Raises:
        CocomixError: neither can be found.
    """
    from packaging.requirements import Requirement

    project = _project(Path(cocomix.__file__).parents[2] / "pyproject.toml")
    if project is not None:
        core = [Requirement(text) for text in project["dependencies"]]
        optional = project.get("optional-dependencies", {})
        return Wanted(core, {name: [Requirement(text) for text in texts] for name, texts in optional.items()})
    try:
        about = metadata.metadata("cocomix")
    except metadata.PackageNotFoundError:
        raise CocomixError("cocomix is not installed as a package; run `pip install -e .` in its folder") from None
    every = [Requirement(text) for text in about.get_all("Requires-Dist") or []]
    core = [one for one in every if one.marker is None or one.marker.evaluate({"extra": ""})]
    names = about.get_all("Provides-Extra") or []
    return Wanted(core, {name: [one for one in every if _only_for(one, name)] for name in names})


def _only_for(one: "Requirement", extra: str) -> bool:
    marker = one.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def _project(path: Path) -> dict[str, Any] | None:
    """The project table, if this is our source tree's file."""
    try:
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    except (OSError, ValueError, KeyError):
        return None
    return project if project.get("name") == "cocomix" else None


def _problem(one: "Requirement") -> "tuple[Requirement, str] | None":
    """What is wrong with the installed version of a package, in a few words."""
    try:
        version = metadata.version(one.name)
    except metadata.PackageNotFoundError:
        return one, "not installed"
    return None if one.specifier.contains(version, prereleases=True) else (one, f"{version} is installed")


# Torch multiplies rightly, on the processor and on a GPU if there is one, with as many threads as there are cores.

SIZE = 128


class TorchCheck(Check):
    """A product of whole numbers, which must come out to the last digit."""

    title = "torch"

    def look(self, where: Where) -> Iterator[Finding]:
        import torch

        if multiplies_rightly("cpu"):
            yield Finding(State.FINE, self.title, f"{torch.__version__}, a product comes out right")
        else:
            mend = "install torch again, in the version of constraints.txt"
            yield Finding(State.FIX, self.title, f"{torch.__version__}, a product comes out wrong", mend)


class ThreadsCheck(Check):
    """Threads of torch against the cores this process may use."""

    title = "threads"

    def look(self, where: Where) -> Iterator[Finding]:
        import torch

        threads, cores = torch.get_num_threads(), usable_cores()
        found = f"{threads} of torch on {cores} usable cores"
        if threads > cores:
            yield Finding(State.NOTE, self.title, found, f"export OMP_NUM_THREADS={cores}, more threads are slower")
        elif threads < cores:
            mend = "unset OMP_NUM_THREADS to use all of them" if "OMP_NUM_THREADS" in os.environ else ""
            yield Finding(State.NOTE, self.title, found, mend)
        else:
            yield Finding(State.FINE, self.title, found)


class CudaCheck(Check):
    """GPUs that torch can use; none is no fault."""

    title = "GPU"

    def look(self, where: Where) -> Iterator[Finding]:
        import torch

        if not torch.cuda.is_available():
            built = torch.version.cuda
            why = "torch was built without CUDA" if built is None else f"torch has CUDA {built} and sees no GPU"
            yield Finding(State.NOTE, self.title, f"none ({why}); everything runs on the processor")
            return
        for number in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(number)
            found = f"{about.name}, {about.total_memory / 2**30:.0f} GiB"
            right = multiplies_rightly(f"cuda:{number}")
            mend = "" if right else "match the driver with the CUDA version of torch, or set CUDA_VISIBLE_DEVICES="
            yield Finding(State.FINE if right else State.FIX, f"{self.title} {number}", found, mend)


def multiplies_rightly(device: str) -> bool:
    """Whether a product of whole numbers, small enough for any precision, is the one that Python finds."""
    import torch

    left = [[(3 * row + column) % 5 for column in range(SIZE)] for row in range(8)]
    right = [[(row + 2 * column) % 3 for column in range(8)] for row in range(SIZE)]
    expected = [[sum(a * right[at][column] for at, a in enumerate(row)) for column in range(8)] for row in left]
    found: Any = torch.tensor(left, device=device).float() @ torch.tensor(right, device=device).float()
    return found.long().tolist() == expected


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class RunCheck(Check):
    """The run that was asked for, stage by stage."""

    title = "run"

    def look(self, where: Where) -> Iterator[Finding]:
        if where.run is None:
            return
        from cocomix.pipeline.trained import existing_run

        run = existing_run(where.run)
        yield Finding(State.FINE, "config", f"{where.run / 'config.yaml'} is valid")
        forget_verified(where.run)
        for stage in run.stages.values():
            yield health(stage, where.run)


def health(stage: "Stage", run: Path) -> Finding:
    """How one stage stands."""
    again = f"`{stage.command} --run {run}`"
    try:
        finished = stage.record() is not None
        if finished:
            stage.check()
            stage.verify()
    except CocomixError as error:
        return Finding.of(stage.name, error)
    if finished:
        return Finding(State.FINE, stage.name, "finished and whole")
    if stage.folder.exists():
        missing = [name for name in stage.outputs() if not (stage.folder / name).exists()]
        if missing:
            return Finding(State.FIX, stage.name, f"{', '.join(missing)} is missing", f"run {again}, it is made anew")
        changed = "made with other settings or from other inputs"
        return Finding(State.NOTE, stage.name, changed, f"{again} makes it anew")
    if any(run.glob(f".partial/{stage.name.replace('/', '--')}-*/")):
        return Finding(State.NOTE, stage.name, "begun, not finished", f"{again} goes on")
    return Finding(State.NOTE, stage.name, "not done yet", f"{again} does it")


# The list of checks: a new one is a small class and a line here.

CHECKS: list[type[Check]] = [
    PythonCheck,
    RequirementsCheck,
    TorchCheck,
    ThreadsCheck,
    CudaCheck,
    ExtrasCheck,
    DiskCheck,
    MemoryCheck,
    WriteCheck,
    RunCheck,
]
"""In the order of the table."""


def examine(where: Where) -> Iterator[Finding]:
    """The findings of all checks, one after the other."""
    for kind in CHECKS:
        try:
            yield from kind().look(where)
        except Exception as error:
            yield Finding.of(kind.title, error)


# Findings as a table for a terminal.

COLOURS = {State.FINE: "green", State.NOTE: "yellow", State.FIX: "red"}


def print_findings(findings: Iterable[Finding], console: Console) -> bool:
    """Print a table and one line of summary; returns whether nothing must be mended."""
    table = Table("", box=None, pad_edge=False)
    for name in ("what", "found", "what to do"):
        table.add_column(name, overflow="fold")
    to_fix = 0
    for one in findings:
        to_fix += one.state is State.FIX
        mark = Text(one.state.value, style=COLOURS[one.state])
        table.add_row(mark, Text(one.what), Text(one.found), Text(one.mend))
    console.print(table)
    said = f"{to_fix} to be mended" if to_fix else "Nothing must be mended"
    console.print(f"{said}.", style=COLOURS[State.FIX if to_fix else State.FINE], highlight=False)
    return to_fix == 0

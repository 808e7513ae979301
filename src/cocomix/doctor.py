"""`cocomix doctor`: checks of the machine, the packages and a run, as a table of findings with a fix each.

A check is a function that yields findings, listed in `CHECKS`. It imports what it checks itself, because that may be
what is broken; an exception in a check becomes a finding. All files of a run are compared with their checksums,
including those that were verified before.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import FileLock
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cocomix.utils.advice import command_line
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import in_words
from cocomix.utils.integrity import forget_verified

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from cocomix.pipeline.stage import Stage

GIB = 2**30
MIN_DISK, MIN_MEMORY = 1.0, 2.0
"""GiB; the demo writes 0.2 and takes up to 1.5 of memory."""


class State(StrEnum):
    """How serious a finding is; the value is the mark it is printed with."""

    FINE = "✓"
    NOTE = "·"
    FIX = "✗"


COLOURS = {State.FINE: "green", State.NOTE: "yellow", State.FIX: "red"}


class Finding(NamedTuple):
    """One line of the table."""

    state: State
    subject: str
    """what was checked"""
    detail: str
    """what was found"""
    fix: str = ""
    """what to do, one sentence; empty if there is nothing to do"""

    @classmethod
    def of(cls, subject: str, error: Exception) -> "Finding":
        """A failure; a `CocomixError` has its cause before the last semicolon and its fix behind it."""
        if isinstance(error, OSError) and error.filename:
            error = CocomixError(in_words(error))
        if isinstance(error, CocomixError):
            cause, _, fix = str(error).rpartition("; ")
            return cls(State.FIX, subject, cause or fix, fix if cause else "")
        detail = f"{type(error).__name__}: {error}"
        return cls(State.FIX, subject, detail, "install cocomix again, with constraints.txt")


def check_machine(folder: Path, run: Path | None) -> Iterator[Finding]:
    """Versions of Python, torch and the system, as `torch.utils.collect_env` reports them."""
    from torch.utils.collect_env import get_env_info

    info: Any = get_env_info()
    model = next((line for line in (info.cpu_info or "").splitlines() if "odel name" in line), ":")
    yield Finding(State.FINE, "system", f"{info.os}, {model.partition(':')[2].strip() or 'unknown processor'}")
    yield Finding(State.FINE, "Python", info.python_version.partition(" (")[0])
    cuda = f"CUDA {info.cuda_compiled_version}, driver {info.nvidia_driver_version or 'none'}"
    yield Finding(State.FINE, "torch", f"{info.torch_version}, {cuda if info.cuda_compiled_version else 'no CUDA'}")


def check_packages(folder: Path, run: Path | None) -> Iterator[Finding]:
    """Requirements of cocomix and its extras; where pip is installed, those of all other packages (`pip check`)."""
    core, extras = requirements()
    problems = [(requirement, problem) for requirement in core if (problem := problem_of(requirement))]
    for requirement, problem in problems:
        yield Finding(
            State.FIX, requirement.name, f"{problem}, needed is {requirement}", f"pip install '{requirement}'"
        )
    if not problems:
        yield Finding(State.FINE, "packages", f"all {len(core)} required packages fit")
    for extra, needed in extras.items():
        missing = ", ".join(f"{one.name}: {problem}" for one in needed if (problem := problem_of(one)))
        fix = f"pip install 'cocomix[{extra}]' if you need it" if missing else ""
        yield Finding(State.NOTE if missing else State.FINE, f"extra {extra}", missing or "installed", fix)
    command = [sys.executable, "-m", "pip", "check"]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    for line in checked.stdout.splitlines() if checked.returncode else ():
        if not line.startswith("cocomix "):
            yield Finding(State.NOTE, "pip check", line, "install a version that fits, if you use this package")


def requirements() -> "tuple[list[Requirement], dict[str, list[Requirement]]]":
    """What cocomix requires, and what each of its extras requires in addition.

    Raises:
        CocomixError: cocomix is not installed as a package.
    """
    from packaging.requirements import Requirement

    try:
        package = metadata.metadata("cocomix")
    except metadata.PackageNotFoundError:
        raise CocomixError("cocomix is not installed as a package; run `pip install -e .` in its folder") from None
    core, extras = [], {extra: [] for extra in package.get_all("Provides-Extra") or []}
    for requirement in map(Requirement, package.get_all("Requires-Dist") or []):
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}):
            core.append(requirement)
        else:
            for extra in extras:
                extras[extra] += [requirement] if marker.evaluate({"extra": extra}) else []
    return core, extras


def problem_of(requirement: "Requirement") -> str:
    """What is wrong with the installed version of a package, in a few words; empty: nothing."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return "not installed"
    return "" if requirement.specifier.contains(version, prereleases=True) else f"{version} is installed"


def check_torch(folder: Path, run: Path | None) -> Iterator[Finding]:
    """A matrix product of small integers on the CPU and each GPU, which must be exact; threads against cores."""
    import torch

    from cocomix.data import tokenize

    gpus = torch.cuda.device_count()
    for device in ("cpu", *(f"cuda:{number}" for number in range(gpus))):
        detail = device if device == "cpu" else f"{device}, {torch.cuda.get_device_name(device)}"
        if multiplies_correctly(device):
            yield Finding(State.FINE, "torch", f"{detail}: a matrix product is right")
        else:
            fix = "install torch again, in the version of constraints.txt, and match it with the GPU's driver"
            yield Finding(State.FIX, "torch", f"{detail}: a matrix product is wrong", fix)
    if not gpus:
        yield Finding(State.NOTE, "GPU", "none that torch can use; everything runs on the CPU")
    threads, cores = torch.get_num_threads(), tokenize.cores()
    fix = f"export OMP_NUM_THREADS={cores}, more threads are slower" if threads > cores else ""
    if threads < cores and "OMP_NUM_THREADS" in os.environ:
        fix = "unset OMP_NUM_THREADS to use all of them"
    state = State.FINE if threads == cores else State.NOTE
    yield Finding(state, "threads", f"torch has {threads} on {cores} usable cores", fix)


def multiplies_correctly(device: str) -> bool:
    """Whether torch's product of a matrix of small integers is the one that Python finds."""
    import torch

    rows = [[(3 * row + column) % 5 for column in range(16)] for row in range(16)]
    expected = [
        [sum(a * b for a, b in zip(row, column, strict=True)) for column in zip(*rows, strict=True)] for row in rows
    ]
    matrix = torch.tensor(rows, device=device).float()
    return (matrix @ matrix).long().tolist() == expected


def check_space(folder: Path, run: Path | None) -> Iterator[Finding]:
    """Free disk space and memory; files can be made and locked in the folder of runs."""
    folder = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    for subject, free, least in (
        ("disk", shutil.disk_usage(folder).free / GIB, MIN_DISK),
        ("memory", available_memory(), MIN_MEMORY),
    ):
        if free is None:
            yield Finding(State.NOTE, subject, "this system does not say how much is free")
            continue
        fix = "" if free >= least else f"free some {subject}: the demo needs {least:g} GiB"
        yield Finding(State.FIX if fix else State.FINE, subject, f"{free:.1f} GiB free", fix)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".cocomix-") as inside:
            FileLock(Path(inside) / "lock", timeout=0, fallback_to_soft=False).acquire().lock.release()
    except OSError as error:
        fix = "fix its permissions, or work in another folder, on a file system that has locks"
        yield Finding(State.FIX, "folder", f"{folder} cannot be written ({error.strerror or error})", fix)
    else:
        yield Finding(State.FINE, "folder", f"{folder} can be written")


def available_memory() -> float | None:
    """GiB that programs can still have without swapping; None if the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    kib = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if kib is None else int(kib) * 1024 / GIB


def check_run(folder: Path, run: Path | None) -> Iterator[Finding]:
    """A run's settings, and each stage: finished or not, and its files against their checksums."""
    if run is None:
        return
    from cocomix.pipeline.attempts import attempts
    from cocomix.pipeline.clean import disk_use
    from cocomix.pipeline.run import describe_edit
    from cocomix.pipeline.trained import existing_run

    opened = existing_run(run, announce=False)
    edit, _, redone = describe_edit(opened).partition("; ")
    yield Finding(State.NOTE if edit else State.FINE, "config", edit or "config.yaml is valid", redone)
    if attempts(run):
        yield Finding(State.NOTE, "disk use", disk_use(run), f"{command_line('cocomix clean', run)} lists what is kept")
    forget_verified(run)
    for stage in opened.stages.values():
        yield check_stage(stage, run)


def check_stage(stage: "Stage", run: Path) -> Finding:
    """The state of one stage."""
    command = stage.command_line
    try:
        finished = stage.record() is not None
        if finished:
            stage.check()
            stage.verify()
    except CocomixError as error:
        return Finding.of(stage.name, error)
    if finished:
        return Finding(State.FINE, stage.name, "finished, all files are as written")
    if stage.folder.exists():
        missing = [name for name in stage.outputs() if not (stage.folder / name).exists()]
        if missing:
            return Finding(State.FIX, stage.name, f"{', '.join(missing)} is missing", f"run {command} to redo it")
        return Finding(State.NOTE, stage.name, "made with other settings or inputs", f"{command} redoes it")
    if any(run.glob(f".partial/{stage.name.replace('/', '--')}-*/")):
        return Finding(State.NOTE, stage.name, "begun, not finished", f"{command} resumes it")
    return Finding(State.NOTE, stage.name, "not done yet", f"{command} does it")


CHECKS: dict[str, Callable[[Path, Path | None], Iterator[Finding]]] = {
    "machine": check_machine,
    "packages": check_packages,
    "torch": check_torch,
    "space": check_space,
    "run": check_run,
}
"""In the order of the table."""


def examine(folder: Path, run: Path | None = None) -> Iterator[Finding]:
    """The findings of all checks.

    Args:
        folder: where runs are to be written.
        run: a run to check, too.
    """
    for subject, check in CHECKS.items():
        try:
            yield from check(folder, run)
        except Exception as error:
            yield Finding.of(subject, error)


def print_findings(findings: Iterable[Finding], console: Console) -> bool:
    """Print a table and a line of summary; returns whether there is nothing to fix."""
    table = Table("", box=None, pad_edge=False)
    for heading in ("what", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    to_fix = 0
    for state, *cells in findings:
        to_fix += state is State.FIX
        table.add_row(Text(state.value, style=COLOURS[state]), *map(Text, cells))
    console.print(table)
    summary = f"{to_fix} to fix" if to_fix else "Nothing to fix"
    console.print(f"{summary}.", style=COLOURS[State.FIX if to_fix else State.FINE], highlight=False)
    return to_fix == 0

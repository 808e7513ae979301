"""A small run that commands train on while a test watches, stops or kills them; one thread a process."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import yaml

from cocomix.pipeline.config import load_config
from cocomix.pipeline.run import Run
from tests.helpers.forked import Forked

STEPS = 80
Process = subprocess.Popen[str] | Forked


def prepare(home: Path, run: str = "run") -> Path:
    """A recipe with one tiny student, `ntp`, and a run of it whose text is tokenised; returns `home`."""
    recipe = yaml.safe_load((resources.files("cocomix") / "recipes" / "tiny.yaml").read_text(encoding="utf-8"))
    recipe["corpus"] |= {"every": 20, "val_fraction": 0.2, "test_fraction": 0.2}
    recipe["students"] = {"ntp": {"objective": "ntp", "model": {"width": 16, "layers": 1, "heads": 2}}}
    recipe["students_train"] |= {"batch_size": 4, "steps": STEPS, "n_evals": 0, "n_snapshots": 4}
    (home / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    made = Run(home / run, load_config(home / "recipe.yaml"))
    for stage in ("corpus", "tokens"):
        made.run_stage(stage)
    return home


def fork(home: Path, *command: str, **environment: str) -> Forked:
    """Start a command of Python (`-m`, a module and its arguments) in a forked process, in `home`."""
    return Forked(command, cwd=home, **{"OMP_NUM_THREADS": "1"} | environment)


def start(home: Path, *command: str, **environment: str) -> subprocess.Popen[str]:
    """Start a command in a fresh process, in `home`."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    env = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(command, cwd=home, env=env, text=True, **streams)


def ended(*processes: Process) -> list[tuple[int, str]]:
    """Wait for all; exit code and standard error, on one line, of each."""
    said = [process.communicate(timeout=120)[1] for process in processes]
    return [(process.returncode, " ".join(words.split())) for process, words in zip(processes, said, strict=True)]


def wait_until(seen: Callable[[], object], *processes: Process) -> None:
    """Wait until `seen()`; fails if one of `processes` ends before."""
    until = time.monotonic() + 120
    while not seen():
        assert all(process.poll() is None for process in processes), ended(*processes)
        assert time.monotonic() < until
        time.sleep(0.001)


def checkpoints(run: Path) -> list[Path]:
    """Checkpoints of the stage that is being trained, oldest first."""
    return sorted(run.glob(".partial/*/checkpoints/step-*"))


def half_way(run: Path) -> bool:
    """Whether a first snapshot was taken, after a quarter of the steps."""
    return any(run.glob(".partial/*/snapshots/step-*"))


def weights(run: Path) -> bytes:
    """The finished student's."""
    return (run / "students/ntp/seed0/model/model.safetensors").read_bytes()


PYTHON = [sys.executable, "-m"]

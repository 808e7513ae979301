"""Runs that are stopped from outside, as users launch them, and go on to the same bits."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

import pytest
import torch
import yaml

from cocomix.config import load_config
from cocomix.pipeline.run import Run
from cocomix.train.checkpoint import META

STEPS = 80
TRAIN = [sys.executable, "-m", "cocomix", "train", "ntp", "-r", "run", "-c", "recipe.yaml"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
OFTEN, NEVER = "students_train.checkpoint_seconds=0.05", "students_train.checkpoint_seconds=1e9"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Here and in the commands, so that sums are taken in the same order."""
    before, threads = os.environ.get("OMP_NUM_THREADS"), torch.get_num_threads()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    os.environ.pop("OMP_NUM_THREADS")
    os.environ.update({} if before is None else {"OMP_NUM_THREADS": before})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a recipe and a run whose text is tokenised."""
    home = tmp_path_factory.mktemp("prepared")
    recipe = yaml.safe_load((resources.files("cocomix") / "recipes" / "tiny.yaml").read_text(encoding="utf-8"))
    recipe["corpus"] |= {"every": 20, "val_fraction": 0.2, "test_fraction": 0.2}
    recipe["students"] = {"ntp": {"objective": "ntp", "model": {"width": 16, "layers": 1, "heads": 2}}}
    recipe["students_train"] |= {"batch_size": 4, "steps": STEPS, "n_evals": 0, "n_snapshots": 4}
    (home / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run = Run(home / "run", load_config(home / "recipe.yaml"))
    for stage in ("corpus", "tokens"):
        run.run_stage(stage)
    return home


@pytest.fixture
def home(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "home"))


def weights(home: Path) -> bytes:
    return (home / "run/students/ntp/seed0/model/model.safetensors").read_bytes()


def checkpoints(home: Path) -> list[Path]:
    return sorted(home.glob("run/.partial/*/checkpoints/step-*"))


def finished_here(home: Path) -> bytes:
    """Weights after the stage is done, or finished, in this process."""
    Run(home / "run", load_config(home / "recipe.yaml")).run_stage("students/ntp/seed0")
    return weights(home)


def start(home: Path, *command: str, **environment: str) -> subprocess.Popen[str]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=home, env=os.environ | environment, text=True, **streams)


def as_srun_does(home: Path, *overrides: str) -> list[subprocess.Popen[str]]:
    """Two tasks with the variables that a batch script sets for each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [start(home, *TRAIN, *overrides, RANK=str(task), LOCAL_RANK=str(task), **shared) for task in range(2)]


def ended(*processes: subprocess.Popen[str]) -> list[tuple[int, str]]:
    """Exit code and standard error of each."""
    said = [process.communicate(timeout=120)[1] for process in processes]
    return [(process.returncode, " ".join(words.split())) for process, words in zip(processes, said, strict=True)]


def wait_until(seen: Callable[[], object], *processes: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not seen():
        assert all(process.poll() is None for process in processes), ended(*processes)
        assert time.monotonic() < until
        time.sleep(0.001)


@pytest.fixture(scope="module")
def by_two(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Weights of two processes that nobody disturbed."""
    home = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("by_two") / "home"))
    assert [code for code, _ in ended(*as_srun_does(home))] == [0, 0]
    return weights(home)


def test_two_tasks_save_when_they_are_preempted(home: Path, by_two: bytes) -> None:
    tasks = as_srun_does(home, NEVER)
    wait_until(lambda: list(home.glob("run/.partial/*/snapshots/step-*")), *tasks)
    for task in tasks:
        task.send_signal(signal.SIGUSR1)
    for code, said in ended(*tasks):
        assert code == 0, said
        assert f"of {STEPS} and saved; the same command goes on from here" in said
    (saved,) = checkpoints(home)
    assert 0 < int(saved.name.removeprefix("step-")) < STEPS
    assert [code for code, _ in ended(*as_srun_does(home, NEVER))] == [0, 0]
    assert weights(home) == by_two


def test_torchrun_starts_again_after_a_worker_was_killed(home: Path, by_two: bytes) -> None:
    launch = start(home, *TORCHRUN, "--max-restarts", "2", *TRAIN[1:], OFTEN)
    wait_until(lambda: checkpoints(home), launch)
    workers = Path(f"/proc/{launch.pid}/task/{launch.pid}/children").read_text().split()
    os.kill(int(workers[1]), signal.SIGKILL)
    ((code, said),) = ended(launch)
    assert code == 0, said
    assert "SIGKILL" in said or "exitcode: -9" in said  # it really was one of the workers
    assert weights(home) == by_two


def test_a_process_killed_while_it_saves(home: Path, prepared: Path, tmp_path: Path) -> None:
    process = start(home, *TRAIN, "students_train.checkpoint_seconds=1e-9")
    wait_until(lambda: checkpoints(home) and list(home.glob("run/.partial/*/checkpoints/.step-*.tmp")), process)
    process.kill()
    assert ended(process)[0][0] == -signal.SIGKILL
    assert checkpoints(home)
    undisturbed = Path(shutil.copytree(prepared, tmp_path / "undisturbed"))
    assert finished_here(home) == finished_here(undisturbed)
    assert not list(home.glob("run/.partial/*/"))


@pytest.fixture
def small_home(prepared: Path, tmp_path: Path) -> Iterator[Path]:
    """A home on a disk of eight mebibytes; needs the right to mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(disk)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system takes root on Linux")
    try:
        yield Path(shutil.copytree(prepared, disk / "home"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_up_during_training(small_home: Path, prepared: Path, tmp_path: Path) -> None:
    process = start(small_home, *TRAIN, OFTEN)
    wait_until(lambda: checkpoints(small_home), process)
    ballast = small_home / "ballast"
    with ballast.open("wb", buffering=0) as stream:
        while process.poll() is None:  # what an old checkpoint gives back is taken, too
            try:
                stream.write(bytes(4096))
            except OSError:
                time.sleep(0.001)
    ((code, said),) = ended(process)
    assert code == 2, said
    assert said.startswith("cocomix: the disk under run is full; free some space and run the same command again")
    assert "Traceback" not in said
    left = checkpoints(small_home)
    assert left and all((path / META).stat().st_size for path in left)
    ballast.unlink()
    undisturbed = Path(shutil.copytree(prepared, tmp_path / "undisturbed"))
    assert finished_here(small_home) == finished_here(undisturbed)

"""Runs that are stopped from outside, as users launch them, and go on to the same bits."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from cocomix.pipeline.config import load_config
from cocomix.pipeline.run import Run
from cocomix.train.checkpoint import META
from tests.helpers.distributed_programs import free_port
from tests.helpers.forked import Forked
from tests.helpers.launched_commands import (
    PYTHON,
    STEPS,
    checkpoints,
    ended,
    fork,
    half_way,
    prepare,
    start,
    wait_until,
    weights,
)

TRAIN = ["cocomix", "train", "ntp", "-r", "run", "-c", "recipe.yaml"]
TORCHRUN = [*PYTHON, "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
OFTEN, NEVER = "students_train.checkpoint_seconds=0.05", "students_train.checkpoint_seconds=1e9"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """In this process, too, so that sums are taken in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def home(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "home"))


def finished_here(home: Path) -> bytes:
    """Weights after the stage is done, or finished, in this process."""
    Run(home / "run", load_config(home / "recipe.yaml")).run_stage("students/ntp/seed0")
    return weights(home / "run")


def as_srun_does(home: Path, *overrides: str) -> list[Forked]:
    """Two tasks with the variables that a batch script sets for each."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [fork(home, "-m", *TRAIN, *overrides, RANK=str(task), LOCAL_RANK=str(task), **shared) for task in range(2)]


@pytest.fixture(scope="module")
def by_two(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Weights of two processes that nobody disturbed."""
    home = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("by_two") / "home"))
    assert [code for code, _ in ended(*as_srun_does(home))] == [0, 0]
    return weights(home / "run")


def test_two_tasks_save_when_they_are_preempted(home: Path, by_two: bytes) -> None:
    tasks = as_srun_does(home, NEVER)
    wait_until(lambda: half_way(home / "run"), *tasks)
    for task in tasks:
        task.send_signal(signal.SIGUSR1)
    for code, said in ended(*tasks):
        assert code == 0, said
        assert f"of {STEPS} and saved; rerun the same command to resume" in said
    (saved,) = checkpoints(home / "run")
    assert 0 < int(saved.name.removeprefix("step-")) < STEPS
    assert [code for code, _ in ended(*as_srun_does(home, NEVER))] == [0, 0]
    assert weights(home / "run") == by_two


@pytest.mark.long
def test_torchrun_starts_again_after_a_worker_was_killed(home: Path, by_two: bytes) -> None:
    launch = start(home, *TORCHRUN, "--max-restarts", "2", "-m", *TRAIN, OFTEN)
    wait_until(lambda: checkpoints(home / "run"), launch)
    psutil.Process(launch.pid).children()[1].kill()
    ((code, said),) = ended(launch)
    assert code == 0, said
    assert "SIGKILL" in said or "exitcode: -9" in said  # it really was one of the workers
    assert weights(home / "run") == by_two


def test_a_process_killed_while_it_saves(home: Path, prepared: Path, tmp_path: Path) -> None:
    process = fork(home, "-m", *TRAIN, "students_train.checkpoint_seconds=1e-9")
    wait_until(lambda: checkpoints(home / "run") and list(home.glob("run/.partial/*/checkpoints/.step-*.tmp")), process)
    process.kill()
    assert ended(process)[0][0] == -signal.SIGKILL
    assert checkpoints(home / "run")
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
    process = fork(small_home, "-m", *TRAIN, OFTEN)
    wait_until(lambda: checkpoints(small_home / "run"), process)
    ballast = small_home / "ballast"
    with ballast.open("wb", buffering=0) as stream:
        while process.poll() is None:  # what an old checkpoint gives back is taken, too
            try:
                stream.write(bytes(4096))
            except OSError:
                time.sleep(0.001)
    ((code, said),) = ended(process)
    assert code == 2, said
    assert said.startswith("cocomix: the disk under run is full; free some space and rerun the same command")
    assert "Traceback" not in said
    left = checkpoints(small_home / "run")
    assert left and all((path / META).stat().st_size for path in left)
    ballast.unlink()
    undisturbed = Path(shutil.copytree(prepared, tmp_path / "undisturbed"))
    assert finished_here(small_home) == finished_here(undisturbed)

"""One of two processes was stopped: the other waited six hours without a word."""

import os
import signal
from pathlib import Path

import pytest

from tests.helpers.distributed_programs import ranks
from tests.helpers.forked import Forked
from tests.helpers.launched_commands import checkpoints, ended, fork, prepare, wait_until

TRAIN = ["-m", "cocomix", "train", "ntp", "-r", "run", "-c", "recipe.yaml"]
LONG = ["students_train.steps=4000", "students_train.n_snapshots=0"]


@pytest.mark.usefixtures("no_waiting_for_the_disk")
def test_a_process_that_hangs_is_named_and_the_other_saves(tmp_path: Path) -> None:
    home = prepare(tmp_path)

    def start(*overrides: str) -> list[Forked]:
        return [fork(home, *TRAIN, *LONG, *overrides, **rank) for rank in ranks(2)]

    first, second = start("students_train.hang_seconds=3", "students_train.checkpoint_seconds=1e9")
    wait_until(lambda: list(home.glob("run/.partial/*/seconds.json")), first, second)
    os.kill(second.pid, signal.SIGSTOP)
    try:
        ((code, said),) = ended(first)
    finally:
        os.kill(second.pid, signal.SIGKILL)
    ended(second)
    assert code == 2 and "Traceback" not in said, said
    assert f"process 1 (pid {second.pid} on" in said and "did not answer within 3 s (hang_seconds)" in said
    (saved,) = checkpoints(home / "run")
    assert f"step {int(saved.name.removeprefix('step-'))} is saved" in said
    tasks = start("students_train.checkpoint_seconds=0.1")
    wait_until(lambda: checkpoints(home / "run")[1:], *tasks)
    for task in tasks:
        task.send_signal(signal.SIGTERM)
    for code, said in ended(*tasks):
        assert code == 0 and "damaged" not in said, said

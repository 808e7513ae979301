"""Trackers: what is logged can be read back, nothing else of the process changes, and bad names are one sentence."""

import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cocomix.train.trackers import Trackers, open_trackers
from cocomix.utils.errors import CocomixError

CONFIG = {"train": {"steps": 3, "betas": (0.9, 0.95)}, "title": None}


def logged(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_holds_what_was_logged(tmp_path: Path) -> None:
    tracker = open_trackers(["tensorboard"], tmp_path / "log", "ntp seed 0", CONFIG)
    for step in (1, 2, 30):
        tracker.log({"loss": 1 / step, "lr": step * 1e-4}, step)
    tracker.close()
    found = logged(tmp_path / "log")
    assert found["loss"] == [(step, pytest.approx(1 / step)) for step in (1, 2, 30)]
    assert found["lr"] == [(step, pytest.approx(step * 1e-4)) for step in (1, 2, 30)]
    assert all(path.is_file() for path in (tmp_path / "log").iterdir())
    events = EventAccumulator(str(tmp_path / "log"))
    events.Reload()
    (text,) = events.Tensors("config/text_summary")
    assert b"train.steps: 3" in text.tensor_proto.string_val[0]


def test_a_resumed_run_goes_on_and_voids_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    for steps, value in (((1, 2, 3, 4), 1.0), ((3, 4, 5), 2.0)):
        tracker = open_trackers(["tensorboard"], tmp_path, "run", CONFIG)
        for step in steps:
            tracker.log({"loss": value}, step)
        tracker.close()
        tracker.close()
    assert logged(tmp_path)["loss"] == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0)]


def test_no_names_log_nowhere_and_need_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it now fails
    tracker = open_trackers([], tmp_path / "log", "x", {})
    tracker.log({"a": 1.0}, 1)
    tracker.close()
    assert not any(tmp_path.iterdir())
    with pytest.raises(CocomixError, match=r"tensorboard needs .*pip install 'cocomix\[track\]'"):
        open_trackers(["tensorboard"], tmp_path, "x", {})
    with pytest.raises(CocomixError, match=r"wandb needs .*pip install wandb"):
        open_trackers(["wandb"], tmp_path, "x", {})


def test_an_unknown_tracker_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CocomixError, match=r"no tracker 'tensorbored'; choose one of tensorboard, wandb, trackio"):
        open_trackers(["tensorbored"], tmp_path, "x", {})


def test_trackio_is_asked_for_the_same_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict] = []
    points: list[tuple[dict, int]] = []
    run = SimpleNamespace(log=lambda values, step: points.append((values, step)), finish=lambda: None)
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(init=lambda **given: seen.append(given) or run))
    for step in (1, 2):
        trackers = open_trackers(["trackio"], tmp_path, "run", CONFIG)
        trackers.log({"loss": 1.0}, step)
        trackers.close()
    assert points == [({"loss": 1.0}, 1), ({"loss": 1.0}, 2)]
    assert seen[0] == seen[1] and seen[0]["name"].startswith("run-") and seen[0]["config"]["train.steps"] == 3


def test_a_tracker_that_does_not_start_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")

    def refuse(**_: object) -> None:
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(CocomixError, match=r"wandb does not start .*WANDB_MODE=offline"):
        open_trackers(["wandb"], tmp_path, "x", {})


def test_a_tracker_that_fails_later_is_dropped_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        config: dict = {}
        logged = 0

        def log(self, values: dict, step: int) -> None:
            Broken.logged += 1
            raise ConnectionError("the server is gone")

        def finish(self) -> None:
            raise AssertionError("it was left out")

    wandb = pytest.importorskip("wandb")
    seen: list[dict] = []
    monkeypatch.setattr(wandb, "init", lambda **given: seen.append(given) or Broken())
    tracker = open_trackers(["wandb", "tensorboard"], tmp_path, "run", CONFIG)
    with pytest.warns(UserWarning, match="wandb failed and is left out"):
        tracker.log({"loss": 1.0}, 1)
    tracker.log({"loss": 2.0}, 2)
    tracker.close()
    assert Broken.logged == 1 and logged(tmp_path)["loss"] == [(1, 1.0), (2, 2.0)]
    again = open_trackers(["wandb"], tmp_path, "run", CONFIG)
    assert isinstance(again, Trackers) and seen[0]["id"] == seen[1]["id"] and seen[0]["resume"] == "allow"


def test_the_process_stays_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    torch.set_num_threads(1)
    before = (dict(os.environ), torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())
    open_trackers(["tensorboard"], tmp_path, "x", {}).log({"a": 1.0}, 1)
    after = (dict(os.environ), torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())
    assert after == before
    assert torch.get_num_threads() == 1 and torch.get_default_device() == torch.device("cpu")
    assert not torch.distributed.is_initialized()


IN_PROCESSES = """
import os, sys, torch
from pathlib import Path
from cocomix.utils.distributed import distributed_session, rank, barrier
from cocomix.train.trackers import open_trackers
os.environ.pop("OMP_NUM_THREADS", None)
torch.set_num_threads(2)
before = dict(os.environ)
with distributed_session():
    tracker = open_trackers(["tensorboard"], Path(sys.argv[1]), "x", {})
    for step in range(1, 4):
        total = torch.tensor([float(rank() + step)])
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        tracker.log({"sum": float(total)}, step)
    tracker.close()
    barrier()
assert dict(os.environ) == before and torch.get_num_threads() == 2
assert not torch.distributed.is_initialized()
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_under_torchrun_the_first_process_alone_logs(tmp_path: Path, processes: int) -> None:
    script = tmp_path / "log.py"
    script.write_text(IN_PROCESSES)
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if processes > 1 else []
    alone = {} if several else {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}  # as torchrun sets them
    done = subprocess.run(
        [sys.executable, *several, script, tmp_path / "log"],
        capture_output=True,
        text=True,
        timeout=150,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | alone,
    )
    assert done.returncode == 0, done.stderr
    expected = [(step, float(step if processes == 1 else 2 * step + 1)) for step in (1, 2, 3)]
    assert logged(tmp_path / "log")["sum"] == expected
    assert len(list((tmp_path / "log").glob("events*"))) == 1

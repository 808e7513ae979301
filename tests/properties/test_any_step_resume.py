"""Training stopped at any steps, however often, and begun again ends in the bits of a run that nobody stopped."""

import os
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import CONFIG, objective, source, weights

from cocomix.train.distributed import Interrupted
from cocomix.train.trainer import Trainer, TrainResult

STEPS = 12


def evaluate(_model: Any) -> dict[str, float]:
    return {"val_perplexity": float(torch.rand(()))}  # of the run's own random state, which is to come back, too


def curve(result: TrainResult) -> list[dict[str, Any]]:
    return [{key: value for key, value in point.items() if key != "seconds"} for point in result.curve]


class Crash(Exception):
    """An end that nobody expected: nothing is saved then."""


class Straight(NamedTuple):
    """What a run that nobody stopped ends in."""

    weights: dict[str, torch.Tensor]
    curve: list[dict[str, Any]]

    def __repr__(self) -> str:
        return "straight"


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Straight:
    made, folder = objective(dropout=0.1), tmp_path_factory.mktemp("straight")
    result = Trainer(made, source(folder / "s"), CONFIG, folder / "run", evaluate).run()
    assert [point["step"] for point in result.curve] == [4, 8, STEPS] and result.tokens == STEPS * 4 * 8
    return Straight(weights(made), curve(result))


@settings(max_examples=8)
@given(
    st.dictionaries(st.integers(1, STEPS - 1), st.sampled_from(["stopped", "crashed"]), min_size=1, max_size=3),
    st.sampled_from([0.0, 1e9]),
)
def test_stopped_anywhere_it_ends_in_the_same_bits(
    tmp_path_factory: pytest.TempPathFactory, straight: Straight, ends: dict[int, str], checkpoint_seconds: float
) -> None:
    """Checkpoints after every step, or when it is stopped and no other."""
    folder = tmp_path_factory.mktemp("stopped")
    config = CONFIG.model_copy(update={"checkpoint_seconds": checkpoint_seconds})
    for at, how in sorted(ends.items()):
        _train(folder, config, at, how)
    torch.manual_seed(99)
    made = objective(dropout=0.1)
    result = Trainer(made, source(folder / "s"), config, folder / "run", evaluate).run()
    assert all(torch.equal(tensor, straight.weights[name]) for name, tensor in weights(made).items())
    assert curve(result) == straight.curve


def _train(folder: Path, config: Any, at: int, how: str) -> None:
    """Begin, or go on, and end at step `at`."""

    def end(step: int, _total: int, _metrics: dict[str, Any]) -> None:
        if step == at:
            if how == "crashed":
                raise Crash
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Crash if how == "crashed" else Interrupted):
        Trainer(objective(dropout=0.1), source(folder / "s"), config, folder / "run", evaluate, end).run()

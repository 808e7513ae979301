"""A training stopped at any steps, asked to or killed, ends in the bits of one that nobody disturbed."""

import os
import signal
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cocomix.train.trainer import Trainer, training_tensors
from cocomix.utils.errors import Interrupted
from tests.helpers.every_objective import CONFIG, OBJECTIVES, data
from tests.helpers.small_training import objective

MADE = OBJECTIVES | {"dropout": lambda: objective(dropout=0.1)}
NEVER, ALWAYS = 1e9, 1e-9
"""Seconds between two checkpoints."""


pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


class Killed(BaseException):
    """As a kill does, nothing catches it."""


class Ended(NamedTuple):
    """All that a run leaves."""

    tensors: dict[str, torch.Tensor]
    curve: list[dict[str, Any]]
    tokens: int


def run(name: str, home: Path, config: Any, losses: dict[int, float], stop: tuple[int, str] | None = None) -> Ended:
    """Train in `home`, with each step's loss noted in `losses`; `stop`: at which step, and how."""
    made = MADE[name]()
    if any((home / "checkpoints").glob("step-*")):  # then nothing may depend on how it was made
        for tensor in made.trainable().state_dict().values():
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))

    def progress(step: int, _total: int, metrics: dict[str, float]) -> None:
        assert losses.setdefault(step, metrics["loss"]) == metrics["loss"]
        if stop is not None and step == stop[0]:
            if stop[1] == "killed":
                raise Killed
            os.kill(os.getpid(), signal.SIGTERM)

    def evaluate(model: Any) -> dict[str, float]:
        return {"val_weights": float(sum(weight.detach().double().sum() for weight in model.parameters()))}

    trainer = Trainer(made, data(home.parent / "shards"), config, home, evaluate, progress)
    result = trainer.run()
    tensors = training_tensors(made.trainable(), trainer.optimizer)
    curve = [{key: value for key, value in point.items() if key != "seconds"} for point in result.curve]
    return Ended({key: tensor.clone() for key, tensor in tensors.items()}, curve, result.tokens)


@pytest.mark.parametrize("name", MADE)
@settings(max_examples=2)
@given(st.integers(2, 6), st.integers(0, 2**16), st.integers(0, 4), st.sampled_from([None, 1, 3]), st.data())
def test_it_ends_in_the_same_bits(
    name: str, steps: int, seed: int, n_evals: int, micro: int | None, drawn: st.DataObject
) -> None:
    update = {"steps": steps, "seed": seed, "n_evals": min(n_evals, steps), "micro_batch_size": micro}
    config = CONFIG.model_copy(update=update | {"checkpoint_seconds": NEVER})
    stops = drawn.draw(st.lists(st.integers(1, steps), min_size=1, max_size=2, unique=True).map(sorted), label="stops")
    losses: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as home:
        whole = run(name, Path(home) / "whole", config, losses)
        assert set(losses) == set(range(1, steps + 1))
        for at in stops:
            how = drawn.draw(st.sampled_from(["asked", "killed"]), label="how")
            often = drawn.draw(st.sampled_from([ALWAYS, NEVER]), label="seconds between checkpoints")
            config = config.model_copy(update={"checkpoint_seconds": often})
            said = f"stopped at step {at} of {steps}" if how == "asked" else None
            with pytest.raises(Interrupted if how == "asked" else Killed, match=said):
                run(name, Path(home) / "cut", config, losses, (at, how))
        ended = run(name, Path(home) / "cut", config, losses)
    assert ended.curve == whole.curve and ended.tokens == whole.tokens == steps * config.batch_size * 8
    evaluations = min(n_evals, steps)
    assert [point["step"] for point in whole.curve] == [
        round(i * steps / evaluations) for i in range(1, evaluations + 1)
    ]
    assert set(ended.tensors) == set(whole.tensors)
    for key, tensor in whole.tensors.items():
        assert torch.equal(ended.tensors[key], tensor), key

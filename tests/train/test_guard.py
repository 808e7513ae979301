"""Faulty steps: not finite, or a jump; stopped or skipped."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from cocomix.data import batch_order
from cocomix.objectives import NtpObjective
from cocomix.train.trainer import Guard, Trainer
from cocomix.utils.errors import CocomixError
from tests.helpers.small_training import CONFIG, objective, source, weights


def test_what_is_a_fault() -> None:
    guard = Guard(spike_factor=2.0)
    assert guard.fault(math.nan, 1.0) == "the loss is nan"
    assert "norm is inf" in str(guard.fault(1.0, math.inf))
    for _ in range(9):
        assert guard.fault(1.0, 1.0) is None
    assert guard.fault(9.0, 1.0) is None  # the tenth: nothing to compare with yet
    assert "jumped to 2.5, the median of the last 10 is 1" in str(guard.fault(2.5, 1.0))
    assert guard.fault(1.9, 1.0) is None
    assert Guard(None, [1.0] * 50).fault(1e9, 1.0) is None
    resumed = Guard(2.0, guard.recent)
    assert resumed.fault(2.5, 1.0) is not None


class Poisoned(NtpObjective):
    """A model whose loss is not finite, or too large, for one window."""

    def __init__(self, window: torch.Tensor, factor: float) -> None:
        super().__init__(objective().model)
        self.window, self.factor = window, factor

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        loss = super().forward(batch)
        hit = (batch["input_ids"] == self.window).all(-1).any()
        return loss * torch.where(hit, self.factor, 1.0)


def poisoned(tmp_path: Path, factor: float, step: int) -> tuple[Poisoned, list[int]]:
    """Poison for a window that comes up in `step` (0-based), and the batch's windows."""
    data = source(tmp_path / "s")
    indices = batch_order(data.n_windows, 4, CONFIG.seed, step)
    return Poisoned(data(indices[:1], torch.device("cpu"))["input_ids"][0], factor), indices.tolist()


def test_stopping_names_the_windows_and_keeps_the_weights_from_before(tmp_path: Path) -> None:
    made, windows = poisoned(tmp_path, math.nan, 3)
    before: dict[str, torch.Tensor] = {}

    def remember(step: int, *_: Any) -> None:
        before.update(weights(made))

    named = ", ".join(map(str, windows))
    with pytest.raises(CocomixError, match=rf"the loss is nan by step 4 \(windows {named}\)"):
        Trainer(made, source(tmp_path / "s"), CONFIG, tmp_path / "a", progress=remember).run()
    assert all(torch.equal(tensor, weights(made)[name]) for name, tensor in before.items())


@pytest.mark.parametrize("factor", [math.nan, 50.0])
def test_skipping_leaves_the_step_out_and_says_so(tmp_path: Path, factor: float) -> None:
    made, windows = poisoned(tmp_path, factor, 11)
    config = CONFIG.model_copy(update={"on_fault": "skip", "spike_factor": 5.0})
    with pytest.warns(UserWarning, match=r"step 12 was skipped: the loss (is nan|jumped)"):
        result = Trainer(made, source(tmp_path / "s"), config, tmp_path / "a").run()
    (event,) = result.skipped
    assert event["step"] == 12 and event["windows"] == windows
    twin = objective()
    loop = Trainer(twin, source(tmp_path / "s"), CONFIG, tmp_path / "b")
    loss_fn = loop.wrapped()
    for _ in range(11):
        loop.train_step(loss_fn)
        loop.step += 1
    assert all(torch.equal(tensor, weights(twin)[name]) for name, tensor in weights(made).items())


def test_skipping_everything_is_given_up(tmp_path: Path) -> None:
    made = objective()
    made.model.transformer.wte.weight.data.fill_(float("nan"))
    config = CONFIG.model_copy(update={"on_fault": "skip", "steps": 60})
    with pytest.warns(UserWarning), pytest.raises(CocomixError, match="last 20 steps were all skipped"):
        Trainer(made, source(tmp_path / "s"), config, tmp_path / "a").run()

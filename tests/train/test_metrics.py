"""What a tracker gets to see of a run, read back from TensorBoard's own files."""

from pathlib import Path

import pytest

from cocomix.train.trainer import Trainer
from tests.helpers.small_training import CONFIG, objective, source

pytest.importorskip("tensorboard")
pytest.importorskip("accelerate")


def test_a_run_is_logged_with_speed_memory_and_evaluations(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = CONFIG.model_copy(update={"trackers": ("tensorboard",), "log_every": 2})
    losses: dict[int, float] = {}

    def remember(step: int, _total: int, metrics: dict[str, float]) -> None:
        losses[step] = metrics["loss"]

    result = Trainer(
        objective(), source(tmp_path / "s"), config, tmp_path / "run", lambda _: {"val_perplexity": 7.0}, remember
    ).run()
    (events,) = (tmp_path / "run" / "tracking").rglob("events.out*")
    read = EventAccumulator(str(events.parent))
    read.Reload()
    scalars = {tag: {point.step: point.value for point in read.Scalars(tag)} for tag in read.Tags()["scalars"]}
    for step in (2, 4, 6, 8, 10, 12):
        assert scalars["train/loss"][step] == pytest.approx(losses[step])
    assert scalars["val/perplexity"] == {point["step"]: 7.0 for point in result.curve}
    last = {tag: points[12] for tag, points in scalars.items() if tag.startswith("train/")}
    assert last["train/grad_norm"] > 0 and last["train/tokens_per_second"] > 0 and last["train/memory_gib"] > 0
    assert 0 < last["train/mfu"] < 1 and 0 <= last["train/wait_share"] <= 1 and last["train/steps_left_out"] == 0

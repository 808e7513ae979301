"""Learning-rate schedules against a slow twin, step by step, and what of a training can be extended."""

import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import get_linear_schedule_with_warmup

from cocomix.train.config import TrainConfig
from cocomix.train.schedules import SCHEDULES
from cocomix.train.trainer import CHECKPOINTS, STATE, Trainer
from tests.helpers.small_training import CONFIG, objective, source, weights

PEAK, FINAL = 3.0, 0.1


def twin(name: str, total: int, warmup: int, decay: float) -> list[float]:
    """The rates, phase by phase."""
    rates = [PEAK * (step + 1) / warmup for step in range(min(warmup, total))]
    rest = total - len(rates)
    if name == "constant":
        return rates + [PEAK] * rest
    if name == "cosine":
        angles = [math.pi * number / max(1, rest - 1) for number in range(rest)]
        return rates + [PEAK * (FINAL + (1 - FINAL) * 0.5 * (1 + math.cos(angle))) for angle in angles]
    if name == "linear":
        return rates + [PEAK * (rest - number) / rest for number in range(rest)]
    falling = max(1, round(decay * total))
    line = [PEAK + (FINAL * PEAK - PEAK) * (number + 1) / falling for number in range(falling)]
    return (rates + [PEAK] * total)[: total - falling] + line


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("total", [20, 57, 1000])
def test_each_schedule_is_its_twin(name: str, total: int) -> None:
    settings = {"learning_rate": PEAK, "warmup_steps": 7, "final_lr_fraction": FINAL, "decay_fraction": 0.25}
    config = TrainConfig(steps=total, schedule=name, **settings)
    rates = [config.learning_rate_at(step, total) for step in range(total)]
    assert rates == pytest.approx(twin(name, total, 7, 0.25), rel=1e-12)
    lowest = PEAK / (total - 7) if name == "linear" else PEAK * FINAL
    assert min(rates[7:]) >= lowest * (1 - 1e-12)


def test_linear_is_transformers_linear_schedule() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    theirs = get_linear_schedule_with_warmup(optimizer, 7, 40)
    config = TrainConfig(steps=40, schedule="linear", learning_rate=PEAK, warmup_steps=7)
    for step in range(40):
        if step >= 7:  # ours begins its warm-up one step above zero
            assert config.learning_rate_at(step, 40) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        theirs.step()
    assert optimizer.param_groups[0]["lr"] == 0.0


def test_the_cosine_is_that_of_earlier_versions_to_the_last_bit() -> None:
    config = TrainConfig(steps=300, learning_rate=4e-3, warmup_fraction=0.07)
    for step in range(300):
        warmup = max(1, round(0.07 * 300))
        if step < warmup:
            expected = 4e-3 * (step + 1) / warmup
        else:
            cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, 299 - warmup))))
            expected = 4e-3 * (0.1 + (1 - 0.1) * cosine)
        assert config.learning_rate_at(step, 300) == expected


def test_new_settings_at_their_defaults_are_not_in_a_recipe() -> None:
    recipe = TrainConfig(steps=3).recipe()
    assert not {"schedule", "warmup_steps", "decay_fraction", "init_from", "hang_seconds", "keep_state"} & set(recipe)
    assert not {"optimizer", "muon_momentum"} & set(recipe)
    assert TrainConfig(steps=3, schedule="wsd").recipe()["schedule"] == "wsd"
    with pytest.raises(ValidationError, match="no schedule 'step'; choose one of cosine, linear, constant, wsd"):
        TrainConfig(steps=3, schedule="step")


@pytest.mark.parametrize(
    ("schedule", "kept", "optimizer"), [("constant", 8, "adamw"), ("wsd", 6, "adamw"), ("wsd", 6, "muon")]
)
def test_an_extended_training_is_the_longer_one_bit_for_bit(
    tmp_path: Path, schedule: str, kept: int, optimizer: str
) -> None:
    lengths = {"steps": 8, "warmup_steps": 2, "decay_fraction": 0.25, "n_evals": 0}
    short = CONFIG.model_copy(update=lengths | {"schedule": schedule, "optimizer": optimizer})
    long = short.model_copy(update={"steps": 14})

    def trained(config: TrainConfig, name: str, extend: Path | None = None) -> tuple[dict[str, torch.Tensor], Trainer]:
        made = objective(dropout=0.1)
        trainer = Trainer(made, source(tmp_path / "s"), config, tmp_path / name, keep_state=True, extend=extend)
        trainer.run()
        return weights(made), trainer

    trained(short, "short")
    assert [path.name for path in (tmp_path / "short" / STATE).iterdir()] == [f"step-{kept:08d}"]
    whole, _ = trained(long, "whole")
    (tmp_path / "longer").mkdir()
    extended, trainer = trained(long, "longer", tmp_path / "short" / STATE)
    assert trainer.step == 14 and any((tmp_path / "longer" / CHECKPOINTS).iterdir())
    assert all(torch.equal(tensor, extended[name]) for name, tensor in whole.items())

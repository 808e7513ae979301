"""Weight schedules: constant, linear and cosine, and what they leave of a run's fingerprint."""

import math

import pytest
import torch
from pydantic import Field

from cocomix.objectives import CoCoMixObjective, ConceptConfig
from cocomix.objectives.schedule import WeightSchedule
from cocomix.utils.settings import Section, added, identity
from tests.helpers.every_objective import mixed


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.3, 0.6, 0.61, 1.0])
def test_factors(progress: float) -> None:
    u = min(1.0, progress / 0.6)
    for where in (progress, torch.tensor(progress, dtype=torch.float64)):
        assert WeightSchedule().factor(where) == 1 and not WeightSchedule().over(where)
        assert float(WeightSchedule(0.6).factor(where)) == pytest.approx(1 - u, abs=1e-6)
        cosine = WeightSchedule(0.6, "cosine")
        assert float(cosine.factor(where)) == pytest.approx(0.5 + 0.5 * math.cos(math.pi * u), abs=1e-6)
        assert cosine.over(where) == (progress >= 0.6)
    assert WeightSchedule(0.6).share(progress or 1.0) == pytest.approx(min(1.0, 0.6 / (progress or 1.0)))


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_lambda_falls_as_its_schedule_says(shape: str) -> None:
    model, ids = mixed(), torch.arange(8)[None]
    labels = torch.ones(1, 8, 2, dtype=torch.long)
    output = model(ids, labels=ids, concept_labels=labels)
    for progress in (0.0, 0.2, 0.5, 0.9):
        batch = {"input_ids": ids, "concept_labels": labels, "progress": torch.tensor(progress)}
        factor = WeightSchedule(0.5, shape).factor(progress)  # pyright: ignore[reportArgumentType]
        found = CoCoMixObjective(model, 0.5, shape=shape)(batch)  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(found, output.lm_loss + factor * 0.1 * output.concept_loss)


def test_a_new_setting_at_its_default_is_no_part_of_a_fingerprint() -> None:
    class Inner(Section):
        old: int = 1
        new: int = added(default=2, ge=0, description="added later")

    class Outer(Section):
        inner: Inner = Field(default_factory=Inner)
        more: Inner | None = None

    assert identity(Outer()) == {"inner": {"old": 1}, "more": None}
    assert identity(Outer(inner=Inner(new=3), more=Inner())) == {"inner": {"old": 1, "new": 3}, "more": {"old": 1}}
    assert Outer().model_dump() == {"inner": {"old": 1, "new": 2}, "more": None}
    constant = ConceptConfig()
    assert "loss_shape" not in identity(constant) and constant.model_dump()["loss_shape"] == "linear"
    assert identity(ConceptConfig(loss_until=0.5, loss_shape="cosine"))["loss_shape"] == "cosine"


def test_only_a_loss_that_falls_depends_on_the_share_of_training() -> None:
    """What decides whether a finished student may be trained on."""
    assert not CoCoMixObjective(mixed()).uses_progress
    assert CoCoMixObjective(mixed(), 0.5).uses_progress

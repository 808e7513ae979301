"""What students are charged for what was made once: by hand, for every kind of reader, with and without tries."""

from pathlib import Path
from typing import Any

import pytest

from cocomix.experiments.charges import Charges
from cocomix.experiments.config import ExperimentConfig
from cocomix.experiments.grid import Grid
from cocomix.pipeline.label_stages import LabelStage, LogitsStage
from cocomix.pipeline.sae_stage import SaeStage
from cocomix.pipeline.teacher_stage import TeacherStage
from cocomix.utils.settings import validate
from tests.experiments.test_grid import MIX, SHAPE, recipe

LABELLED: dict[str, Any] = {"objective": "cocomix", "model": SHAPE, "concept": MIX}
VARIANTS: dict[str, Any] = {
    "ntp": {"objective": "ntp", "model": SHAPE},
    "exact": LABELLED | {"labels": "exact"},
    "moved": LABELLED | {"labels": "random"},
    "both": LABELLED | {"labels": [{"set": "activation", "until": 0.5}, {"set": "exact"}]},
    "hash": LABELLED | {"labels": "hash"},
    "unlabelled": {"objective": "cocomix", "model": SHAPE, "concept": MIX | {"loss_weight": 0}},
    "kd": {"objective": "kd", "model": SHAPE, "teacher_top_k": 8},
    "kd_live": {"objective": "kd", "model": SHAPE},
}
LABELS = {
    "exact": {"rule": "exact", "signs": ["absolute"]},
    "activation": {"rule": "activation"},
    "random": {"rule": "random", "of": "exact"},
    "hash": {"rule": "hash"},
}
COST = {"exact": 600.0, "activation": 240.0, "top8": 90.0}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Makes charges of a grid of which nothing was run; its costs are those above, seconds a tenth of FLOPs."""

    def figures(cost: float) -> dict[str, float]:
        return {"flops": cost, "seconds": cost / 10}

    monkeypatch.setattr(LabelStage, "made_once", lambda self: figures(COST[self.set_name]))
    for stage, cost in ((LogitsStage, 90.0), (TeacherStage, 3000.0), (SaeStage, 300.0)):
        monkeypatch.setattr(stage, "figures", property(lambda self, cost=cost: figures(cost)))

    def make(**changes: Any) -> Charges:
        raw = recipe(variants=VARIANTS, settings={"one": {"title": "One"}}, claims=[], frontier=[], seeds=[0, 1, 2])
        raw["base"] = raw["base"] | {"labels": LABELS}
        grid = Grid(validate(ExperimentConfig, raw | changes, "the recipe"), tmp_path)
        tries = grid.tries["one"].stages() if grid.tries else []
        return Charges(grid.runs["one"], tries, grid.config.charged)

    return make


def test_labels_are_charged_fully_and_shared(made: Any) -> None:
    charges = made()
    assert charges.readers == {"labels/exact": 9, "labels/activation": 3, "logits/top8": 3}
    for free in ("ntp", "hash", "unlabelled", "kd_live"):
        assert set(charges.of(free, 0.5).values()) == {0.0}
    for name in ("exact", "moved"):  # a control's labels are those of another set
        cost = charges.of(name, 0.5)
        assert cost["label_flops"] == 300 and cost["label_seconds"] == 30
        assert cost["shared_label_flops"] == pytest.approx(600 / 9)
        assert cost["shared_label_seconds"] == pytest.approx(60 / 9)
    both = charges.of("both", 0.5)
    assert both["label_flops"] == 300 + 120 and both["shared_label_flops"] == pytest.approx(600 / 9 + 240 / 3)
    assert charges.of("kd", 1.0)["shared_label_flops"] == pytest.approx(30)


def test_nobody_is_charged_more_for_sharing(made: Any) -> None:
    assert made().of("kd", 0.1)["shared_label_flops"] == made().of("kd", 0.1)["label_flops"] == pytest.approx(9)


def test_all_readers_together_pay_the_whole_once(made: Any) -> None:
    charges = made(tuning={"learning_rates": [1e-3, 2e-3], "seed": 9})
    assert charges.readers["labels/exact"] == 3 * (3 + 2)
    students = [name for name in VARIANTS for _ in range(3 + 2)]
    assert sum(charges.of(name, 1.0)["shared_label_flops"] for name in students) == pytest.approx(sum(COST.values()))


def test_teacher_and_sae_are_charged_where_the_recipe_says(made: Any) -> None:
    assert made().upstream()["teacher"] == {"flops": 3000.0, "seconds": 300.0, "charged": False, "readers": 0}
    charges = made(charged=["teacher", "sae"])
    exact, kd, live = (charges.of(name, 0.5) for name in ("exact", "kd", "kd_live"))
    assert exact["label_flops"] == 300 + 3000 + 300
    assert exact["shared_label_flops"] == pytest.approx(600 / 9 + 3000 / 15 + 300 / 9)
    assert kd["label_flops"] == 45 + 3000 and live["label_flops"] == 3000  # no autoencoder
    assert set(charges.of("hash", 0.5).values()) == {0.0} and charges.upstream()["sae"]["charged"]

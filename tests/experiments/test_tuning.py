"""Learning rates: as many tries for each variant, by a seed of their own, chosen on validation text alone."""

import math
from pathlib import Path
from typing import Any

import pytest

from cocomix.experiments.config import ExperimentConfig
from cocomix.experiments.grid import Grid, collect
from cocomix.experiments.plan import plan
from cocomix.experiments.report import write_experiment_report
from cocomix.utils.errors import CocomixError
from cocomix.utils.settings import validate
from tests.experiments.test_grid import MIX, SHAPE, finish, recipe

RATES = [1e-5, 4e-3, 10.0]
VARIANTS: dict[str, Any] = {
    "ntp": {"objective": "ntp", "model": SHAPE},
    "pause": {"objective": "pause", "model": SHAPE, "mix": MIX},
    "wide": {"objective": "ntp", "model": SHAPE, "match_parameters": "pause"},
}


def tuned(**changes: Any) -> ExperimentConfig:
    raw = recipe(
        variants=VARIANTS,
        settings={"one": {"title": "One"}},
        frontier=[],
        claims=[],
        timing_steps=0,
        tuning={"learning_rates": RATES, "seed": 7},
    )
    return validate(ExperimentConfig, raw | changes, "the recipe")


# The stages that students share take most of it.
GRID = pytest.mark.long


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    made = Grid(tuned(), tmp_path_factory.mktemp("tuned") / "runs")
    finish(made)
    return made


@GRID
def test_each_variant_keeps_the_rate_with_the_lowest_validation_loss(grid: Grid) -> None:
    for name in VARIANTS:
        losses = {}
        for number, rate in enumerate(RATES):
            stage = grid.stage(f"one:students/{name}-lr{number}/seed7")
            losses[rate] = math.log(stage.figures["curve"][-1]["val_perplexity"])
        best = min(losses, key=lambda rate: losses[rate])
        assert best == 4e-3  # steps this few move nothing with the first, and the last is far too large
        final: Any = grid.stage(f"one:students/{name}/seed0")
        assert final.train.learning_rate == best and final.train.seed == 0
        tried = grid.tries["one"].figures()[name]
        assert [entry["val_loss"] for entry in tried["tried"]] == list(losses.values())
        assert tried["chosen"] == best and not tried["at_edge"]


@GRID
def test_tries_are_students_like_any_other_and_nobody_measures_them_on_test_text(grid: Grid) -> None:
    again: Any = grid.stage("one:students/wide-lr1/seed7")
    assert (
        again.config.match_parameters == "pause"
        and again.figures["width"] == grid.stage("one:students/wide/seed0").figures["width"]
    )
    assert not list(grid.folder.glob("one/evaluation/*-lr*"))
    assert len(list(grid.folder.glob("one/evaluation/*/seed0"))) == len(VARIANTS)


@GRID
def test_a_fresh_grid_knows_what_was_chosen_and_has_nothing_left_to_do(grid: Grid) -> None:
    again = Grid(tuned(), grid.folder)
    assert [job for one in again.rounds() for job in one.jobs if not again.done(job)] == []


def test_without_its_tries_a_variant_is_left_out(tmp_path: Path) -> None:
    fresh = Grid(tuned(), tmp_path / "runs")
    rounds = list(fresh.rounds())
    assert [job[0] for job in rounds[-2].jobs][:2] == ["one:students/ntp-lr0/seed7", "one:students/ntp-lr1/seed7"]
    assert rounds[-1].jobs == []


@GRID
def test_the_report_shows_the_rates_and_the_plan_counts_the_tries(grid: Grid, tmp_path: Path) -> None:
    written = write_experiment_report(collect(grid), tmp_path)
    assert written["settings"]["one"]["tuning"]["pause"]["chosen"] == 4e-3
    page = (tmp_path / "report.html").read_text()
    assert "Learning rates" in page and "at the edge" not in page
    with_tries = plan(tuned(), grid.folder)["settings"]["one"]["variants"][0]["flops"]
    without = plan(tuned(tuning=None), grid.folder)["settings"]["one"]["variants"][0]["flops"]
    assert with_tries == pytest.approx(without * (1 + len(RATES)))


@pytest.mark.parametrize(
    ("tuning", "said"),
    [
        ({"learning_rates": RATES, "seed": 0}, "choose another"),
        ({"learning_rates": [1e-3, 1e-3], "seed": 7}, "different numbers above 0"),
        ({"learning_rates": [1e-3], "seed": 7}, "learning_rates"),
    ],
)
def test_bad_tuning_is_refused(tuning: dict[str, Any], said: str) -> None:
    with pytest.raises(CocomixError, match=said):
        tuned(tuning=tuning)

"""The predictor: by hand and against scipy, refused where it was fitted, on the page, and its features in a grid."""

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from cocomix.experiments.config import ExperimentConfig
from cocomix.experiments.grid import Grid
from cocomix.experiments.predictor import PredictorFile, prediction, rank_correlation, read_predictor
from cocomix.report.page import render
from cocomix.utils.errors import CocomixError
from cocomix.utils.settings import read_yaml, validate
from tests.experiments.test_grid import recipe
from tests.helpers.experiment_results import experiment, setting, student

RECIPES = Path(__file__).parents[2] / "recipes"
GAINS = {"a": 0.1, "b": 0.3, "c": -0.1}
FILE = {"file": "predictor.yaml", "sha256": "0" * 64, "written": "2026-11-29", "why": "By reasoning.", "fitted_on": []}
COEFFICIENTS = {"intercept": 0.01, "coefficients": {"predictability": 0.5, "teacher_minus_student": -0.1}}


def results(**changes: Any) -> dict[str, Any]:
    settings = {
        name: setting(name, student("ntp", {0: 4.0, 1: 4.2}), student("cocomix", {0: 4.0 - gain, 1: 4.2 - gain}))
        for name, gain in GAINS.items()
    }
    cases = [
        {"setting": name, "variant": "cocomix", "baseline": "ntp"}
        | {"features": {"predictability": 0.1 * number, "teacher_minus_student": -0.5, "tokens_per_parameter": 1.0}}
        for number, name in enumerate(GAINS)
    ]
    return experiment([], **settings) | {"predictor": FILE | COEFFICIENTS | {"cases": cases} | changes}


def test_predictions_gains_and_their_correlation_by_hand() -> None:
    found = prediction(results())
    assert found and found["refused"] is None and found["missing"] == []
    assert [case["gain"] for case in found["cases"]] == pytest.approx([0.1, 0.3, -0.1])
    assert [case["predicted"] for case in found["cases"]] == pytest.approx([0.06, 0.11, 0.16])
    # Ranks 1 2 3 against 2 3 1: rho = 1 - 6 * (1 + 1 + 4) / (3 * 8); all but two of the six orders are as far off.
    assert found["rho"] == pytest.approx(-0.5) and found["n"] == 3 and found["p"] == pytest.approx(1.0)


def test_rho_is_scipys_and_p_every_order() -> None:
    generator = np.random.default_rng(0)
    first = generator.integers(0, 5, 6).astype(float)  # with ties
    second = first + generator.normal(0, 1, 6)
    found = rank_correlation(first.tolist(), second.tolist())
    rho = spearmanr(first, second).statistic
    orders = [spearmanr(first, second[list(order)]).statistic for order in list(permutations(range(6)))[::7]]
    assert found["rho"] == pytest.approx(rho)
    assert found["p"] == pytest.approx(np.mean(np.abs(orders) >= abs(rho) - 1e-12), abs=0.08)
    many = rank_correlation(range(20), [*range(1, 20), 0])
    assert many["p"] < 0.001 and many["n"] == 20
    assert rank_correlation([1, 1], [1, 2]) == {"rho": None, "p": None, "n": 2}
    assert rank_correlation([], []) == {"rho": None, "p": None, "n": 0}


@pytest.mark.parametrize("fitted", ["b", "b/cocomix"])
def test_what_it_was_fitted_on_is_refused(fitted: str) -> None:
    found = prediction(results(fitted_on=["elsewhere", fitted]))
    assert found and list(found) == ["refused"] and "it was fitted on b/cocomix" in found["refused"]
    page = render("predictor.html.j2", report=results(), predicted=found)
    assert "Nothing is reported of the predictor" in page and "rank correlation" not in page


def test_a_case_without_its_features_is_named_and_left_out() -> None:
    here = results()
    here["predictor"]["cases"][0]["features"]["predictability"] = None
    found = prediction(here)
    assert found and found["n"] == 2 and found["missing"][0]["why"] == "predictability not measured"
    page = render("predictor.html.j2", report=here, predicted=found)
    assert "a/cocomix is left out: predictability not measured" in page
    assert "Over 2 cases that it was not fitted on, its rank correlation" in page and "-1.00" in page


def test_the_committed_predictor_reads_and_bad_ones_are_one_sentence(tmp_path: Path) -> None:
    content = read_predictor(RECIPES / "claims" / "predictor.yaml")
    assert content["fitted_on"] == [] and len(content["sha256"]) == 64 and content["written"]
    with pytest.raises(CocomixError, match="is not there"):
        read_predictor(tmp_path / "absent.yaml")
    with pytest.raises(CocomixError, match="there is no feature 'luck'"):
        validate(PredictorFile, {"written": "x", "coefficients": {"luck": 1.0}}, "it")


def test_a_grid_measures_predictability_of_the_variants_asked_about(tmp_path: Path) -> None:
    raw = recipe(predictor={"file": "p.yaml", "variants": ["cocomix", "falls"]})
    grid = Grid(validate(ExperimentConfig, raw, "the recipe"), tmp_path)
    rounds = [job for one in grid.rounds() for job in one.jobs if "predictability" in job[-1]]
    assert rounds == [
        [
            "one:probe_students/gpt2-16x3-2",
            "one:predictability/exact/absolute",
            "one:predictability/activation/helpful",
        ],
        ["two:probe_students/gpt2-16x3-2", "two:predictability/exact/absolute"],
    ]
    assert grid.stage(rounds[0][1]).name == "predictability/exact/absolute"
    with pytest.raises(CocomixError, match="`predictor` asks for 'ntp', which has no labels"):
        validate(ExperimentConfig, raw | {"predictor": {"file": "p.yaml", "variants": ["ntp"]}}, "the recipe")


def test_recipes_name_the_committed_predictor() -> None:
    named = [read_yaml(path).get("predictor") for path in (RECIPES / "claims").glob("*.yaml")]
    assert {one["file"] for one in named if one} == {"recipes/claims/predictor.yaml"}

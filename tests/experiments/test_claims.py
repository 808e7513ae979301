"""Claims: every branch of the verdict rule, pooled figures by hand, t quantiles against the integral they stand for."""

from math import exp, gamma, pi, sqrt
from statistics import stdev
from typing import Any

import pytest

from cocomix.experiments.claims import STATEMENTS, judge_claims
from cocomix.report.statistics import t_quantile
from tests.helpers.experiment_results import compare, experiment, setting, student


def of(claims: list[dict[str, Any]], number: int) -> dict[str, Any]:
    return next(claim for claim in claims if claim["id"] == number)


def two_settings(first: list[float], second: list[float], **figures: Any) -> dict[str, Any]:
    """CoCoMix less NTP is `first` in setting `a` and `second` in `b`, seed by seed; NTP differs from seed to seed."""
    ntp = {0: 4.0, 1: 4.5, 2: 5.0}

    def ours(differences: list[float]) -> dict[str, Any]:
        return student("cocomix", {seed: ntp[seed] + gain for seed, gain in enumerate(differences)}, **figures)

    made = {
        name: setting(name, student("ntp", ntp), ours(differences))
        for name, differences in (("a", first), ("b", second))
    }
    return experiment([compare(1, ("cocomix", "ntp"), settings=("a", "b"))], **made)


@pytest.mark.parametrize("freedom", [*range(1, 30), 200])
def test_t_quantiles_leave_a_fortieth_above(freedom: int) -> None:
    scale = gamma((freedom + 1) / 2) / (sqrt(freedom * pi) * gamma(freedom / 2))
    t, parts = t_quantile(freedom), 20_000  # Simpson's rule from 0 to t
    density = [scale * (1 + (t * i / parts) ** 2 / freedom) ** (-(freedom + 1) / 2) for i in range(parts + 1)]
    area = (density[0] + density[-1] + 4 * sum(density[1:-1:2]) + 2 * sum(density[2:-1:2])) * t / parts / 3
    assert area == pytest.approx(0.475, abs=3e-5)


def test_all_nine_claims_are_there_and_what_was_not_run_says_so() -> None:
    claims = judge_claims(two_settings([-0.1] * 3, [-0.1] * 3))
    assert [claim["id"] for claim in claims] == list(range(1, 10)) == list(STATEMENTS)
    for claim in claims[1:]:
        assert claim["verdict"] == "undecided" and claim["why"] == "not run in this experiment"
        assert claim["difference"] is None and claim["parts"] == [] and claim["corpora"] == []


def test_a_test_pools_the_means_of_settings() -> None:
    differences = [-0.10, -0.12, -0.14, -0.05, -0.06, -0.07]
    claim = of(judge_claims(two_settings(differences[:3], differences[3:])), 1)
    shares = [stdev(part) ** 2 / 3 / 4 for part in (differences[:3], differences[3:])]
    freedom = sum(shares) ** 2 / sum(share**2 / 2 for share in shares)
    middle, half = sum(differences) / 6, t_quantile(freedom) * sqrt(sum(shares))
    assert freedom == pytest.approx(2 * 25 / 17) and claim["difference"] == pytest.approx(middle)
    assert claim["ci95"] == pytest.approx([middle - half, middle + half])
    assert (claim["seeds"], claim["corpora"], claim["verdict"]) == (3, ["a", "b"], "reproduced")
    assert claim["direction"] == "lower" and claim["holds_equal"] == "tokens, equal width"
    (part,) = claim["parts"]
    assert part["n"] == 6 and part["percent"] == pytest.approx(100 * (exp(middle) - 1))
    assert part["by_setting"]["b"]["difference"] == pytest.approx(-0.06)
    narrow = 4.302652730 * 0.02 / sqrt(3)
    assert part["by_setting"]["a"]["ci95"] == pytest.approx([-0.12 - narrow, -0.12 + narrow])


def test_cost_to_the_same_perplexity_is_a_mean_over_settings_and_none_if_a_seed_never_gets_there() -> None:
    # 0.1 lower is one quarter of the curve earlier, exactly at a point of it; 0.2 lower two.
    part = of(judge_claims(two_settings([-0.1 - 1e-9] * 3, [-0.2 - 1e-9] * 3)), 1)["parts"][0]
    assert part["tokens"] == pytest.approx((3 / 4 + 2 / 4) / 2, abs=1e-6)
    assert part["flops_with_labels"] == pytest.approx((3 / 4 + 2 / 4) / 2 + 1 / 4, abs=1e-6)
    assert (part["reached"], part["runs"]) == (6, 6)
    part = of(judge_claims(two_settings([-0.1, -0.1, 0.1], [-0.2] * 3)), 1)["parts"][0]
    assert part["tokens"] is None and (part["reached"], part["runs"]) == (5, 6)


def test_one_setting_that_opposes_refutes_whatever_the_mean() -> None:
    claim = of(judge_claims(two_settings([-1.0, -1.01, -1.02], [0.01, 0.011, 0.012])), 1)
    assert claim["difference"] < 0 and claim["verdict"] == "not reproduced"
    assert "b alone lies on the other side (p 0.0041 by Holm" in claim["why"]


def test_one_seed_decides_nothing_even_in_two_settings() -> None:
    claim = of(judge_claims(two_settings([-1.0], [-1.01])), 1)
    assert claim["difference"] == pytest.approx(-1.005) and claim["ci95"] is None
    assert claim["verdict"] == "undecided" and "a single seed has no interval" in claim["why"]
    assert claim["seeds"] == 1


def test_seeds_that_only_one_has_are_left_out() -> None:
    ours, theirs = student("cocomix", {1: 3.0, 2: 3.0, 3: 9.0}), student("ntp", {0: 9.0, 1: 4.0, 2: 5.0})
    results = experiment([compare(1, ("cocomix", "ntp"), settings=("a",))], a=setting("a", theirs, ours))
    part = of(judge_claims(results), 1)["parts"][0]
    assert part["n"] == 2 and part["difference"] == pytest.approx(-1.5)


@pytest.mark.parametrize(
    ("l1", "l2", "verdict", "named"),
    [
        ([4.1, 4.11, 4.12], [4.2, 4.22, 4.24], "reproduced", "l1"),
        ([4.1, 4.11, 4.12], [4.2, 3.9, 4.3], "undecided", "l2"),
        ([3.9, 3.91, 3.92], [4.2, 3.9, 4.3], "not reproduced", "l1"),
    ],
)
def test_a_claim_stands_with_its_least_favourable_part(
    l1: list[float], l2: list[float], verdict: str, named: str
) -> None:
    students = [student(name, dict(enumerate(losses))) for name, losses in (("l1", l1), ("l2", l2))]
    here = setting("a", student("cocomix", dict.fromkeys(range(3), 4.0)), *students)
    claim = of(judge_claims(experiment([compare(5, ("cocomix", "l1"), ("cocomix", "l2"), settings=("a",))], a=here)), 5)
    assert claim["verdict"] == verdict
    assert claim["why"].startswith(f"least favourable of 2 comparisons: cocomix against {named},")
    part = next(part for part in claim["parts"] if part["than"] == named)
    assert (claim["difference"], claim["ci95"]) == (part["difference"], part["ci95"])


def test_missing_students_are_said() -> None:
    results = experiment([compare(2, ("cocomix", "kd"), settings=("a",))], a=setting("a", student("cocomix", {0: 1.0})))
    claim = of(judge_claims(results), 2)
    assert claim["verdict"] == "undecided" and claim["why"] == "cocomix against kd: no seed of both is finished"
    assert claim["parts"][0]["n"] == 0 and claim["parts"][0]["percent"] is None and claim["corpora"] == []


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"width": 40, "parameters": 1010}, "tokens, equal parameters (within 1.0%)"),
        ({"width": 40, "parameters": 9}, "tokens, unequal width and parameters"),
        ({"tokens": 800}, "unequal tokens, equal width"),
    ],
)
def test_what_is_held_equal_is_read_off_the_runs(figures: dict[str, Any], words: str) -> None:
    assert of(judge_claims(two_settings([0.0] * 3, [0.0] * 3, **figures)), 1)["holds_equal"] == words


def score(seed: int, amplified: float, unsteered: float, control: float) -> dict[str, Any]:
    shares = {"amplified": amplified, "unsteered": unsteered, "control": control}
    return (
        {"seed": seed, "variant": "cocomix", "concepts": [{"concept": 3} | shares]}
        | shares
        | {"perplexity_amplified": 80.0, "perplexity_unsteered": 40.0}
    )


@pytest.mark.parametrize(
    ("control", "unsteered", "verdict", "difference"),
    [
        (0.10, 0.05, "reproduced", 0.21),
        (0.05, 0.10, "reproduced", 0.21),
        (0.50, 0.05, "not reproduced", -0.19),
    ],
)
def test_steering_must_beat_both_no_steering_and_another_concept(
    control: float, unsteered: float, verdict: str, difference: float
) -> None:
    scores = [score(seed, 0.30 + 0.01 * seed, unsteered, control) for seed in range(3)]
    results = experiment([{"id": 9, "compare": [], "steering": ["a"]}], a=setting("a", steering=scores))
    claim = of(judge_claims(results), 9)
    assert claim["direction"] == "higher" and claim["verdict"] == verdict and claim["seeds"] == 3
    assert claim["difference"] == pytest.approx(difference)
    half = 4.302652730 * 0.01 / sqrt(3)
    assert claim["ci95"] == pytest.approx([difference - half, difference + half])
    assert f"found at 31.0% of positions when amplified, {unsteered:.1%} unsteered" in claim["why"]
    assert "perplexity changes by +100.0 %" in claim["why"]

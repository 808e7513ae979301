"""Verdicts: Welch's interval by scipy, Holm against closed testing, every branch, and rates on null cases."""

from itertools import combinations
from math import sqrt
from statistics import mean
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cocomix.experiments.verdicts import holm, judge, opposing, pool, side, verdict_of

ALL = ("reproduced", "not reproduced", "undecided")


def by_seed(*settings: list[float]) -> dict[str, dict[int, float]]:
    return {f"s{number}": dict(enumerate(figures)) for number, figures in enumerate(settings)}


def verdicts(*parts: list[list[float]], direction: str = "lower") -> list[str]:
    judged = [pool(by_seed(*part)) for part in parts]
    judge(judged, direction)
    return [part["verdict"] for part in judged]


def test_one_setting_has_students_interval_and_p() -> None:
    figures = [-0.1, -0.13, -0.2, -0.02]
    part = pool(by_seed(figures))
    low, high = stats.t.interval(0.95, 3, np.mean(figures), stats.sem(figures))
    assert part["ci95"] == pytest.approx([low, high]) and part["freedom"] == pytest.approx(3) and part["n"] == 4
    for direction, alternative in (("lower", "greater"), ("higher", "less")):
        p = stats.ttest_1samp(figures, 0, alternative=alternative).pvalue
        assert opposing(part, direction) == pytest.approx(p)


def test_two_settings_have_welchs_interval() -> None:
    """The mean of two means is half the difference of one and the other's negative."""
    first, second = [0.1, 0.14, 0.16], [0.5, 0.9, 0.2, 0.4]
    welch = stats.ttest_ind(first, [-x for x in second], equal_var=False)
    low, high = welch.confidence_interval()
    part = pool(by_seed(first, second))
    assert part["freedom"] == pytest.approx(welch.df) and part["ci95"] == pytest.approx([low / 2, high / 2])
    assert part["difference"] == pytest.approx((mean(first) + mean(second)) / 2) and part["n"] == 7


def test_equal_figures_have_no_spread_and_decide() -> None:
    part = pool(by_seed([-0.5, -0.5], [-0.5, -0.5, -0.5]))
    assert part["ci95"] == [-0.5, -0.5] and part["error"] == 0 and part["freedom"] == 3
    assert verdicts([[-0.5, -0.5]]) == ["reproduced"] and verdicts([[0.5, 0.5]]) == ["not reproduced"]
    assert verdicts([[0.0, 0.0]]) == ["undecided"]


def test_a_single_seed_has_no_variance_and_so_no_interval() -> None:
    part = pool(by_seed([-0.5], [-0.1, -0.11, -0.12]))
    assert part["ci95"] is None and part["difference"] == pytest.approx(-0.305)
    assert part["by_setting"]["s0"]["ci95"] is None and part["by_setting"]["s1"]["ci95"] is not None
    assert verdicts([[-0.5], [-0.1, -0.11, -0.12]]) == ["undecided"] and verdicts([]) == ["undecided"]
    assert verdicts([[-0.5], [0.1, 0.11, 0.12]]) == ["not reproduced"]
    assert pool({"a": {}}) == pool({}) and pool({})["difference"] is None


def closed_testing(values: list[float], level: float) -> list[bool]:
    """Holm's procedure as Marcus, Peritz and Gabriel have it: a hypothesis falls if every set that holds it does."""
    indices = range(len(values))
    sets = [chosen for size in range(1, len(values) + 1) for chosen in combinations(indices, size)]
    falls = {chosen: min(values[index] for index in chosen) <= level / len(chosen) for chosen in sets}
    return [all(falls[chosen] for chosen in sets if index in chosen) for index in indices]


def test_holm_is_closed_testing_with_bonferroni() -> None:
    generator, decided = np.random.default_rng(0), 0
    for _ in range(300):
        values = (generator.random(generator.integers(1, 8)) ** 3).tolist()
        adjusted = holm(values)
        for level in (0.01, 0.05, 0.2):
            found = [p <= level for p in adjusted]
            assert found == closed_testing(values, level)
            decided += sum(found)
    assert decided > 300 and holm([]) == []
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


@pytest.mark.parametrize("flip", [False, True])
def test_every_branch_in_both_directions(flip: bool) -> None:
    sign, direction = (-1, "higher") if flip else (1, "lower")

    def given(*parts: list[list[float]]) -> list[str]:
        flipped = [[[sign * figure for figure in figures] for figures in part] for part in parts]
        return verdicts(*flipped, direction=direction)

    below, wide, above = [-0.10, -0.11, -0.12], [-0.3, 0.3, 0.01], [0.10, 0.11, 0.12]
    near = [0.10, 0.055, 0.10]  # its own interval is above 0, but not after correction for many
    assert given([below]) == ["reproduced"] and given([wide]) == ["undecided"] and given([above]) == ["not reproduced"]
    assert given([below, above]) == ["not reproduced"]
    assert given([below, wide]) == ["undecided"]
    assert given([below], [wide]) == ["reproduced", "undecided"]
    assert given([near]) == ["not reproduced"]
    assert given([near], *[[wide]] * 3) == ["undecided"] * 4


def test_all_parts_must_hold_and_one_may_not() -> None:
    parts = [{"verdict": verdict} for verdict in ALL]
    assert verdict_of(parts[:1]) == "reproduced" and verdict_of([parts[0], parts[2]]) == "undecided"
    assert verdict_of(parts) == "not reproduced" and verdict_of([]) == "undecided"
    assert [side(one) for one in ([-1, 0], [0, 1], [-2, -1], [1, 2], None)] == [0, 0, -1, 1, 0]


CASES = 2000
"""Simulated claims of each kind; three standard errors of a share of 2.5 % are 1.1 points."""


def decided(parts: int, effects: list[float], seeds: int, spreads: list[float], shared: float, cases: int) -> Any:
    """Shares of each verdict where every part has these true differences, by setting; seeds are drawn.

    `shared` is how much of a seed's variance the parts of a setting have in common, as when one variant is in all.
    """
    generator = np.random.default_rng([parts, seeds, len(effects)])
    own = generator.standard_normal((cases, parts, len(effects), seeds))
    common = generator.standard_normal((cases, 1, len(effects), seeds))
    noise = np.sqrt(1 - shared) * own + np.sqrt(shared) * common
    figures = np.array(effects)[:, None] + np.array(spreads)[:, None] * noise
    found = []
    for case in figures.tolist():
        judged = [pool(by_seed(*part)) for part in case]
        judge(judged, "lower")
        found.append(verdict_of(judged))
    return {verdict: found.count(verdict) / cases for verdict in ALL}


def limit(cases: int) -> float:
    """2.5 % and three standard errors of what is simulated."""
    return 0.025 + 3 * sqrt(0.025 * 0.975 / cases)


NULL = [(1, 1, 3, 0.0), (1, 2, 3, 0.0), (3, 2, 3, 0.5), (2, 3, 5, 0.5)]


def check_null(parts: int, settings: int, seeds: int, shared: float, cases: int) -> None:
    """Nothing is anywhere, and seeds spread four times more in the last setting: each wrong verdict has 2.5 %."""
    shares = decided(parts, [0.0] * settings, seeds, [1.0] * (settings - 1) + [4.0], shared, cases)
    assert max(shares["not reproduced"], shares["reproduced"]) <= limit(cases)


def check_unequal(effect: float, cases: int) -> None:
    """One setting is as much below 0 as the other above: the mean is 0, and `reproduced` would be wrong."""
    for spreads in ([1.0, 1.0], [1.0, 4.0]):
        assert decided(1, [-effect, effect], 3, spreads, 0, cases)["reproduced"] <= limit(cases)


@pytest.mark.parametrize(("parts", "settings", "seeds", "shared"), NULL)
def test_null_cases_are_decided_five_times_in_a_hundred_at_most(
    parts: int, settings: int, seeds: int, shared: float
) -> None:
    check_null(parts, settings, seeds, shared, CASES)


@pytest.mark.parametrize("effect", [0.5, 20.0])
def test_settings_that_differ_do_not_pass_for_a_gain(effect: float) -> None:
    check_unequal(effect, CASES)


@pytest.mark.long
def test_the_same_with_ten_times_the_cases() -> None:
    for given in NULL:
        check_null(*given, 10 * CASES)
    for effect in (0.5, 1.5, 3.0, 20.0):
        check_unequal(effect, 10 * CASES)


def test_settings_that_differ_on_the_claimed_side_are_not_refuted() -> None:
    """One setting far below 0, the other at 0: nothing is on the other side."""
    shares = decided(2, [-20.0, 0.0], 3, [1.0, 1.0], 0, CASES)
    assert shares["not reproduced"] <= limit(CASES) and shares["reproduced"] > 0.5


def test_the_rule_before_decided_far_more_null_cases() -> None:
    """What this replaces: any of the uncorrected intervals on the other side."""
    figures = np.random.default_rng(5).standard_normal((5000, 3 * 2, 3))
    half = stats.t.ppf(0.975, 2) / sqrt(3)
    above = figures.mean(axis=-1) > half * figures.std(axis=-1, ddof=1)
    assert above.any(axis=-1).mean() > 0.12

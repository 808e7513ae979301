"""The one number of a method, against the integral taken on a fine grid."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocomix.steering.study import best_dose, bounded_area

STEPS = 1000
POINTS = st.lists(st.tuples(st.integers(-50, 100), st.integers(-300, 1700)), min_size=1, max_size=7)


def on_a_grid(gains: list[float], costs: list[float], bound: float) -> float:
    """Mean over budgets of the best affordable gain; exact where costs are whole steps of the grid."""
    total = 0.0
    for step in range(STEPS):
        budget = (step + 0.5) / STEPS * bound
        best = 0.0
        for gain, cost in zip(gains, costs, strict=True):
            if cost <= budget:
                best = max(best, gain)
        total += best
    return total / STEPS


@given(POINTS, st.sampled_from([0.5, 1.0, 2.0]))
def test_area_is_the_integral(points: list[tuple[int, int]], bound: float) -> None:
    gains, costs = [gain / 100 for gain, _ in points], [cost / STEPS * bound for _, cost in points]
    found = bounded_area(np.array(gains), np.array(costs), bound)
    assert float(found) == pytest.approx(on_a_grid(gains, costs, bound), abs=1e-9)


def test_area_of_many_at_once() -> None:
    rng = np.random.default_rng(0)
    gains, costs = rng.normal(size=(3, 4, 5)), rng.normal(size=(3, 4, 5))
    found = bounded_area(gains, costs)
    assert found.shape == (3, 4)
    for place in np.ndindex(3, 4):
        assert found[place] == pytest.approx(bounded_area(gains[place], costs[place]))


def test_what_costs_nothing_counts_in_full_and_what_costs_too_much_not_at_all() -> None:
    assert bounded_area(np.array([0.3]), np.array([-0.2])) == pytest.approx(0.3)
    assert bounded_area(np.array([0.3]), np.array([0.25])) == pytest.approx(0.3 * 0.75)
    assert bounded_area(np.array([0.9]), np.array([1.0])) == 0
    assert bounded_area(np.array([-0.4]), np.array([0.0])) == 0


def test_best_dose_is_the_largest_affordable_gain() -> None:
    gains = np.array([0.1, 0.5, 0.3, 0.9])
    assert best_dose(gains, np.array([0.0, 1.0, 0.2, 1.01])) == 1
    assert best_dose(gains, np.full(4, 2.0)) is None
    assert best_dose(-gains, np.zeros(4)) is None

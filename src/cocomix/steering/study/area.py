"""One number for a method: how much of a concept it brings for how little fluency.

A dose d has a gain g_d (presence of the concept less that in unsteered text) and a cost c_d (fluency loss in nats a
token). What can be had for a cost of at most x is G(x) = max(0, max {g_d : c_d <= x}), for nothing can always be done
at no cost. The number is its mean over all budgets up to B,

    A = 1/B * integral from 0 to B of G(x) dx,

between 0 and the largest gain; a dose that costs nothing, or less than nothing, counts in full. Only the doses that
were measured count, nothing is interpolated, so G is a staircase and A exact.
"""

import numpy as np

BOUND = 1.0
"""B, nats a token."""


def bounded_area(gains: np.ndarray, costs: np.ndarray, bound: float = BOUND) -> np.ndarray:
    """A of gains and costs `[..., doses]`, float64 `[...]`."""
    costs = np.clip(costs, 0, bound)
    order = np.argsort(costs, axis=-1, kind="stable")
    costs = np.take_along_axis(costs, order, -1)
    best = np.maximum.accumulate(np.take_along_axis(gains, order, -1).clip(min=0), axis=-1)
    ends = np.concatenate([costs[..., 1:], np.full((*costs.shape[:-1], 1), bound)], -1)
    return (best * (ends - costs)).sum(-1) / bound


def best_dose(gains: np.ndarray, costs: np.ndarray, bound: float = BOUND) -> int | None:
    """The dose of the largest gain among those `[doses]` that cost at most `bound`; None if none gains anything."""
    affordable = np.where(costs <= bound, gains, -np.inf)
    best = int(affordable.argmax())
    return best if affordable[best] > 0 else None

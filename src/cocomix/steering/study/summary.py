"""From results to what the report says: curves of each method with intervals, one number each, and differences.

Of a method at dose d, for concept i and seed s:

    gain  g = share of positions with concept i in texts steered towards i, less that in unsteered text
          or the same of its distinguishing tokens, or of those that distinguish what follows it
    cost  c = mean loss of the steered texts under the independent model, less that of unsteered text (nats a token)

Unsteered text is the same model's, from all rows of the same seed. Curves are means over concepts and seeds.

The one number of a method says how much of a concept it brings for how little fluency. What can be had for a cost of
at most x is G(x) = max(0, max {g_d : c_d <= x}), because doing nothing costs nothing. The number is its mean over all
budgets up to B,

    A = 1/B * integral from 0 to B of G(x) dx,

between 0 and the largest gain; a dose that costs nothing, or less than nothing, counts in full. A dose whose texts
repeat themselves does not count: a language model finds a word said again and again likely, so that the loss does not
see it, and a method could bring a concept to half of the positions by saying one word. Counted are doses with at least
VARIETY of unsteered text's distinct-2. Only the doses that were measured count and nothing is interpolated, so G is a
staircase and A exact. It is taken of the mean curve: what a user of one dose would get on average.

Intervals come from computing all of it again with other concepts and seeds: these are drawn with replacement,
independently of each other, and everything is computed from the same draws, so the interval of a difference between
two methods is that of paired data. Three seeds say little about the spread over seeds, and the intervals are then a
little narrow; with one seed they are over concepts alone. A largest of noisy means is a little too large; by how much,
the random concept and the second unsteered sample show.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cocomix.steering.study.method_result import GAINS, MethodResult

BOUND = 1.0
"""B, nats a token."""
VARIETY = 0.9
DRAWS = 2000
INTERVAL = (2.5, 97.5)
"""Percentiles of the 95 % interval."""
COSTS = ("fluency_loss",)
FIGURES = ("distinct1", "distinct2", "repeated4", "leak")
MAIN = "concept"
"""The method the others are compared with."""
Results = Mapping[str, Mapping[int, MethodResult]]
"""By method, then by seed; all methods have the same seeds."""


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


class Resampling:
    """How often each seed and each concept is in each draw; the first draw is the data themselves.

    Attributes:
        seeds, concepts: weights that sum to 1 in each draw, float64 `[1 + DRAWS, seeds]` and `[1 + DRAWS, concepts]`.
    """

    def __init__(self, n_seeds: int, n_concepts: int, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.seeds, self.concepts = (_weights(generator, n) for n in (n_seeds, n_concepts))

    def means(self, values: np.ndarray) -> np.ndarray:
        """Of `values` `[seeds, concepts, ...]`: the mean of each draw, `[1 + DRAWS, ...]`."""
        return np.einsum("rs,rc,sc...->r...", self.seeds, self.concepts, values, optimize=True)


def interval(draws: np.ndarray) -> dict[str, Any]:
    """`mean` of the data, `low` and `high` of the 95 % interval, from `[1 + DRAWS]` as `Resampling.means` has them."""
    low, high = np.percentile(draws[1:], INTERVAL)
    return {"mean": float(draws[0]), "low": float(low), "high": float(high)}


def summary(results: Results, bound: float = BOUND) -> dict[str, Any]:
    """Per method: curves, area and best dose; the differences of the areas; what each concept gained, JSON-able."""
    seeds = list(next(iter(results.values())))
    n_concepts = len(next(iter(results.values()))[seeds[0]].unsteered.presence)
    draws = Resampling(len(seeds), n_concepts)
    methods, areas = {}, {}
    for name, by_seed in results.items():
        values = arrays([by_seed[seed] for seed in seeds])
        means = {figure: draws.means(array) for figure, array in values.items()}
        costs = counted(means["fluency_loss"], means["distinct2"], list(by_seed.values()))
        areas[name] = {gain: bounded_area(means[gain], costs, bound) for gain in GAINS}
        best = best_dose(means["presence"][0], costs[0], bound)
        methods[name] = _method([by_seed[seed] for seed in seeds], values, means, areas[name], best, bound)
    return {
        "bound": bound,
        "variety": VARIETY,
        "seeds": seeds,
        "methods": methods,
        "differences": [
            {"method": MAIN, "than": other, "figure": gain} | _difference(areas[MAIN][gain] - areas[other][gain])
            for gain in GAINS
            for other in results
            if MAIN in results and other != MAIN
        ],
    }


def counted(costs: np.ndarray, distinct2: np.ndarray, results: list[MethodResult]) -> np.ndarray:
    """Costs `[..., doses]`, infinite where texts of this distinct-2 repeat themselves more than unsteered ones may."""
    unsteered = np.mean([result.unsteered.distinct2 for result in results])
    return np.where(distinct2 < VARIETY * unsteered, np.inf, costs)


def output_scores(results: Results) -> np.ndarray | None:
    """Output scores of MAIN, means over seeds, `[concepts]`; None where they are not known."""
    scores = [result.output_scores for result in results.get(MAIN, {}).values()]
    return None if not scores or None in scores else np.array(scores, dtype=float).mean(0)


def best_half(results: Results) -> list[int] | None:
    """Places of the half of the concepts with the best output scores, best first; None where these are not known."""
    scores = output_scores(results)
    return None if scores is None else np.argsort(-scores, kind="stable")[: max(1, len(scores) // 2)].tolist()


def arrays(results: list[MethodResult]) -> dict[str, np.ndarray]:
    """Gains, costs and other figures of one method's results, one a seed, each `[seeds, concepts, doses]`."""

    def by_dose(result: MethodResult, figure: str) -> np.ndarray:
        return np.array([getattr(dose, figure) for dose in result.at]).T

    def gains(result: MethodResult, figure: str) -> np.ndarray:
        on_itself = np.array([np.diagonal(getattr(dose, figure)) for dose in result.at])
        return (on_itself - np.array(getattr(result.unsteered, figure))).T

    values = {gain: np.stack([gains(result, gain) for result in results]) for gain in GAINS}
    values["fluency_loss"] = np.stack([by_dose(result, "loss") - result.unsteered.loss for result in results])
    return values | {figure: np.stack([by_dose(result, figure) for result in results]) for figure in FIGURES}


def _weights(generator: np.random.Generator, n: int) -> np.ndarray:
    drawn = generator.multinomial(n, np.full(n, 1 / n), DRAWS)
    return np.concatenate([np.ones((1, n)), drawn]) / n


def _method(
    results: list[MethodResult],
    values: dict[str, np.ndarray],
    means: dict[str, np.ndarray],
    areas: dict[str, np.ndarray],
    best: int | None,
    bound: float,
) -> dict[str, Any]:
    doses = [result.dose for result in results[0].at]
    return {
        "area": {gain: interval(draws) for gain, draws in areas.items()},
        "best": None if best is None else doses[best],
        "doses": [
            {"dose": dose} | {figure: interval(draws[:, place]) for figure, draws in means.items()}
            for place, dose in enumerate(doses)
        ],
        "unsteered": {
            figure: float(np.mean([np.mean(getattr(result.unsteered, figure)) for result in results]))
            for figure in (*GAINS, "loss", "distinct1", "distinct2", "repeated4")
        },
        "by_concept": {figure: values[figure].mean(0).round(6).tolist() for figure in (*GAINS, *COSTS)},
        "by_seed": {
            gain: [
                float(bounded_area(*_curve(result, values, gain, place), bound)) for place, result in enumerate(results)
            ]
            for gain in GAINS
        },
    }


def _curve(result: MethodResult, values: dict[str, np.ndarray], gain: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One seed's gains and costs, means over the concepts, `[doses]`."""
    costs, distinct2 = (values[figure][seed].mean(0) for figure in ("fluency_loss", "distinct2"))
    return values[gain][seed].mean(0), counted(costs, distinct2, [result])


def _difference(draws: np.ndarray) -> dict[str, Any]:
    """Interval of a difference, and its verdict on the first."""
    stats = interval(draws)
    verdict = "better" if stats["low"] > 0 else "worse" if stats["high"] < 0 else "undecided"
    return stats | {"verdict": verdict}

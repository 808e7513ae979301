"""One part of a claim: `better` against `than`, pooled over settings and seeds, with its verdict.

The rule:

- `reproduced`: the pooled interval lies wholly on the claimed side, and no setting's own interval wholly on the other;
- `not reproduced`: the pooled interval, or any setting's own, lies wholly on the other side;
- `undecided`: anything else.

An interval is one over seeds: two settings with one seed each give two figures and still no interval.
"""

from collections.abc import Mapping
from math import expm1, log
from statistics import mean
from typing import Any

from cocomix.experiments.comparisons import estimate, find_student, loss_pairs
from cocomix.report.statistics import same_perplexity

DIRECTIONS = {"lower": -1, "higher": 1}
"""The claimed side of 0, by its name."""

COSTS = ("tokens", "flops", "seconds", "flops_with_labels", "seconds_with_labels")


def pool(by_setting: Mapping[str, Mapping[int, float]], direction: str) -> dict[str, Any]:
    """`difference`, `ci95`, `n`, `by_setting`, `verdict` of paired figures given by setting and seed."""
    present = {name: dict(figures) for name, figures in by_setting.items() if figures}
    pooled = estimate([figure for figures in present.values() for figure in figures.values()])
    if len({seed for figures in present.values() for seed in figures}) < 2:
        pooled["ci95"] = None
    settings = {name: estimate(list(figures.values())) for name, figures in present.items()}
    verdict = judge(pooled["ci95"], [stats["ci95"] for stats in settings.values()], direction)
    return pooled | {"by_setting": settings, "verdict": verdict}


def judge(pooled: list[float] | None, settings: list[list[float] | None], direction: str) -> str:
    """The verdict rule above, on intervals [low, high]; None where there is none."""
    claimed = DIRECTIONS[direction]
    if any(side(interval) == -claimed for interval in (pooled, *settings)):
        return "not reproduced"
    return "reproduced" if side(pooled) == claimed else "undecided"


def side(interval: list[float] | None) -> int:
    """-1 if the interval lies wholly below 0, 1 if wholly above, else 0."""
    if interval is None:
        return 0
    return (interval[0] > 0) - (interval[1] < 0)


def loss_part(results: dict[str, Any], comparison: dict[str, Any]) -> dict[str, Any]:
    """A comparison of two variants by test loss, and the cost of `better` to reach the perplexity of `than`.

    The costs are mean ratios over seeds and settings, None if any seed never gets there.
    """
    better, than = comparison["better"], comparison["than"]
    here = {name: results["settings"][name] for name in comparison["settings"] if name in results["settings"]}
    by_setting = {name: loss_pairs(setting, better, than) for name, setting in here.items()}
    part = {"better": better, "than": than} | pool(by_setting, "lower")
    part["percent"] = None if part["difference"] is None else 100 * expm1(part["difference"])
    reached = [_cost(here[name], better, than) for name in part["by_setting"]]
    for cost in COSTS:
        ratios = [one[cost] for one in reached]
        part[cost] = mean(ratios) if ratios and None not in ratios else None
    part["reached"] = sum(one["reached"] for one in reached)
    part["runs"] = sum(one["seeds"] for one in reached)
    part["seeds"] = sorted({seed for figures in by_setting.values() for seed in figures})
    return part


def steering_parts(results: dict[str, Any], settings: list[str]) -> list[dict[str, Any]]:
    """For each steered variant: the concept found when amplified, less without steering, and less its control.

    The control looks for the same concept while another one is amplified. `perplexity_rise` is the mean rise of the
    text's perplexity under steering, in percent (of the geometric mean): what steering costs in fluency.
    """
    scores: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name in settings:
        for score in results["settings"].get(name, {}).get("steering") or []:
            scores.setdefault(score["variant"], {}).setdefault(name, []).append(score)
    return [
        _steering_part(variant, scores[variant], other, words)
        for variant in scores
        for other, words in (("control", "another concept amplified"), ("unsteered", "no steering"))
    ]


def _steering_part(variant: str, scores: dict[str, list[dict[str, Any]]], other: str, words: str) -> dict[str, Any]:
    by_setting = {
        name: {score["seed"]: score["amplified"] - score[other] for score in here} for name, here in scores.items()
    }
    every = [score for here in scores.values() for score in here]
    rises = [
        log(score["perplexity_amplified"] / score["perplexity_unsteered"])
        for score in every
        if score.get("perplexity_amplified") and score.get("perplexity_unsteered")
    ]
    return (
        {"better": f"{variant}, concept amplified", "than": f"{variant}, {words}"}
        | pool(by_setting, "higher")
        | {"percent": None, "reached": 0, "runs": 0}
        | dict.fromkeys(COSTS)
        | {"seeds": sorted({score["seed"] for score in every})}
        | {figure: mean(score[figure] for score in every) for figure in ("amplified", "unsteered", "control")}
        | {"perplexity_rise": 100 * expm1(mean(rises)) if rises else None}
    )


def _cost(setting: dict[str, Any], better: str, than: str) -> dict[str, Any]:
    ours, theirs = find_student(setting, better), find_student(setting, than)
    assert ours is not None and theirs is not None  # there are pairs of them
    return same_perplexity(ours, theirs)

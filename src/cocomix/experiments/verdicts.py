"""The rule behind every verdict: what a few paired figures in a few settings say, at how many wrong decisions.

A part is one signed comparison, measured in one or more settings with one paired figure a seed. Settings are fixed: the
figures speak of these corpora, this teacher and these labels, which were drawn once, and of no others. A part's
difference is the mean of its settings' means, each counted once; its standard error comes from the variances within
settings alone, and its degrees of freedom are Welch and Satterthwaite's. Pooling all pairs as if they were draws of one
population would take what differs between settings for noise, or for none of it when there are few.

Verdicts over the parts that are judged together (one claim, or one variant's controls):

- `not reproduced`: some figure lies on the other side of 0. The figures are every part's pooled difference and every
  setting's own; the p-values of one side are corrected together by Holm, at the level one side of a 95 % interval has
  (2.5 %).
- `reproduced`: every part's pooled interval lies wholly on the claimed side, and no figure lies on the other. To need
  all of several intervals is an intersection-union test, which needs no correction.
- `undecided`: anything else.

So `reproduced` is a statement on the mean over these settings, wrong at most 2.5 % of the time where that mean is not
on the claimed side; `not reproduced` is wrong at most 2.5 % of the time where nothing is on the other side.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cocomix.report.statistics import CONFIDENCE, summary, t_quantile, t_tail

ONE_SIDE = (1 - CONFIDENCE) / 2
"""What lies beyond one end of an interval."""
DIRECTIONS = {"lower": -1, "higher": 1}
"""The claimed side of 0, by its name."""
WORST_FIRST = ("not reproduced", "undecided", "reproduced")

Part = dict[str, Any]


def pool(by_setting: Mapping[str, Mapping[int, float]]) -> Part:
    """`difference`, `ci95`, `n`, `freedom`, `error` and `by_setting` of paired figures given by setting and seed.

    A setting with a single seed has no variance: it has no interval, and neither has any figure pooled with it.
    """
    present = {name: list(figures.values()) for name, figures in by_setting.items() if figures}
    settings = {name: _setting(values) for name, values in present.items()}
    parts = list(settings.values())
    difference = math.fsum(part["difference"] for part in parts) / len(parts) if parts else None
    error, freedom = None, None
    if parts and all(part["error"] is not None for part in parts):
        shares = [(part["error"] / len(parts)) ** 2 for part in parts]
        error = math.sqrt(math.fsum(shares))
        freedom = _satterthwaite(shares, [part["freedom"] for part in parts])
    return _figure(difference, error, freedom, sum(part["n"] for part in parts)) | {"by_setting": settings}


def _setting(values: Sequence[float]) -> Part:
    stats, n = summary(values), len(values)
    if n == 1:
        return _figure(stats["mean"], None, None, n)
    return _figure(stats["mean"], stats["sd"] / math.sqrt(n), n - 1, n)


def _figure(difference: float | None, error: float | None, freedom: float | None, n: int) -> Part:
    interval = None
    if difference is not None and error is not None and freedom is not None:
        half = t_quantile(freedom) * error
        interval = [difference - half, difference + half]
    return {"difference": difference, "ci95": interval, "n": n, "freedom": freedom, "error": error}


def _satterthwaite(shares: Sequence[float], freedoms: Sequence[int]) -> float:
    """Degrees of freedom of a sum of variances; `shares` are each one's part of it."""
    below = sum(share**2 / freedom for share, freedom in zip(shares, freedoms, strict=True))
    return sum(shares) ** 2 / below if below else float(sum(freedoms))


def opposing(stats: Part, direction: str) -> float | None:
    """One-sided p-value of a figure on the other side of 0 than claimed; None where it has no spread to judge by."""
    if stats["error"] is None:
        return None
    against = -DIRECTIONS[direction] * stats["difference"]
    if stats["error"] == 0:
        return 0.0 if against > 0 else 1.0
    return t_tail(against / stats["error"], stats["freedom"])


def holm(values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: at most a level where the step-down test at that level rejects."""
    adjusted, largest = [1.0] * len(values), 0.0
    for place, index in enumerate(sorted(range(len(values)), key=lambda index: values[index])):
        largest = max(largest, min(1.0, (len(values) - place) * values[index]))
        adjusted[index] = largest
    return adjusted


def judge(parts: Sequence[Part], direction: str) -> None:
    """Give each of `parts`, judged together, its `verdict`; every figure gets `p_other_side`, Holm's p-value."""
    figures = [figure for part in parts for figure in _figures(part)]
    known = [(figure, p) for figure in figures if (p := opposing(figure, direction)) is not None]
    for figure in figures:
        figure["p_other_side"] = None
    for (figure, _), p in zip(known, holm([p for _, p in known]), strict=True):
        figure["p_other_side"] = p
    for part in parts:
        # With one setting, the part's own figure is that setting's.
        if len(part["by_setting"]) == 1:
            part["p_other_side"] = next(iter(part["by_setting"].values()))["p_other_side"]
        part["verdict"] = _verdict(part, direction)


def _figures(part: Part) -> list[Part]:
    """What of a part is tested: its pooled difference, if it pools anything, and every setting's own."""
    settings = list(part["by_setting"].values())
    return [part, *settings] if len(settings) > 1 else settings or [part]


def opposed(figure: Part) -> bool:
    """Whether a judged figure lies on the other side after Holm."""
    return figure["p_other_side"] is not None and figure["p_other_side"] <= ONE_SIDE


def _verdict(part: Part, direction: str) -> str:
    if any(opposed(figure) for figure in (part, *part["by_setting"].values())):
        return "not reproduced"
    return "reproduced" if side(part["ci95"]) == DIRECTIONS[direction] else "undecided"


def verdict_of(parts: Sequence[Part]) -> str:
    """The verdict on all `parts` together: the worst."""
    return WORST_FIRST[min((WORST_FIRST.index(part["verdict"]) for part in parts), default=1)]


def side(interval: Sequence[float] | None) -> int:
    """-1 if the interval lies wholly below 0, 1 if wholly above, else 0."""
    if interval is None:
        return 0
    return (interval[0] > 0) - (interval[1] < 0)

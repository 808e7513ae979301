"""The best variant at equal tokens, at equal FLOPs and at equal wall clock, setting by setting, in figures and words.

At equal tokens every variant with the baseline's token count is compared with the baseline; at equal FLOPs and equal
wall clock with the frontier of next-token students (`cocomix.experiments.frontier`). The reference itself stands in
each ranking with a difference of 0: where nothing is better, it wins. The winner is picked among all variants after
the fact, so its own difference flatters it; the words say among how many.
"""

from typing import Any

from cocomix.experiments.comparisons import compared, find_student, in_words, loss_pairs
from cocomix.experiments.frontier import COSTS, against_frontier

AXES = {
    "tokens": "equal tokens",
    "flops": "equal FLOPs",
    "flops_with_labels": "equal FLOPs, labels included",
    "seconds": "equal wall clock",
    "seconds_with_labels": "equal wall clock, labels included",
}
"""What is held equal in each ranking."""


def best(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """For each setting and axis the `ranking` (best first, unmeasured last), the `winner`, the result in `words`."""
    return {
        name: {axis: _entry(results, setting, axis) for axis in AXES} for name, setting in results["settings"].items()
    }


def statement(results: dict[str, Any], best_of: dict[str, dict[str, Any]]) -> list[str]:
    """Plain sentences: for each setting and axis the winner, whether that is decided, and where CoCoMix stands."""
    return [
        f"{results['settings'][name]['title']}: at {AXES[axis]}, {entry['words']}"
        for name, axes in best_of.items()
        for axis, entry in axes.items()
    ]


def main_variant(results: dict[str, Any]) -> str:
    """The variant that stands for CoCoMix: the one claim 1, raw or judged, favours."""
    first = [claim.get("parts") or claim.get("compare") or () for claim in results["claims"] if claim["id"] == 1]
    return next((one["better"] for made in first for one in made), "cocomix")


def equal_tokens(setting: dict[str, Any], name: str) -> bool:
    """Whether the variant was trained on as many tokens as the setting's baseline."""
    ours, base = find_student(setting, name), find_student(setting, setting["baseline"])
    return ours is not None and base is not None and ours["runs"][0]["tokens"] == base["runs"][0]["tokens"]


def _entry(results: dict[str, Any], setting: dict[str, Any], axis: str) -> dict[str, Any]:
    rows = _rows(setting, results["frontier"], axis)
    measured = sorted((row for row in rows if row["difference"] is not None), key=lambda row: row["difference"])
    rest = [row for row in rows if row["difference"] is None]
    measured = measured if len(measured) > 1 else []  # the reference alone is no comparison
    return {
        "ranking": measured + rest,
        "winner": measured[0]["variant"] if measured else None,
        "words": _words(measured, rest, main_variant(results), _reference(setting, axis)),
    }


def _rows(setting: dict[str, Any], frontier: list[str], axis: str) -> list[dict[str, Any]]:
    base, names = setting["baseline"], [student["name"] for student in setting["students"]]
    reference = {"variant": base, "difference": 0.0, "ci95": None, "n": 0, "verdict": "reference", "why": None}
    if axis in COSTS:
        others = [name for name in names if name != base and name not in frontier]
        return [reference] + [{"variant": name} | against_frontier(setting, frontier, name, axis) for name in others]
    others = [name for name in names if name != base and equal_tokens(setting, name)]
    rows = [{"variant": name} | compared(list(loss_pairs(setting, name, base).values())) for name in others]
    return [reference] + [row | {"why": None if row["n"] else "no seed of both is finished"} for row in rows]


def _reference(setting: dict[str, Any], axis: str) -> str:
    return f"{setting['baseline']} of any length" if axis in COSTS else setting["baseline"]


def _words(measured: list[dict[str, Any]], rest: list[dict[str, Any]], main: str, reference: str) -> str:
    if not measured:
        reasons = list(dict.fromkeys(row["why"] for row in rest if row["why"]))
        return f"nothing can be said ({'; '.join(reasons) or 'no other variant was trained'})."
    among = f"of {len(measured) - 1} variants"
    first = measured[0]
    if first["verdict"] == "reference":
        nearest = measured[1]
        text = f"none {among} beats {reference}; the nearest is {nearest['variant']}, {_figures(nearest)}"
        told = nearest["variant"]
    else:
        text = f"the best {among} is {first['variant']}, {_figures(first)} against {reference}"
        told = first["variant"]
    outside = [row["variant"] for row in rest if "range" in row and row["variant"] != main]
    if outside:
        text += f" (out of the frontier's range: {', '.join(outside)})"
    if main == told:
        return text + "."
    row = next((row for row in measured + rest if row["variant"] == main), None)
    if row is None:
        return text + "."
    return f"{text}; {main} itself: {_figures(row) if row['difference'] is not None else row['why']}."


def _figures(row: dict[str, Any]) -> str:
    decided = {
        "better": "lower beyond the spread of seeds",
        "worse": "higher beyond the spread of seeds",
        "undecided": "not decided by " + ("one seed" if row["n"] == 1 else f"{row['n']} seeds"),
    }[row["verdict"]]
    return f"{in_words(row)} nats ({decided})"

"""What a gain is owed to: each concept variant less its controls, not only less the baseline.

A control has all of a concept variant but the concepts: labels of other positions, hashes of the current token in place
of labels, an MLP in the channel's place. A variant that beats the baseline may owe that to the extra slot, to the
token's identity brought back mid-stack, or to its parameters. "Concepts help" is said of a variant only if it beats the
baseline and every one of its controls, by the rule of `cocomix.experiments.verdicts`: every pooled interval below 0,
and nothing above 0 after Holm over all of the variant's contrasts and settings.
"""

from collections.abc import Sequence
from math import expm1
from typing import Any

from cocomix.experiments.verdicts import judge, pool, verdict_of
from cocomix.report.formats import difference
from cocomix.report.statistics import find_student, loss_pairs

OUTCOMES = {
    "help": "concepts help",
    "not the concepts": "no gain that is the concepts'",
    "undecided": "undecided",
    "no gain": "no gain",
    "not measured": "not measured",
}
"""What can be said of a variant, and how it is said in a word or two."""


def contrasts(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each concept variant that has controls, in the recipe's `controls` or in a claim's.

    Returns:
        `variant`, `outcome`, `words` (a sentence), `settings` (their names) and `parts`: the contrasts, the baseline's
        first, each with the figures of `pool`, `than`, `percent` and a `verdict`.
    """
    return [_row(results, **asked) for asked in _asked(results)]


def _asked(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Variant, controls and settings of each row; what claims ask for is added to what the recipe does."""
    every = tuple(results["settings"])
    asked: dict[str, dict[str, Any]] = {}

    def add(variant: str, controls: Sequence[str], settings: Sequence[str]) -> None:
        row = asked.setdefault(variant, {"variant": variant, "controls": [], "settings": []})
        row["controls"] += [name for name in controls if name not in row["controls"]]
        row["settings"] += [name for name in settings if name in every and name not in row["settings"]]

    for group in results.get("controls") or ():
        for variant in group["variants"]:
            add(variant, group["controls"], group["settings"] or every)
    for claim in results["claims"]:
        if not claim.get("controls"):
            continue
        for part in claim.get("compare") or claim.get("parts") or ():
            add(part["better"], claim["controls"], part.get("settings") or list(part["by_setting"]))
    return list(asked.values())


def _row(results: dict[str, Any], variant: str, controls: Sequence[str], settings: Sequence[str]) -> dict[str, Any]:
    trained = [name for name in settings if find_student(results["settings"][name], variant)]
    baseline = results["baseline"]
    parts = [_part(results, variant, than, trained) for than in (baseline, *controls)]
    judge(parts, "lower")
    outcome = _outcome(parts)
    row = {"variant": variant, "outcome": outcome, "settings": trained, "parts": parts}
    return row | {"words": _words(variant, baseline, outcome, parts)}


def _part(results: dict[str, Any], variant: str, than: str, settings: Sequence[str]) -> dict[str, Any]:
    part: dict[str, Any] = {"than": than} | pool(
        {name: loss_pairs(results["settings"][name], variant, than) for name in settings}
    )
    return part | {"percent": None if part["difference"] is None else 100 * expm1(part["difference"])}


def _outcome(parts: Sequence[dict[str, Any]]) -> str:
    if not all(part["n"] for part in parts):
        return "not measured"
    verdict = verdict_of(parts)
    if verdict == "reproduced":
        return "help"
    if parts[0]["verdict"] == "not reproduced":
        return "no gain"
    return "not the concepts" if verdict == "not reproduced" else "undecided"


def _words(variant: str, baseline: str, outcome: str, parts: Sequence[dict[str, Any]]) -> str:
    """One sentence, with the figures it rests on."""
    first, controls = parts[0], parts[1:]
    if outcome == "not measured":
        missing = [part["than"] for part in parts if not part["n"]]
        return f"{variant}: nothing is said of its concepts, since no seed of it and {_listed(missing)} is finished."
    if outcome == "help":
        return f"Concepts help in {variant}: it beats {baseline} ({_nats(first)}) and every control ({_all(controls)})."
    if outcome == "no gain":
        return f"{variant} is no better than {baseline} ({_nats(first)}), so there is no gain to explain."
    if outcome == "not the concepts":
        ahead = [part for part in controls if part["verdict"] == "not reproduced"]
        gain = "beats" if first["verdict"] == "reproduced" else "is not decided against"
        holds, does = ("holds", "does") if len(ahead) == 1 else ("hold", "do")
        return (
            f"{variant} {gain} {baseline} ({_nats(first)}), but {_listed([part['than'] for part in ahead])}, which"
            f" {holds} no concept, {does} better than it ({_all(ahead)}): its gain is not its concepts'."
        )
    open_ones = [part for part in parts if part["verdict"] == "undecided"]
    others = _listed([part["than"] for part in open_ones])
    if first["verdict"] == "reproduced":
        return (
            f"{variant} beats {baseline} ({_nats(first)}), but not {others} beyond the spread of seeds"
            f" ({_all(open_ones)}): whether that is its concepts is undecided."
        )
    return f"{variant} against {others} is undecided ({_all(open_ones)})."


def _nats(part: dict[str, Any]) -> str:
    return f"{difference(part)} nats"


def _all(parts: Sequence[dict[str, Any]]) -> str:
    return "; ".join(f"{part['than']}: {difference(part)}" for part in parts)


def _listed(names: Sequence[str]) -> str:
    *before, last = names
    return f"{', '.join(before)} and {last}" if before else last

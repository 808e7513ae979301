"""The paper's nine claims, each a signed comparison, and what an experiment says of them.

A claim has one or more tests (`better` against `than`), which `cocomix.experiments.verdicts` judges together: each
test's difference is the mean over settings of the paired difference in test loss, in nats per token, with a 95 %
interval over seeds. Losses are additive over corpora, perplexities are not: only losses are pooled, and `percent`, the
change in perplexity, is exp(difference) - 1.

A claim is reproduced if all its tests are, not reproduced if any test is not, else undecided. Its `difference` and
`ci95` are its least favourable test's: the worst verdict first, then the worst difference.

Claim 9 has no loss: its figure is the share of generated positions at which the SAE finds the concept that was
amplified, and the claimed side is above 0. That share must be higher than without steering, and higher than where
another concept is amplified (else any disturbance would count as steering).
"""

from math import expm1, log
from statistics import mean
from typing import Any

from cocomix.experiments.verdicts import DIRECTIONS, WORST_FIRST, judge, opposed, pool, side
from cocomix.report.formats import difference
from cocomix.report.statistics import find_student, held_equal, loss_pairs, same_perplexity

COSTS = ("tokens", "flops", "seconds", "flops_with_labels", "seconds_with_labels")
STATEMENTS = {
    1: "CoCoMix has a lower loss than next-token prediction (NTP) at equal tokens.",
    2: "CoCoMix beats knowledge distillation (KL to the teacher's next-token distribution).",
    3: "CoCoMix beats pause tokens, a learned vector in each extra slot.",
    4: "Labels chosen by attribution teach better than labels chosen by activation.",
    5: "Predicting concepts beats regressing the teacher's hidden state with an L1, L2 or cosine loss.",
    6: "Concept loss alone helps, and concept loss and mixing together beat either alone.",
    7: "Interleaving concept vectors beats adding them to the hidden state, and adding still beats NTP.",
    8: "Under distribution shift (the teacher learned another corpus) CoCoMix still beats NTP and distillation.",
    9: "Amplifying a predicted concept's logit steers generation toward that concept.",
}
"""The paper's claims in one sentence each, by number."""


def loss_test(results: dict[str, Any], comparison: dict[str, Any]) -> dict[str, Any]:
    """A comparison of two variants by test loss, and the cost of `better` to reach the perplexity of `than`.

    The costs are mean ratios over seeds and settings, None if any seed never gets there.
    """
    better, than = comparison["better"], comparison["than"]
    settings = {name: results["settings"][name] for name in comparison["settings"] if name in results["settings"]}
    by_setting = {name: loss_pairs(setting, better, than) for name, setting in settings.items()}
    test = {"better": better, "than": than} | pool(by_setting)
    test["percent"] = None if test["difference"] is None else 100 * expm1(test["difference"])
    reached = [_cost(settings[name], better, than) for name in test["by_setting"]]
    for cost in COSTS:
        ratios = [costs[cost] for costs in reached]
        test[cost] = mean(ratios) if ratios and None not in ratios else None
    test["reached"] = sum(costs["reached"] for costs in reached)
    test["runs"] = sum(costs["seeds"] for costs in reached)
    test["seeds"] = sorted({seed for figures in by_setting.values() for seed in figures})
    return test


def steering_tests(results: dict[str, Any], settings: list[str]) -> list[dict[str, Any]]:
    """For each steered variant: the concept found when amplified, less without steering, and less its control.

    The control looks for the same concept while another one is amplified. `perplexity_rise` is the mean rise of the
    text's perplexity under steering, in percent (of the geometric mean): what steering costs in fluency.
    """
    scores: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name in settings:
        for score in results["settings"].get(name, {}).get("steering") or []:
            scores.setdefault(score["variant"], {}).setdefault(name, []).append(score)
    return [
        _steering_test(variant, scores[variant], other, words)
        for variant in scores
        for other, words in (("control", "another concept amplified"), ("unsteered", "no steering"))
    ]


def _steering_test(variant: str, scores: dict[str, list[dict[str, Any]]], other: str, words: str) -> dict[str, Any]:
    by_setting = {
        name: {score["seed"]: score["amplified"] - score[other] for score in by_seed}
        for name, by_seed in scores.items()
    }
    every = [score for by_seed in scores.values() for score in by_seed]
    rises = [
        log(score["perplexity_amplified"] / score["perplexity_unsteered"])
        for score in every
        if score.get("perplexity_amplified") and score.get("perplexity_unsteered")
    ]
    return (
        {"better": f"{variant}, concept amplified", "than": f"{variant}, {words}"}
        | pool(by_setting)
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


def judge_claims(results: dict[str, Any]) -> list[dict[str, Any]]:
    """All nine claims in order, with verdicts; a claim that no comparison speaks to is undecided.

    Args:
        results: an experiment's raw results.

    Returns:
        For each claim `id`, `statement`, `holds_equal`, `difference`, `ci95`, `seeds` (their number), `corpora`
        (names of settings), `verdict`, `direction` (the claimed side of 0), `parts` (its tests), `why`.
    """
    inputs: dict[int, dict[str, list[Any]]] = {number: {"compare": [], "steering": []} for number in STATEMENTS}
    for claim in results["claims"]:
        for kind, values in inputs[claim["id"]].items():
            values.extend(claim.get(kind) or ())
    inputs[9]["steering"] = inputs[9]["steering"] or list(results["settings"])
    return [_claim(number, results, **inputs[number]) for number in STATEMENTS]


def _claim(number: int, results: dict[str, Any], compare: list[Any], steering: list[str]) -> dict[str, Any]:
    tests = [loss_test(results, comparison) for comparison in compare]
    direction = "lower"
    if not tests and steering:
        tests, direction = steering_tests(results, steering), "higher"
    judge(tests, direction)
    worst = least_favourable(tests, direction)
    return {
        "id": number,
        "statement": STATEMENTS[number],
        "holds_equal": _held_equal(results, tests) if direction == "lower" else "model, prompts, tokens generated",
        "difference": worst["difference"] if worst else None,
        "ci95": worst["ci95"] if worst else None,
        "seeds": len({seed for test in tests for seed in test["seeds"]}),
        "corpora": list(dict.fromkeys(name for test in tests for name in test["by_setting"])),
        "verdict": worst["verdict"] if worst else "undecided",
        "direction": direction,
        "parts": tests,
        "why": _why(tests, worst, direction) if worst else "not run in this experiment",
    }


def least_favourable(tests: list[dict[str, Any]], direction: str) -> dict[str, Any] | None:
    """The test a claim stands or falls with: the worst verdict, and among those the worst difference."""

    def favour(test: dict[str, Any]) -> tuple[int, float]:
        difference = test["difference"]
        return WORST_FIRST.index(test["verdict"]), DIRECTIONS[direction] * (difference or 0.0)

    return min(tests, key=favour, default=None)


def _why(tests: list[dict[str, Any]], worst: dict[str, Any], direction: str) -> str:
    """What the verdict rests on: the least favourable test, its figures, and what decides it."""
    which = f"least favourable of {len(tests)} comparisons: " if len(tests) > 1 else ""
    pair = f"{which}{worst['better']} against {worst['than']}"
    if worst["difference"] is None:
        return f"{pair}: no seed of both is finished"
    text = (
        f"{pair}, {difference(worst)} {'nats' if direction == 'lower' else 'of positions'}: {_reason(worst, direction)}"
    )
    if "unsteered" not in worst:
        return text
    text += (
        f"; found at {worst['amplified']:.1%} of positions when amplified, {worst['unsteered']:.1%} unsteered,"
        f" {worst['control']:.1%} with another concept amplified"
    )
    rise = worst["perplexity_rise"]
    return text if rise is None else f"{text}; the generated text's perplexity changes by {rise:+.1f} % (its fluency)"


def _reason(test: dict[str, Any], direction: str) -> str:
    if test["verdict"] == "reproduced":
        return "the interval lies on the claimed side"
    if test["verdict"] == "not reproduced":
        alone = [name for name, stats in test["by_setting"].items() if opposed(stats)]
        if opposed(test):
            return f"it lies on the other side ({_p(test)})"
        return f"{', '.join(alone)} alone lies on the other side ({_p(test['by_setting'][alone[0]])})"
    if test["ci95"] is None:
        return "a single seed has no interval"
    if side(test["ci95"]) == -DIRECTIONS[direction]:
        return f"the interval lies on the other side, but not after correction for all figures ({_p(test)})"
    return "the interval holds 0"


def _p(figure: dict[str, Any]) -> str:
    return f"p {figure['p_other_side']:.2g} by Holm, one-sided, decided at 0.025"


def _held_equal(results: dict[str, Any], tests: list[dict[str, Any]]) -> str:
    """What the comparisons hold equal, read off the runs and models: one phrase for all, or one for each."""
    phrases: dict[str, list[str]] = {}
    for test in tests:
        for name in test["by_setting"]:
            ours, theirs = (find_student(results["settings"][name], test[role]) for role in ("better", "than"))
            if ours is None or theirs is None:
                continue
            same = ours["runs"][0]["tokens"] == theirs["runs"][0]["tokens"]
            phrase = f"{'tokens' if same else 'unequal tokens'}, {held_equal(ours, theirs)}"
            phrases.setdefault(phrase, []).append(f"{test['better']} against {test['than']}")
    if len(phrases) < 2:
        return next(iter(phrases), "nothing: not run")
    return "; ".join(f"{phrase} ({', '.join(dict.fromkeys(pairs))})" for phrase, pairs in phrases.items())

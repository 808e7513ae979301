"""What the figures say, in plain words, whichever way they came out; and what they cannot say."""

from typing import Any

from cocomix.steering.study.method_result import GAINS
from cocomix.steering.study.summary import MAIN

BY = {
    "presence": "by the teacher's SAE",
    "words": "by its distinguishing tokens",
    "follow": "by the tokens that follow it",
}
"""What a gain is measured by."""


def percent(value: float) -> str:
    """A share of positions, in points; `0.0123` is 1.2."""
    return f"{round(100 * value, 1) + 0.0:.1f}"  # no minus before 0


def between(stats: dict[str, Any]) -> str:
    """A mean and its interval, in points: `1.2 (0.9 to 1.5)`."""
    return f"{percent(stats['mean'])} ({percent(stats['low'])} to {percent(stats['high'])})"


def headline(report: dict[str, Any]) -> list[str]:
    """One sentence on the steered student, one on each comparison, and one on who is ahead."""
    methods = report["methods"]
    sentences = []
    for gain in GAINS:
        if MAIN in methods:
            own = methods[MAIN]["area"][gain]
            sentences.append(
                f"{report['student']} brings a concept, {BY[gain]}, to {between(own)} more of 100 generated positions,"
                f" on average over fluency budgets up to {report['bound']:g} nat a token."
            )
        ranking = sorted(methods, key=lambda name: -methods[name]["area"][gain]["mean"])
        listed = ", ".join(f"{name} {percent(methods[name]['area'][gain]['mean'])}" for name in ranking)
        verdicts = [_verdict(one) for one in report["differences"] if one["figure"] == gain]
        sentences.append(f"Order {BY[gain]}: {listed}. {MAIN} is {'; '.join(verdicts)}.")
    return sentences


def caveats(report: dict[str, Any]) -> list[str]:
    """What a reader has to know before comparing methods."""
    methods, judges, seeds = report["methods"], report["judges"], report["seeds"]
    said = [
        "The judges are not neutral between methods. "
        + " ".join(f"{name}: {one['ties']}." for name, one in methods.items() if one["ties"] != "nothing"),
        "So the residual method's gain by the SAE is an upper bound of what that direction does to text: it is pushed"
        " along the direction that the judge looks along. Distinguishing tokens are a second judge, and that one is"
        " nearest to the prompt method.",
        "Most concepts of a small autoencoder tell which token stands there, and tokens seldom follow themselves:"
        " steering that says `this was such a token` at every position need not bring more such tokens. What it should"
        " bring is what follows them: tokens that distinguish the positions after the concept are the third judge.",
        "Gains and losses are against the same model unsteered. The models differ: residual steers the teacher, "
        "which is larger than the students and has other fluency to lose; its figures are no comparison at equal size."
        " residual_ntp steers a student without concepts instead.",
        "A budget's gain is the best of several noisy means and so a little too large; by how much, `none` and"
        " `random` show. Doses were fixed before measuring; their units differ, and prompt has"
        " fewer of them. More doses can only help a method.",
        "What a word repeated without end costs is not seen by a language model, which finds it likely: read the"
        " fluency loss together with distinct-2 and repeated 4-grams.",
        "Concepts are those with distinguishing tokens that two halves of the training text agree on, neither rare nor"
        " frequent: of other concepts this says nothing.",
    ]
    if len(seeds) > 1:
        said.append(
            f"Intervals are 95 %, by drawing concepts and seeds anew; {len(seeds)} seeds say little about the"
            " spread over seeds, and concepts, teacher, SAE and prompts are the same for all of them."
        )
    else:
        said.append("Intervals are 95 %, by drawing concepts anew; with one seed they hold for this seed alone.")
    if not all(one["independent"] for one in judges):
        said.append(
            "THE FLUENCY JUDGE IS NOT INDEPENDENT: the run has no next-token student to spare, so the teacher judges"
            " fluency, too. It favours the residual method, which steers it."
        )
    if any(one["baseline"] is None for one in judges):
        said.append("residual_ntp is not measured: the run has no finished student without concepts.")
    elif not all(one["same_width"] for one in judges):
        said.append("The student that residual_ntp steers is not of the steered student's width.")
    return said


def _verdict(one: dict[str, Any]) -> str:
    turned = {"mean": -one["mean"], "low": -one["high"], "high": -one["low"]}
    words = {
        "better": f"ahead of {one['than']} by {between(one)}",
        "worse": f"behind {one['than']} by {between(turned)}",
        "undecided": f"not told apart from {one['than']}, {between(one)}",
    }
    return words[one["verdict"]]

"""The report of a steering study: `report.json` and `report.html`.

The sentences say what the figures say, whichever way they came out, and what they cannot say.
"""

from pathlib import Path
from typing import Any

from markupsafe import Markup

from cocomix.evaluation.perplexity import window_subset
from cocomix.report.charts import dose_charts, fluency_chart, leak_chart
from cocomix.report.formats import GAIN_LABELS, between, percent
from cocomix.report.page import render
from cocomix.report.tables import METHOD_COLUMNS, costs_legend, gains_legend, method_rows
from cocomix.steering.study.judging_sae import LEAST_CORRELATION
from cocomix.steering.study.method_result import GAINS
from cocomix.steering.study.summary import MAIN
from cocomix.utils.files import write_json, write_text

EXAMPLES = 4
"""Concepts whose texts are shown: evenly spread over the chosen ones, of the first seed."""


def write_steering_report(report: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write both files into `folder`, atomically; returns the report with its sentences.

    Args:
        report: `summary` of the results, and what is known of the run.
    """
    complete = {"headline": headline(report), "caveats": caveats(report)} | report
    write_json(folder / "report.json", complete)
    page = render(
        "steering.html.j2",
        report=complete,
        by=GAIN_LABELS,
        columns=METHOD_COLUMNS,
        rows=method_rows(report),
        half_rows=method_rows(report["best_half"]) if report.get("best_half") else [],
        legends=(gains_legend(report), costs_legend(report)),
        doses=Markup(dose_charts(report)),
        frontiers=[Markup(fluency_chart(report, gain)) for gain in GAINS],
        leaks=Markup(leak_chart(report)),
        examples=examples(report),
    )
    write_text(folder / "report.html", page)
    return complete


def headline(report: dict[str, Any]) -> list[str]:
    """One sentence on the steered student, one on each comparison, and one on who is ahead; then of the best half."""
    sentences = []
    for gain in GAINS:
        sentences += [_brought(report, gain)] if MAIN in report["methods"] else []
        sentences.append(_order(report, gain))
    half = report.get("best_half")
    if half is not None:
        which = f"Of the {len(half['places'])} concepts with the best output scores"
        sentences += [f"{which}: {_order(report | half, gain)}" for gain in GAINS]
    return sentences


def _brought(report: dict[str, Any], gain: str) -> str:
    area = report["methods"][MAIN]["area"][gain]
    return (
        f"{report['student']} brings a concept, {GAIN_LABELS[gain]}, to {between(area)} more of 100 generated"
        f" positions, on average over fluency budgets up to {report['bound']:g} nat a token."
    )


def _order(report: dict[str, Any], gain: str) -> str:
    methods = report["methods"]
    ranking = sorted(methods, key=lambda name: -methods[name]["area"][gain]["mean"])
    listed = ", ".join(f"{name} {percent(methods[name]['area'][gain]['mean'])}" for name in ranking)
    verdicts = [_verdict(entry) for entry in report["differences"] if entry["figure"] == gain]
    return f"Order {GAIN_LABELS[gain]}: {listed}. {MAIN} is {'; '.join(verdicts)}."


def caveats(report: dict[str, Any]) -> list[str]:
    """What a reader has to know before comparing methods."""
    methods, judges, seeds = report["methods"], report["judges"], report["seeds"]
    sentences = [
        "The judges are not neutral between methods. "
        + " ".join(f"{name}: {method['ties']}." for name, method in methods.items() if method["ties"] != "nothing"),
        _on_the_judge(report),
        "Most concepts of a small autoencoder tell which token stands there, and tokens seldom follow themselves:"
        " steering that says `this was such a token` at every position need not bring more such tokens. What it should"
        " bring is what follows them: tokens that distinguish the positions after the concept are the third judge.",
        _on_the_models(report),
        "A budget's gain is the best of several noisy means and so a little too large; by how much, `none` and"
        " `random` show. Doses were fixed before measuring; their units differ, and prompt has"
        " fewer of them. More doses can only help a method.",
        "What a word repeated without end costs is not seen by a language model, which finds it likely"
        + _on_repetition(report),
        "Concepts are those with distinguishing tokens that two halves of the training text agree on, neither rare nor"
        " frequent: of other concepts this says nothing.",
    ]
    if report.get("own_doses"):
        sentences.append(f"Doses of {', '.join(report['own_doses'])} are not the usual ones: the command gave them.")
    if len(seeds) > 1:
        sentences.append(
            f"Intervals are 95 %, by drawing concepts and seeds anew; {len(seeds)} seeds say little about the"
            " spread over seeds, and concepts, teacher, SAE and prompts are the same for all of them."
        )
    else:
        sentences.append("Intervals are 95 %, by drawing concepts anew; with one seed they hold for this seed alone.")
    if not all(judge["independent"] for judge in judges):
        sentences.append(
            "THE FLUENCY JUDGE IS NOT INDEPENDENT: the run has no next-token student to spare, so the teacher judges"
            " fluency, too. It favours the residual method, which steers it."
        )
    if report.get("best_half") is not None:
        sentences.append(
            "Output scores are of the student's own concepts, by the first prompts: the best half is chosen in favour"
            " of what they measure, the method `concept`, and every method is judged on it."
        )
    if any(judge["baseline"] is None for judge in judges):
        sentences.append("residual_ntp is not measured: the run has no finished student without concepts.")
    elif not all(judge["same_width"] for judge in judges):
        sentences.append("The student that residual_ntp steers is not of the steered student's width.")
    return sentences


def _on_repetition(report: dict[str, Any]) -> str:
    if "variety" not in report:  # as studies were summed up before
        return ": read the fluency loss together with distinct-2 and repeated 4-grams."
    return (
        f". So doses whose texts have less than {report['variety']:.0%} of unsteered text's distinct-2 are left out of"
        " areas and best doses."
    )


def _on_the_judge(report: dict[str, Any]) -> str:
    tokens = " Distinguishing tokens are a second judge, and that one is nearest to the prompt method."
    judge = report.get("judging_sae")
    if judge is None:
        return (
            "So the residual method's gain by the SAE is an upper bound of what that direction does to text: it is"
            " pushed along the direction that the judge looks along." + tokens
        )
    mean = sum(judge["correlations"]) / len(judge["correlations"])
    return (
        f"The SAE that judges is another one: of the teacher's block {judge['layer']}, {judge['n_latents']} latents of"
        f" which {judge['k']} are active. For each concept its latent is the one that is active at the same places of"
        f" validation text (mean correlation {mean:.2f}); concepts without a latent at {LEAST_CORRELATION:g} or more"
        " are not steered." + tokens
    )


def _on_the_models(report: dict[str, Any]) -> str:
    same = all(judge.get("plain") not in (None, "the teacher") for judge in report["judges"])
    if same:
        return (
            "Gains and losses are against the same model unsteered. All models come from one base: the student is the"
            " base with a channel, and residual and residual_ntp steer the base fine-tuned on the same text without"
            " one, whose hidden states where the SAE reads are the base's."
        )
    return (
        "Gains and losses are against the same model unsteered. The models differ: residual steers the teacher, which"
        " is larger than the students and has other fluency to lose; its figures are no comparison at equal size."
        " residual_ntp steers a student without concepts instead."
    )


def examples(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Texts to look at, chosen by place alone: EXAMPLES concepts, each with what every method made of one prompt."""
    shown = []
    for place in window_subset(len(report["concepts"]), EXAMPLES).tolist():
        texts = {name: method["examples"][place] for name, method in report["methods"].items() if method["examples"]}
        prompt = next((text["prompt"] for text in texts.values()), "")
        shown.append({"concept": report["concepts"][place], "prompt": prompt, "steered": texts})
    return shown


def _verdict(difference: dict[str, Any]) -> str:
    reversed_sign = {"mean": -difference["mean"], "low": -difference["high"], "high": -difference["low"]}
    words = {
        "better": f"ahead of {difference['than']} by {between(difference)}",
        "worse": f"behind {difference['than']} by {between(reversed_sign)}",
        "undecided": f"not told apart from {difference['than']}, {between(difference)}",
    }
    return words[difference["verdict"]]

"""The report of a steering study and for the terminal."""

from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from cocomix.evaluation.perplexity import window_subset
from cocomix.report.charts import COLOURS, drawing, inline_svg
from cocomix.steering.study.method_result import GAINS
from cocomix.steering.study.summary import MAIN
from cocomix.utils.files import write_json, write_text

# What the figures say, in plain words, whichever way they came out; and what they cannot say.

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


# Dose against response, gain against fluency, and leak, as inline SVG for light and dark pages.

MARKS = "osD^vPX"
"""So that a method can be told without its colour."""


def dose_charts(report: dict[str, Any]) -> str:
    """A panel for each method, for units of dose differ: gain at each dose by both judges, with 95 % bands."""
    methods = {name: one for name, one in report["methods"].items() if len(one["doses"]) > 1}
    with drawing() as plt:
        figure, panels = plt.subplots(1, len(methods), figsize=(3.1 * len(methods), 3.6), sharey=True, squeeze=False)
        for axes, (name, one) in zip(panels[0], methods.items(), strict=True):
            for number, (gain, words) in enumerate(BY.items()):
                curve = [dose[gain] for dose in one["doses"]]
                doses = [dose["dose"] for dose in one["doses"]]
                _band(axes, doses, curve, COLOURS[number], MARKS[number], words)
            axes.axhline(0, color="black", linewidth=0.8)
            axes.set_xscale("log", base=2)
            axes.set_xticks(doses, [f"{dose:g}" for dose in doses], fontsize=9)
            axes.minorticks_off()
            axes.set_title(name, fontsize=13, loc="left")
            axes.set_xlabel("dose")
            _plain(axes)
        panels[0][0].set_ylabel("gain, positions of 100")
        panels[0][0].legend(frameon=False, fontsize=9, loc="upper left")
        figure.tight_layout()
        return inline_svg(figure, "Gain in presence of the concept against dose, one panel a method")


def frontier_chart(report: dict[str, Any], gain: str) -> str:
    """Gain against fluency loss, a line through the doses of each method; the budget's end is marked."""
    bound, largest = report["bound"], 0.0
    with drawing() as plt:
        figure, axes = plt.subplots(figsize=(6.4, 4.6))
        for number, (name, one) in enumerate(report["methods"].items()):
            x = [dose["fluency_loss"]["mean"] for dose in one["doses"]]
            _line(axes, x, [dose[gain] for dose in one["doses"]], number, name)
            largest = max(largest, *x)
        axes.axvline(bound, color="black", linewidth=1, linestyle=":")
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xlim(right=min(max(largest, bound), 4 * bound) * 1.05)
        axes.set_xlabel(f"fluency loss, nats a token (dotted: the budget's end, {bound:g})")
        axes.set_ylabel(f"gain {BY[gain]},\npositions of 100")
        axes.legend(frameon=False, fontsize=10)
        _plain(axes)
        figure.tight_layout()
        return inline_svg(figure, f"Gain {BY[gain]} against fluency loss, a line a method")


def leak_chart(report: dict[str, Any]) -> str:
    """How far other concepts move, against gain by the SAE; the noise floor is a line."""
    with drawing() as plt:
        figure, axes = plt.subplots(figsize=(6.4, 4.6))
        for number, (name, one) in enumerate(report["methods"].items()):
            if name == "none":
                axes.axhline(one["doses"][0]["leak"]["mean"], color="black", linewidth=1, linestyle=":")
                continue
            x = [100 * dose["presence"]["mean"] for dose in one["doses"]]
            y = [dose["leak"]["mean"] for dose in one["doses"]]
            axes.plot(x, y, color=_colour(number), marker=MARKS[number % len(MARKS)], linewidth=1.8, label=name)
        axes.set_xlabel("gain by the teacher's SAE, positions of 100")
        axes.set_ylabel("leak: others' movement,\nshare of what they are (dotted: noise)")
        axes.legend(frameon=False, fontsize=10)
        _plain(axes)
        figure.tight_layout()
        return inline_svg(figure, "Movement of all other concepts against gain of the wanted one")


def _band(axes: Any, x: list[float], curve: list[dict[str, Any]], colour: str, mark: str, label: str) -> None:
    axes.plot(
        x, [100 * one["mean"] for one in curve], color=colour, marker=mark, linewidth=2, markersize=5, label=label
    )
    low, high = ([100 * one[end] for one in curve] for end in ("low", "high"))
    axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)


def _line(axes: Any, x: list[float], curve: list[dict[str, Any]], number: int, label: str) -> None:
    y = [100 * one["mean"] for one in curve]
    ends = [[100 * (one["mean"] - one["low"]) for one in curve], [100 * (one["high"] - one["mean"]) for one in curve]]
    style = {"color": _colour(number), "marker": MARKS[number % len(MARKS)], "markersize": 6, "linewidth": 1.8}
    axes.errorbar(x, y, yerr=ends, elinewidth=1, label=label, **style)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _plain(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


COLUMNS = (
    "method",
    "area, SAE",
    "area, tokens",
    "area, next",
    "best dose",
    "gain, SAE",
    "gain, tokens",
    "gain, next",
    "nats lost",
    "distinct-2",
    "repeated-4",
    "leak",
)
TERMINAL = {
    "method": "method",
    "area, SAE": "area, SAE",
    "area, tokens": "area, tokens",
    "area, next": "area, next",
    "best dose": "dose",
    "gain, SAE": "gain",
    "nats lost": "nats",
}
"""The columns that fit 80 characters, and their short headings there."""


def rows(report: dict[str, Any]) -> list[list[str]]:
    """The table's cells, one list a method, in the order of `COLUMNS`."""
    return [[name, *_cells(one)] for name, one in report["methods"].items()]


def _cells(one: dict[str, Any]) -> list[str]:
    areas = [between(one["area"][gain]) for gain in GAINS]
    at = next((dose for dose in one["doses"] if dose["dose"] == one["best"]), None)
    if at is None:
        return [*areas, *["–"] * (len(COLUMNS) - 1 - len(areas))]
    gains = [between(at[gain]) for gain in GAINS]
    rest = [f"{at[figure]['mean']:.2f}" for figure in ("distinct2", "repeated4", "leak")]
    return [*areas, f"{at['dose']:g}", *gains, f"{at['fluency_loss']['mean']:+.2f}", *rest]


def legend(report: dict[str, Any]) -> str:
    """What the columns of gains are."""
    subjects = {one["subject"]: one["unsteered"] for one in report["methods"].values()}
    base = "; ".join(
        f"{subject}: " + ", ".join(f"{percent(found[gain])} {BY[gain]}" for gain in GAINS)
        for subject, found in subjects.items()
    )
    return (
        "Gains are generated positions of 100 that carry the concept, more than unsteered, with 95 % intervals: SAE, by"
        " the teacher's SAE; tokens, by tokens that distinguish the concept; next, by tokens that distinguish what"
        " follows it. area: mean of the best gain over all fluency budgets from 0 to"
        f" {report['bound']:g} nat a token. best dose: the one of the largest gain by the SAE within that budget, and"
        f" what it does. Unsteered text has it at, of 100 positions, {base}."
    )


def costs_legend(report: dict[str, Any]) -> str:
    """What the columns of costs are."""
    floor = report["methods"].get("none")
    leak = "" if floor is None else f"; {floor['doses'][0]['leak']['mean']:.2f} for a second unsteered sample"
    return (
        "nats lost: a token, under the independent model. distinct-2: different pairs of tokens, as a share of all in a"
        " text. repeated-4: share of 4-grams that came before in their text. leak: how far all other concepts move, as"
        f" a share of what they are{leak}."
    )


def steering_table(report: dict[str, Any]) -> Group:
    """Table, legend and headline for a terminal."""
    table = Table(title=report["title"], title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column, heading in TERMINAL.items():
        table.add_column(heading, justify="left" if column == "method" else "right", no_wrap=True)
    for row in rows(report):
        cells: dict[str, str] = dict(zip(COLUMNS, row, strict=True))
        cells["gain, SAE"] = cells["gain, SAE"].partition(" ")[0]  # its interval is on the page
        table.add_row(*(Text(cells[column].replace(" to ", "–")) for column in TERMINAL))
    return Group(table, Text(legend(report), style="dim"), *(Text(one) for one in report["headline"]))


# `report.json` and `report.html` of a steering measurement; the page asks for nothing from outside.

EXAMPLES = 4
"""Concepts whose texts are shown: evenly spread over the chosen ones, of the first seed."""


def write_steering_report(report: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write both files into `folder`, atomically; returns the report with its sentences.

    Args:
        report: `summary` of the parts, and about the run.
    """
    complete = {"headline": headline(report), "caveats": caveats(report)} | report
    write_json(folder / "report.json", complete)
    environment = Environment(
        loader=PackageLoader("cocomix", "steering/study"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {"between": between, "percent": percent}
    page = environment.get_template("page.html.j2").render(
        report=complete,
        by=BY,
        columns=COLUMNS,
        rows=rows(report),
        legends=(legend(report), costs_legend(report)),
        doses=Markup(dose_charts(report)),
        frontiers=[Markup(frontier_chart(report, gain)) for gain in GAINS],
        leaks=Markup(leak_chart(report)),
        examples=examples(report),
        css=Markup((resources.files("cocomix.report") / "page.css").read_text(encoding="utf-8")),
    )
    write_text(folder / "report.html", page)
    return complete


def examples(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Texts to look at, chosen by place alone: EXAMPLES concepts, each with what every method made of one prompt."""
    shown = []
    for place in window_subset(len(report["concepts"]), EXAMPLES).tolist():
        texts = {name: one["examples"][place] for name, one in report["methods"].items() if one["examples"]}
        prompt = next((one["prompt"] for one in texts.values()), "")
        shown.append({"concept": report["concepts"][place], "prompt": prompt, "steered": texts})
    return shown

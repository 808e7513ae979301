"""`report.json` and `report.html` of a steering measurement; the page asks for nothing from outside."""

from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cocomix.evaluation.perplexity import window_subset
from cocomix.steering.study.charts import dose_charts, frontier_chart, leak_chart
from cocomix.steering.study.method_result import GAINS
from cocomix.steering.study.report import COLUMNS, costs_legend, legend, rows
from cocomix.steering.study.wording import BY, between, caveats, headline, percent
from cocomix.utils.files import write_json, write_text

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

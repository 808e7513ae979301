"""Pages: one template environment for all reports, and the pages of a run and of an autoencoder.

A page is one file that asks for nothing from outside: styles and charts are in it.
"""

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cocomix.report import formats
from cocomix.report.certificate import CERTIFICATE_COLUMNS, LEGEND, certificate_cells, certificate_rows, is_known
from cocomix.report.charts import AXES, COLOURS, curve_chart, density_chart
from cocomix.report.statistics import derive, headline
from cocomix.report.tables import student_columns, student_rows
from cocomix.utils.files import write_json, write_text

FILTERS = ("between", "clock", "count", "difference", "missing", "percent", "signed", "times")
"""Functions of `cocomix.report.formats` that templates use as filters."""


@cache
def environment() -> Environment:
    """The templates in `report/templates`; an undefined name is an error, and text is escaped."""
    templates = Environment(
        loader=PackageLoader("cocomix", "report/templates"), autoescape=True, undefined=StrictUndefined
    )
    templates.filters |= {name: getattr(formats, name) for name in FILTERS}
    templates.globals["certificate_columns"] = CERTIFICATE_COLUMNS
    templates.globals["certificate_legend"] = LEGEND
    templates.globals["css"] = Markup(
        (resources.files("cocomix.report") / "templates" / "page.css").read_text(encoding="utf-8")
    )
    return templates


def render(template: str, **context: Any) -> str:
    """The page that `template`, a file's name, makes of `context`; charts are given as `Markup`."""
    return environment().get_template(template).render(**context)


def write_report(results: dict[str, Any], folder: Path) -> None:
    """Write `report.json` (raw results and everything derived) and `report.html` into `folder`, atomically.

    Args:
        results: what `cocomix.pipeline.run.collect_results` returns.
    """
    derived, certificate = derive(results), certificate_rows(results["students"])
    if is_known(certificate):
        derived["certificate"] = certificate
    sentences = headline(results, derived)
    write_json(folder / "report.json", results | {"derived": derived, "headline": sentences})
    page = render(
        "demo.html.j2",
        results=results,
        derived=derived,
        headline=sentences,
        columns=student_columns(results),
        rows=student_rows(results),
        certificate=[certificate_cells(row) for row in certificate],
        colours=COLOURS,
        charts=[Markup(curve_chart(results["students"], axis)) for axis in AXES],
        config=yaml.safe_dump(results["config"], sort_keys=False, allow_unicode=True),
    )
    write_text(folder / "report.html", page)


def write_sae_page(figures: dict[str, Any], path: Path) -> None:
    """Write an autoencoder's quality, the figures of its stage, to `path` as one page."""
    chart = Markup(density_chart(figures["density"], figures["dead_share"], figures["measured_tokens"]))
    write_text(path, render("sae.html.j2", sae=figures, chart=chart))

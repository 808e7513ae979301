"""`report.json` and `report.html`: the second is one file that asks for nothing from outside."""

from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cocomix.report.charts import AXES, COLOURS, curve_chart
from cocomix.report.statistics import derive
from cocomix.report.tables import COLUMNS, rows
from cocomix.report.wording import headline
from cocomix.utils.files import write_json, write_text


def write_report(results: dict[str, Any], folder: Path) -> None:
    """Write `report.json` (raw results and everything derived) and `report.html` into `folder`, atomically.

    Args:
        results: what `cocomix.pipeline.results.collect_results` returns.
    """
    derived = derive(results)
    sentences = headline(results, derived)
    complete = results | {"derived": derived, "headline": sentences}
    write_json(folder / "report.json", complete)
    environment = Environment(loader=PackageLoader("cocomix", "report"), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"count": count, "clock": _clock}
    page = environment.get_template("page.html.j2").render(
        results=results,
        derived=derived,
        headline=sentences,
        columns=COLUMNS,
        rows=rows(results),
        colours=COLOURS,
        charts=[Markup(curve_chart(results["students"], axis)) for axis in AXES],
        config=yaml.safe_dump(results["config"], sort_keys=False, allow_unicode=True),
        css=Markup((resources.files("cocomix.report") / "page.css").read_text(encoding="utf-8")),
    )
    write_text(folder / "report.html", page)


def count(value: float | None) -> str:
    """`2751488` as `2.75M`."""
    if value is None:
        return "–"
    for size, suffix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"

"""The experiment's report: `report.json`, `report.html` (one file that asks for nothing), `variants.csv`, `claims.csv`.

The figures come from claims, best, tables; this module puts them on the page. Test perplexities are means over
seeds within a setting; over settings only losses are pooled.
"""

from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cocomix.experiments.best import AXES, best, main_variant, statement
from cocomix.experiments.charts import curve_names, curves, difference_bars, frontier_scatter
from cocomix.experiments.claims import judge_claims
from cocomix.experiments.comparisons import in_words
from cocomix.experiments.console import console_summary
from cocomix.experiments.tables import claims_csv, variant_rows, variants_csv
from cocomix.report.page import count
from cocomix.utils.files import write_json, write_text

__all__ = ["console_summary", "write_experiment_report"]

MARKS = {
    "reproduced": ("good", "✓"),
    "not reproduced": ("bad", "✗"),
    "undecided": ("open", "?"),
    "better": ("good", "↓"),
    "worse": ("bad", "↑"),
    "reference": ("open", "·"),
}
"""Class and sign of each verdict: colour never says it alone."""

CAPTIONS = {
    "bars": "Difference in test loss at equal tokens: bar and line are the mean and its 95 % interval, dots are seeds; "
    "blue is better, orange worse, grey undecided.",
    "frontier": "Test perplexity against training FLOPs, means over seeds. Squares on the line are the next-token "
    "students of several lengths: a variant below the line beats them at equal FLOPs.",
    "curves": "Validation perplexity while training, mean over seeds, without the first two fifths. The learning "
    "rate falls until a run ends, so points before its end understate what a shorter run would reach.",
}


def write_experiment_report(results: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the four files into `folder`, each whole or not at all.

    Args:
        results: the experiment's raw results.

    Returns:
        What `report.json` holds: the raw results with `claims` judged, and `variants`, `best`, `statement` added.
    """
    judged, ranked = judge_claims(results), best(results)
    complete = results | {
        "claims": judged,
        "variants": variant_rows(results),
        "best": ranked,
        "statement": statement(results, ranked),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", complete)
    write_text(folder / "variants.csv", variants_csv(complete["variants"]))
    write_text(folder / "claims.csv", claims_csv(judged))
    write_text(folder / "report.html", _page(results, complete))
    return complete


def _page(results: dict[str, Any], complete: dict[str, Any]) -> str:
    environment = Environment(
        loader=PackageLoader("cocomix", "experiments"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {"count": count, "words": in_words, "signed": _signed, "times": _times, "missing": _missing}
    return environment.get_template("experiment.html.j2").render(
        report=complete,
        axes=AXES,
        marks=MARKS,
        captions=CAPTIONS,
        main=main_variant(results),
        rows={name: _sorted_rows(name, complete) for name in results["settings"]},
        equal_cost={name: _equal_cost(ranked) for name, ranked in complete["best"].items()},
        pictures={name: _pictures(results, setting) for name, setting in results["settings"].items()},
        recipe=yaml.safe_dump(results["recipe"], sort_keys=False, allow_unicode=True),
        css=Markup((resources.files("cocomix.report") / "page.css").read_text(encoding="utf-8")),
    )


def _sorted_rows(setting: str, complete: dict[str, Any]) -> list[dict[str, Any]]:
    """The setting's variants, lowest test perplexity first."""
    return sorted(
        (row for row in complete["variants"] if row["setting"] == setting), key=lambda row: row["test_perplexity"]
    )


def _equal_cost(ranked: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Variant by variant what each ranking says of it, in the order of the one at equal tokens."""
    table: dict[str, dict[str, Any]] = {}
    for axis, entry in ranked.items():
        for row in entry["ranking"]:
            table.setdefault(row["variant"], {})[axis] = row
    return table


def _pictures(results: dict[str, Any], setting: dict[str, Any]) -> list[tuple[Markup, str]]:
    drawn = (
        (difference_bars(setting), "bars"),
        (frontier_scatter(setting, results["frontier"]), "frontier"),
        (curves(setting, curve_names(results, setting)), "curves"),
    )
    return [(Markup(svg), kind) for svg, kind in drawn if svg is not None]


def _missing(row: dict[str, Any]) -> str:
    """Why a cell has no figure, in a word or two; the whole reason is its tooltip."""
    return row.get("range") or "–"


def _signed(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:+.{digits}f}"


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}x"

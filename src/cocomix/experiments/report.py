"""The experiment's report: `report.json`, `report.html` (one file that asks for nothing), `variants.csv`, `claims.csv`.

The figures come from claims and comparisons; this module puts them on the page. Test perplexities are means over seeds
within a setting; over settings only losses are pooled.
"""

import csv
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from markupsafe import Markup
from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.text import Text

from cocomix.experiments.claims import judge_claims
from cocomix.experiments.comparisons import axes, best, main_variant, statement
from cocomix.experiments.contrasts import OUTCOMES, contrasts
from cocomix.experiments.predictor import prediction
from cocomix.experiments.scaling import scaling
from cocomix.report.certificate import VARIANTS, certificate_cells, certificate_rows, is_known
from cocomix.report.charts import MOST_CURVES, difference_bars, frontier_scatter, perplexity_curves
from cocomix.report.page import render
from cocomix.report.scaling_charts import gain_panels, loss_panels
from cocomix.report.statistics import compared, estimate, find_student, loss_pairs, same_perplexity
from cocomix.report.tables import EXPERIMENT_WIDTH, experiment_tables
from cocomix.utils.files import write_json, write_text

MARKS = {
    "reproduced": ("good", "✓"),
    "not reproduced": ("bad", "✗"),
    "undecided": ("open", "?"),
    "better": ("good", "↓"),
    "worse": ("bad", "↑"),
    "reference": ("open", "·"),
    "help": ("good", "✓"),
    "not the concepts": ("bad", "✗"),
    "no gain": ("bad", "✗"),
    "not measured": ("open", "?"),
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
        What `report.json` holds: the raw results with `claims` judged, and `variants`, `best`, `statement` added; where
        vectors were replaced also `certificate`, by setting.
    """
    judged, ranked = judge_claims(results), best(results)
    complete = results | {
        "claims": judged,
        "variants": variant_rows(results),
        "best": ranked,
        "statement": statement(results, ranked),
    }
    certificates = {name: certificate_rows(setting["students"]) for name, setting in results["settings"].items()}
    if any(map(is_known, certificates.values())):
        complete["certificate"] = certificates
    if rows := contrasts(results):
        complete["contrasts"] = rows
    if section := scaling(results):
        complete["scaling"] = section
    if section := prediction(results):
        complete["prediction"] = section
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", complete)
    write_text(folder / "variants.csv", variants_csv(complete["variants"]))
    write_text(folder / "claims.csv", claims_csv(judged))
    write_text(folder / "report.html", _page(results, complete))
    return complete


def console_summary(results: dict[str, Any]) -> RenderableType:
    """The nine claims with verdicts, then for each setting the best variant at equal tokens, FLOPs and wall clock.

    Args:
        results: the raw results, or what `write_experiment_report` returned.
    """
    complete = "statement" in results
    claims = results["claims"] if complete else judge_claims(results)
    ranked = results["best"] if complete else best(results)
    titled = [(results["settings"][name]["title"], rankings) for name, rankings in ranked.items()]
    tables = experiment_tables(results["title"], claims, titled, axes(results), main_variant(results))
    said = [row["words"] for row in (results.get("contrasts", []) if complete else contrasts(results))]
    return Constrain(Group(tables, *map(Text, said)), EXPERIMENT_WIDTH)


def curve_names(results: dict[str, Any], setting: dict[str, Any]) -> list[str]:
    """The variants whose curves are drawn: baseline, frontier, then those the claims name, in order."""
    claimed = [
        comparison[role]
        for claim in sorted(results["claims"], key=lambda claim: claim["id"])
        for comparison in claim.get("compare") or ()
        for role in ("better", "than")
    ]
    names = dict.fromkeys([setting["baseline"], *results["frontier"], *claimed])
    trained = {student["name"] for student in setting["students"]}
    return [name for name in names if name in trained][:MOST_CURVES]


def _page(results: dict[str, Any], complete: dict[str, Any]) -> str:
    return render(
        "experiment.html.j2",
        report=complete,
        axes=axes(results),
        marks=MARKS,
        captions=CAPTIONS,
        main=main_variant(results),
        certificates={
            name: [certificate_cells(row) for row in certificate_rows(setting["students"])]
            for name, setting in results["settings"].items()
        },
        contrasts=complete.get("contrasts", []),
        outcomes=OUTCOMES,
        predicted=complete.get("prediction") if results.get("predictor") else None,
        scaling=complete.get("scaling") if results.get("scaling") else None,
        scaling_pictures=_scaling_pictures(complete) if results.get("scaling") else [],
        rows={name: _sorted_rows(name, complete) for name in results["settings"]},
        equal_cost={name: _equal_cost(ranked) for name, ranked in complete["best"].items()},
        pictures={name: _pictures(results, setting) for name, setting in results["settings"].items()},
        recipe=yaml.safe_dump(results["recipe"], sort_keys=False, allow_unicode=True),
    )


def _scaling_pictures(complete: dict[str, Any]) -> list[Markup]:
    """Losses with their laws, and gains; nothing where no law was fitted."""
    section = complete["scaling"]
    return [] if section["refused"] else [Markup(loss_panels(section)), Markup(gain_panels(section))]


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
        (perplexity_curves(setting, curve_names(results, setting)), "curves"),
    )
    return [(Markup(svg), kind) for svg, kind in drawn if svg is not None]


LATER_FIGURES = (
    *("val_bits_per_byte", "test_bits_per_byte", "shared_label_flops", "shared_label_seconds"),
    *(f"channel_{variant}" for variant in VARIANTS),
)
"""Figures that evaluations of earlier versions do not have."""


def variant_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each setting and variant; what was not measured is None, and `LATER_FIGURES` that no run has are left
    out.

    Perplexities, tokens, FLOPs and seconds are means over seeds; `vs_baseline` is the paired difference in test loss
    (nats per token); `channel_...` is what validation loss loses with the vector replaced; `..._ratio` and
    `..._to_baseline` are multiples of the baseline's.
    """
    rows = [
        _row(name, setting, student)
        for name, setting in results["settings"].items()
        for student in setting["students"]
        if student["runs"]
    ]
    unknown = [figure for figure in LATER_FIGURES if all(row[figure] is None for row in rows)]
    return [{key: value for key, value in row.items() if key not in unknown} for row in rows]


def _row(name: str, setting: dict[str, Any], student: dict[str, Any]) -> dict[str, Any]:
    base, runs, timing = find_student(setting, setting["baseline"]), student["runs"], setting["timing"]
    other = None if base is None or base is student else base
    difference = compared(list(loss_pairs(setting, student["name"], base["name"]).values()) if other and base else [])
    reach = same_perplexity(student, other) if other else {}
    step, base_step = timing.get(student["name"]), timing.get(setting["baseline"])

    def average(figure: str) -> float | None:
        values = [run[figure] for run in runs if run.get(figure) is not None]
        return mean(values) if values else None

    certified = certificate_rows([student])
    replaced = {
        variant: found["difference"] if certified and (found := certified[0][variant]) else None for variant in VARIANTS
    }
    return {
        "setting": name,
        "variant": student["name"],
        "about": student.get("about") or "",
        "objective": student["objective"],
        "label_rule": student["label_rule"],
        "width": student["width"],
        "parameters": student["parameters"],
        "seeds": len(runs),
        "val_perplexity": average("val_perplexity"),
        "test_perplexity": average("test_perplexity"),
        "val_bits_per_byte": average("val_bits_per_byte"),
        "test_bits_per_byte": average("test_bits_per_byte"),
        "test_ci95": estimate([run["test_perplexity"] for run in runs])["ci95"],
        "vs_baseline": difference["difference"],
        "vs_baseline_ci95": difference["ci95"],
        "vs_baseline_verdict": difference["verdict"] if other else "reference",
        "recall": average("recall"),
        "recall_baseline": average("recall_baseline"),
        **{f"channel_{variant}": replaced[variant] for variant in VARIANTS},
        "tokens": average("tokens"),
        "flops": average("flops"),
        "label_flops": average("label_flops"),
        "seconds": average("seconds"),
        "label_seconds": average("label_seconds"),
        "shared_label_flops": average("shared_label_flops"),
        "shared_label_seconds": average("shared_label_seconds"),
        "seconds_per_step": step,
        "step_ratio": step / base_step if step and base_step else None,
        "flops_ratio": student["flops_per_token"] / base["flops_per_token"] if base else None,
        "tokens_to_baseline": reach.get("tokens"),
        "flops_to_baseline": reach.get("flops"),
        "seconds_to_baseline": reach.get("seconds"),
        "flops_to_baseline_with_labels": reach.get("flops_with_labels"),
        "seconds_to_baseline_with_labels": reach.get("seconds_with_labels"),
        "reached_baseline": reach.get("reached"),
    }


def variants_csv(rows: list[dict[str, Any]]) -> str:
    """The variants' table; an interval is two columns, what is missing an empty cell."""
    return _csv(map(_flat, rows))


def claims_csv(claims: list[dict[str, Any]]) -> str:
    """One line for each claim, without its parts."""
    return _csv(
        _flat({key: _TEXT.get(key, _same)(value) for key, value in claim.items() if key != "parts"}) for claim in claims
    )


def _same(value: Any) -> Any:
    return value


_TEXT: dict[str, Callable[[Any], Any]] = {"corpora": " ".join}


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if key.endswith("ci95"):
            flat[f"{key}_low"], flat[f"{key}_high"] = value or (None, None)
        else:
            flat[key] = value
    return flat


def _csv(rows: Iterable[dict[str, Any]]) -> str:
    rows, stream = list(rows), io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()

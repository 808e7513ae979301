"""The experiment's page and tables: complete, self-contained, escaped, and equal to the figures they come from."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cocomix.experiments.comparisons import main_variant
from cocomix.experiments.report import console_summary, curve_names, write_experiment_report
from cocomix.report.charts import MOST_CURVES
from tests.helpers.experiment_results import compare, experiment, setting, student


def small(seeds: int = 3, name: str = "<b>evil</b>$x$") -> dict[str, Any]:
    """Two settings; `name` is one of the variants, and the second setting lacks CoCoMix."""

    def losses(start: float, step: float = 0.01) -> dict[int, float]:
        return {seed: start + step * seed**2 for seed in range(seeds)}

    students = [
        student("ntp", losses(4.0, 0.0)),
        student("ntp_long", losses(3.5, 0.0), tokens=800, flops=8e9),
        student("cocomix", losses(3.9, 0.001), flops=6e9),
        student(name, losses(4.1), flops=9e9),
    ]
    scores = [
        {"seed": seed, "variant": "cocomix", "amplified": 0.3 + 0.01 * seed, "unsteered": 0.1, "control": 0.1}
        | {"perplexity_amplified": 9.0, "perplexity_unsteered": 8.0, "concepts": [{"concept": 1}]}
        for seed in range(seeds)
    ]
    claims = [
        compare(1, ("cocomix", "ntp"), settings=("a",)),
        compare(3, ("cocomix", name), settings=("a",)),
        {"id": 9, "compare": [], "steering": ["a"]},
    ]
    first = setting("First <i>", *students, timing={"ntp": 0.2, "cocomix": 0.3}, steering=scores)
    return experiment(claims, ("ntp", "ntp_long"), a=first, b=setting("Second", *students[:2]))


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_page_is_self_contained_and_escaped(tmp_path: Path, seeds: int) -> None:
    write_experiment_report(small(seeds), tmp_path / "new")
    page = (tmp_path / "new" / "report.html").read_text()
    assert "<script" not in page and "<b>evil" not in page and "&lt;b&gt;evil" in page and "First <i>" not in page
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)""", page.replace("xlink:href", "href"))
    assert "@import" not in page and "url(http" not in page and "prefers-color-scheme: dark" in page
    assert page.count("<svg") == 5 and "currentColor" in page and "#000000" not in page  # no bars in b
    assert page.count('class="claim"') == 9 and page.count("not run in this experiment") == 6
    assert "mathdefault" not in page
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {"report.html", "report.json", "variants.csv", "claims.csv"}


def test_report_json_is_the_raw_results_and_what_was_derived(tmp_path: Path) -> None:
    results = small()
    complete = write_experiment_report(results, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report == json.loads(json.dumps(complete))
    assert all(report[key] == json.loads(json.dumps(results[key])) for key in results if key != "claims")
    wanted = {"id", "statement", "holds_equal", "difference", "ci95", "seeds", "corpora", "verdict"}
    assert all(wanted <= set(claim) for claim in report["claims"]) and len(report["claims"]) == 9
    assert [claim["verdict"] for claim in report["claims"]].count("reproduced") == 3
    assert set(report["best"]["a"]) >= {"tokens", "flops", "flops_with_labels", "seconds"}
    assert len(report["statement"]) == 2 * len(report["best"]["a"])


def test_a_row_of_the_variants_by_hand(tmp_path: Path) -> None:
    rows = write_experiment_report(small(), tmp_path)["variants"]
    assert [(row["setting"], row["variant"]) for row in rows[:3]] == [("a", "ntp"), ("a", "ntp_long"), ("a", "cocomix")]
    assert len(rows) == 6
    base, row = rows[0], rows[2]
    assert row["vs_baseline"] == pytest.approx(-0.1 + 0.005 / 3) and row["vs_baseline_verdict"] == "better"
    assert row["flops_ratio"] == pytest.approx(1.5) and row["step_ratio"] == pytest.approx(1.5)
    assert row["label_flops"] == 1e9 and row["label_seconds"] == 4.0 and row["recall"] == pytest.approx(0.3)
    # Seed 0 is there at 3/4 of its tokens, the others 1/100 and 4/100 of a quarter later.
    assert row["tokens_to_baseline"] == pytest.approx(0.75 + 0.25 * 0.05 / 3, rel=1e-2)
    assert row["reached_baseline"] == 3
    assert base["vs_baseline"] is None and base["vs_baseline_verdict"] == "reference" and base["recall"] is None
    assert rows[1]["step_ratio"] is None


def test_the_csv_files_hold_the_same_figures(tmp_path: Path) -> None:
    complete = write_experiment_report(small(), tmp_path)
    with (tmp_path / "variants.csv").open(newline="") as stream:
        variants = list(csv.DictReader(stream))
    with (tmp_path / "claims.csv").open(newline="") as stream:
        claims = list(csv.DictReader(stream))
    assert [line["variant"] for line in variants] == [row["variant"] for row in complete["variants"]]
    low, high = complete["variants"][2]["vs_baseline_ci95"]
    assert (float(variants[2]["vs_baseline_ci95_low"]), float(variants[2]["vs_baseline_ci95_high"])) == (low, high)
    assert variants[0]["vs_baseline_ci95_low"] == "" and len(claims) == 9
    assert float(claims[0]["difference"]) == complete["claims"][0]["difference"] and claims[0]["corpora"] == "a"
    assert [line["verdict"] for line in claims] == [claim["verdict"] for claim in complete["claims"]]


def test_the_summary_fits_100_columns_from_raw_and_from_complete_results(tmp_path: Path) -> None:
    results = small(name="a_variant_with_a_name_of_some_length")
    texts = []
    for given in (results, write_experiment_report(results, tmp_path)):
        console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(console_summary(given))
        texts.append(console.export_text())
    assert texts[0] == texts[1] and max(map(len, texts[0].splitlines())) <= 100 and "…" not in texts[0]
    assert texts[0].count("reproduced") == 3 and texts[0].count("undecided") == 6
    line = next(line for line in texts[0].splitlines() if line.split()[:2] == ["equal", "tokens"])
    assert line.split()[2:4] == ["cocomix", "-0.098"]


def test_claim_1_names_cocomix_before_and_after_judging(tmp_path: Path) -> None:
    results = small(name="mixed")
    results["claims"][0] = compare(1, ("mixed", "ntp"), settings=("a",))
    assert main_variant(results) == main_variant(write_experiment_report(results, tmp_path)) == "mixed"
    assert main_variant(results | {"claims": []}) == "cocomix"


def test_at_most_eight_curves_baseline_and_frontier_first() -> None:
    names = [f"v{number}" for number in range(12)]
    here = setting("a", *(student(name, {0: 4.0}) for name in [*names, "ntp_long", "ntp"]))
    claims = [
        compare(2, ("v5", "v6"), settings=("a",)),
        compare(1, *((name, "ntp") for name in names), settings=("a",)),
    ]
    found = curve_names(experiment(claims, ("ntp_long", "absent"), a=here), here)
    assert found == ["ntp", "ntp_long", "v0", "v1", "v2", "v3", "v4", "v5"] and len(found) == MOST_CURVES

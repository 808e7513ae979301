"""The certificate's rows by hand; what was not measured is a dash, on every page."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cocomix.experiments.report import write_experiment_report
from cocomix.report import write_report
from cocomix.report.certificate import (
    CERTIFICATE_COLUMNS,
    certificate_cells,
    certificate_rows,
    certificate_table,
    is_known,
    reading,
)
from tests.helpers.experiment_results import experiment, setting, student
from tests.report.test_report import results as run_results

TITLE = "Does the channel matter?"


def measured(loss: float, zero: float, shuffled: float, half: float, labels: float | None = None) -> dict[str, Any]:
    def variant(difference: float | None) -> dict[str, Any] | None:
        if difference is None:
            return None
        ends = [difference - half, difference + half]
        return {"loss": loss + difference, "difference": difference, "ci95": ends}

    variants = {"zero": zero, "shuffled": shuffled, "mean": zero / 2, "labels": labels}
    return {
        "windows": 9,
        "tokens": 90,
        "loss": loss,
        "variants": {name: variant(value) for name, value in variants.items()},
    }


def students() -> list[dict[str, Any]]:
    made = [
        student("ntp", {0: 4.0, 1: 4.0}),
        student("concepts", {0: 3.0, 1: 3.2}, mixes_vector=True, controls={"hash": "other", "mlp": "gone"}),
        student("other", {0: 3.1, 1: 3.5, 2: 9.0}, mixes_vector=True, controls={}),
    ]
    for run, figures in zip(
        made[1]["runs"], (measured(2.9, 0.2, 0.1, 0.02), measured(3.1, 0.4, 0.3, 0.04)), strict=True
    ):
        run["channel"] = figures
    return made


def test_rows_by_hand() -> None:
    concepts, other = certificate_rows(students())
    assert (concepts["student"], concepts["seeds"], concepts["windows"]) == ("concepts", 2, 9)
    assert concepts["loss"] == pytest.approx(3.0) and concepts["labels"] is None and concepts["mlp"] is None
    assert concepts["zero"]["difference"] == pytest.approx(0.3)
    assert concepts["zero"]["ci95"] == pytest.approx([0.27, 0.33])  # the mean of the half widths
    assert concepts["hash"]["control"] == "other" and concepts["hash"]["n"] == 2
    assert concepts["hash"]["difference"] == pytest.approx((0.1 + 0.3) / 2)
    assert other["loss"] is None and other["zero"] is None and is_known([other, concepts]) and not is_known([other])
    cells = dict(zip(CERTIFICATE_COLUMNS, certificate_cells(concepts), strict=True))
    assert cells["zeroed"] == "+0.3000 ±\N{NO-BREAK SPACE}0.0300" and cells["labels'"] == cells["MLP"] == "–"
    assert certificate_cells(other)[1:] == ["–"] * (len(CERTIFICATE_COLUMNS) - 1)


@pytest.mark.parametrize(
    ("zero", "shuffled", "words"),
    [
        (0.01, 0.3, "no use seen"),
        (0.3, 0.01, "used, not for the text"),
        (0.5, 0.04, "used, hardly for the text"),
        (0.3, 0.04, "used for the text"),
    ],
)
def test_a_row_is_read_by_its_intervals(zero: float, shuffled: float, words: str) -> None:
    made = students()
    made[1]["runs"] = made[1]["runs"][:1]
    made[1]["runs"][0]["channel"] = measured(3.0, zero, shuffled, 0.02)
    assert reading(certificate_rows(made)[0]) == words


def test_a_run_shows_it_and_a_run_of_an_earlier_version_does_not_change(tmp_path: Path) -> None:
    old, new = run_results([50], [60]), run_results([50], [60])
    old["students"][1]["mixes_vector"] = True
    new["students"][1]["runs"][0]["channel"] = measured(3.0, 0.3, 0.1, 0.02, labels=-0.05)
    pages, reports = [], []
    for name, data in (("old", old), ("new", new)):
        (tmp_path / name).mkdir()
        write_report(data, tmp_path / name)
        pages.append((tmp_path / name / "report.html").read_text())
        reports.append(json.loads((tmp_path / name / "report.json").read_text()))
    assert all(TITLE in page for page in pages)
    assert (
        "+0.3000 ±\N{NO-BREAK SPACE}0.0200" not in pages[0]
        and "+0.3000 ±\N{NO-BREAK SPACE}0.0200" in pages[1]
        and "-0.0500 ±" in pages[1]
    )
    assert set(reports[0]["derived"]) == {"students", "baseline"}
    assert reports[1]["derived"]["certificate"][0]["labels"]["difference"] == -0.05
    plain = run_results([50], [60])
    write_report(plain, tmp_path)
    assert TITLE not in (tmp_path / "report.html").read_text()  # nobody mixes a vector in


def test_an_experiment_shows_it_setting_by_setting(tmp_path: Path) -> None:
    data = experiment([], ("ntp",), a=setting("First", *students()), b=setting("Second", student("ntp", {0: 4.0})))
    complete = write_experiment_report(data, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count(TITLE) == 1 and "+0.3000 ±\N{NO-BREAK SPACE}0.0300" in page
    assert [row["student"] for row in complete["certificate"]["a"]] == ["concepts", "other"]
    assert complete["certificate"]["b"] == []
    with (tmp_path / "variants.csv").open() as stream:
        rows = {(row["setting"], row["variant"]): row for row in csv.DictReader(stream)}
    assert float(rows["a", "concepts"]["channel_zero"]) == pytest.approx(0.3)
    assert rows["a", "ntp"]["channel_zero"] == "" and "channel_labels" not in rows["a", "ntp"]


def test_the_table_fits_a_terminal() -> None:
    console = Console(width=80, record=True)
    console.print(certificate_table("A run", certificate_rows(students())))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.split() == ["zeroed", "+0.3000", "±", "0.0300"] for line in lines)

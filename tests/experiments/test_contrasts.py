"""Contrasts with controls: every outcome and its sentence, the figures by hand, and the table on the page."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cocomix.experiments.config import ExperimentConfig
from cocomix.experiments.contrasts import OUTCOMES, contrasts
from cocomix.experiments.report import console_summary, write_experiment_report
from cocomix.utils.errors import CocomixError
from cocomix.utils.settings import validate
from tests.helpers.experiment_results import compare, experiment, setting, student

SPREAD = (0.0, 0.001, 0.003)


def results(ntp: float, variant: float, *controls: float, seeds: int = 3, second: float = 0.0) -> dict[str, Any]:
    """Two settings; every student's spread over seeds is its own, so that differences have one."""

    def at(loss: float, number: int) -> dict[int, float]:
        return {seed: loss + 0.1 * seed + SPREAD[(seed + number) % 3] for seed in range(seeds)}

    def students(shift: float) -> list[dict[str, Any]]:
        names = {"ntp": ntp, "cocomix": variant - shift} | {f"c{n}": loss for n, loss in enumerate(controls)}
        return [student(name, at(loss, number)) for number, (name, loss) in enumerate(names.items())]

    made = experiment([], a=setting("A", *students(0.0)), b=setting("B", *students(second)))
    names = [f"c{number}" for number in range(len(controls))]
    return made | {"controls": [{"variants": ["cocomix"], "controls": names, "settings": []}]}


@pytest.mark.parametrize(
    ("losses", "outcome", "words"),
    [
        ((4.0, 3.8, 3.9, 4.1), "help", "Concepts help in cocomix: it beats ntp (-0.2"),
        ((4.0, 3.8, 3.7, 4.1), "not the concepts", "cocomix beats ntp (-0.2"),
        ((4.0, 3.8, 3.8, 4.1), "undecided", "but not c0 beyond the spread of seeds"),
        ((4.0, 4.0, 3.9, 4.1), "not the concepts", "cocomix is not decided against ntp"),
        ((4.0, 4.2, 4.3, 4.1), "no gain", "cocomix is no better than ntp (+0.2"),
        ((4.0, 4.0, 4.1, 4.1), "undecided", "cocomix against ntp is undecided"),
    ],
)
def test_every_outcome_has_its_sentence(losses: tuple[float, ...], outcome: str, words: str) -> None:
    (row,) = contrasts(results(*losses))
    assert row["outcome"] == outcome and words in row["words"], row["words"]
    assert ("Concepts help" in row["words"]) == (outcome == "help") and outcome in OUTCOMES
    assert [part["than"] for part in row["parts"]] == ["ntp", "c0", "c1"] and row["settings"] == ["a", "b"]


def test_the_control_that_wins_is_named_with_its_figures() -> None:
    (row,) = contrasts(results(4.0, 3.8, 3.7, 4.1))
    part = row["parts"][1]
    assert part["difference"] == pytest.approx(0.1, abs=0.003) and part["n"] == 6
    assert f"c0, which holds no concept, does better than it (c0: {part['difference']:+.4f} [" in row["words"]


def test_one_setting_where_a_control_wins_is_enough() -> None:
    (row,) = contrasts(results(4.0, 3.8, 3.805, 4.1, second=-0.1))
    assert row["outcome"] == "not the concepts"
    assert row["parts"][1]["by_setting"]["a"]["difference"] < 0 < row["parts"][1]["by_setting"]["b"]["difference"]


def test_a_control_that_is_not_finished_says_nothing_of_concepts() -> None:
    here = results(4.0, 3.8, 3.9)
    here["controls"][0]["controls"].append("mlp")
    (row,) = contrasts(here)
    assert row["outcome"] == "not measured" and "since no seed of it and mlp is finished" in row["words"]
    (row,) = contrasts(results(4.0, 3.8, 3.9, seeds=1))
    assert row["outcome"] == "undecided"


def test_a_claim_names_controls_of_what_it_favours() -> None:
    here = results(4.0, 3.8, 3.9) | {"controls": []}
    assert contrasts(here) == []
    here["claims"] = [compare(1, ("cocomix", "ntp"), settings=("a",)) | {"controls": ["c0"]}]
    (row,) = contrasts(here)
    assert row["outcome"] == "help" and row["settings"] == ["a"] and [p["than"] for p in row["parts"]] == ["ntp", "c0"]


def test_the_page_shows_the_contrasts_first_and_as_a_table(tmp_path: Path) -> None:
    complete = write_experiment_report(results(4.0, 3.8, 3.7, 4.1), tmp_path)
    page = (tmp_path / "report.html").read_text()
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(console_summary(complete))
    assert "no concept, does better than it" in " ".join(console.export_text().split())
    assert page.count("which holds no concept, does better than it") == 2
    assert page.index("Concepts or not") < page.index("Concept variants less their controls")
    assert complete["contrasts"][0]["outcome"] == "not the concepts" and "✗</span> no gain that is the concepts" in page
    write_experiment_report(results(4.0, 3.8) | {"controls": []}, tmp_path)
    assert "less their controls" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    "group", [{"variants": ["absent"], "controls": ["ntp"]}, {"variants": ["ntp"], "controls": ["absent"]}]
)
def test_an_unknown_control_is_one_sentence(group: dict[str, Any]) -> None:
    raw = {"title": "t", "seeds": [0], "base": {}, "variants": {"ntp": {}}, "settings": {"a": {"title": "A"}}}
    with pytest.raises(CocomixError, match="`controls` asks for the variant 'absent', which does not exist"):
        validate(ExperimentConfig, raw | {"controls": [group]}, "the recipe")

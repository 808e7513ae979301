"""The tables of docs/performance.md are those of the committed reports."""

import json
from pathlib import Path

import pytest

from benchmarks.speed.performance_tables import PAGES, page

BENCH = Path(__file__).resolve().parents[2] / "results/bench"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_page_says_what_was_measured(path: Path) -> None:
    reports = [json.loads((BENCH / f"{name}.json").read_text()) for name in ("cpu-2core", "hot_spots")]
    text = path.read_text(encoding="utf-8")
    assert "<!-- end of ratios -->" in text
    assert page(text, *reports) == text


def test_all_keys_asked_for_were_measured() -> None:
    found = json.loads((BENCH / "cpu-2core.json").read_text())
    for name in (
        "step_vs_gpt2",
        "whole_step_vs_dense",
        "step_memory_vs_gpt2",
        "labelling_vs_dense",
        "labelling_bf16_vs_dense",
        "exact_vs_reference_rule",
        "generate_vs_gpt2",
        "sae_step_vs_saelens",
    ):
        assert {"value", "spread", "runs"} <= set(found[name])
        assert min(found[name]["runs"]) <= found[name]["value"] <= max(found[name]["runs"])


def test_newer_parts_cost_what_the_page_says() -> None:
    mixing, optimizers = (json.loads((BENCH / f"{name}.json").read_text()) for name in ("mixing", "optimizers"))
    rows = [mixing[f"{name}_vs_bare"] for name in ("residual", "scaled", "residual_scaled")]
    rows.append(optimizers["optimizers"]["muon"]["step_vs_adamw"])
    text = (BENCH.parents[1] / "docs/performance.md").read_text(encoding="utf-8")
    for row in rows:
        low, high = row["spread"]
        assert f"| {row['value']:.2f} | {low:.2f} to {high:.2f} | {len(row['runs'])} |" in text

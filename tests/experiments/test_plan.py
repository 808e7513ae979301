"""Plans: every figure against a hand count, a real model, or a real stage."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cocomix.experiments.config import ExperimentConfig
from cocomix.experiments.plan import plan, plan_table
from cocomix.labels.attribution import labelling_flops
from cocomix.model import ModelShape, build_plain
from cocomix.model.flops import model_flops, sae_training_flops
from cocomix.pipeline.run import Run
from cocomix.utils.errors import CocomixError
from cocomix.utils.settings import merge, validate
from tests.helpers.planned_recipes import GIB, SHAPE, TINY, experiment, gpt2_parameters, planned, rows


def test_lengths_and_flops(tmp_path: Path) -> None:
    setting = planned(tmp_path)
    found = rows(setting)
    assert found["ntp"]["parameters"] == gpt2_parameters(300, 16, 32, 3)
    assert found["ntp"]["steps"] == 100 and found["ntp"]["tokens"] == 100 * 8 * 16
    assert found["ntp_2x"]["steps"] == 200 and found["ntp_2x"]["flops"] == 2 * found["ntp"]["flops"]
    teacher = build_plain(ModelShape(**TINY["base"]["teacher"]["model"]), vocab_size=300, seq_len=16)
    ntp = build_plain(ModelShape(**SHAPE), vocab_size=300, seq_len=16)
    each = model_flops(ntp.config, 16).training
    assert found["ntp"]["flops_per_token"] == each and found["ntp"]["flops"] == each * 12_800 * 2
    assert found["kd"]["flops_per_token"] == each + model_flops(teacher.config, 16).forward
    assert found["kd_stored"]["flops_per_token"] == each
    # One pass over what the longest training reads: ntp_2x, 200 steps of 8 windows of 16 tokens.
    assert setting["corpus"] == {"train": 25_600, "val": 3200, "test": 3200, "basis": "assumed"}
    label = {
        rule: 25_600 * labelling_flops(teacher.config, n_latents=64, k=8, layer=1, rule=rule, seq_len=16)
        for rule in ("exact", "activation")
    }
    assert setting["shared"] == {
        "teacher": model_flops(teacher.config, 16).training * 20 * 8 * 16,
        "sae": sae_training_flops(teacher.config, 64, 8, 1, 16) * 10 * 8 * 16,
        "labels/exact": label["exact"],
        "labels/activation": label["activation"],
        "logits/top5": model_flops(teacher.config, 16).forward * 25_600,
    }
    assert setting["flops"] == pytest.approx(
        sum(row["flops"] for row in found.values()) + sum(setting["shared"].values())
    )
    assert planned(tmp_path, {"settings": {"one": {"seeds": [4]}}})["variants"][0]["flops"] == each * 12_800


def test_hours_only_from_a_given_peak(tmp_path: Path) -> None:
    whole = plan(experiment(), tmp_path)
    assert whole["hours"] is None and whole["assumption"] is None and whole["settings"]["one"]["hours"] is None
    whole = plan(experiment(), tmp_path, gpus=4, peak_tflops=100, utilisation=0.5)
    assert whole["hours"] == pytest.approx(whole["flops"] / (4 * 0.5 * 100e12 * 3600))
    assert "50%" in whole["assumption"] and "4 GPUs" in whole["assumption"]
    with pytest.raises(CocomixError, match="utilisation"):
        plan(experiment(), tmp_path, peak_tflops=100, utilisation=0)
    json.dumps(whole)


def test_plan_agrees_with_the_real_stages(tmp_path: Path) -> None:
    """After tokenising a real text: corpus measured, shards as planned, and students as the stages build them."""
    text = tmp_path / "text.jsonl"
    words = np.random.default_rng(0).integers(0, 500, (60, 80))
    text.write_text("\n".join(json.dumps({"text": " ".join(f"w{word}" for word in line)}) for line in words))
    base = {"base": {"corpus": {"source": "jsonl", "options": {"path": str(text)}}, "sae": {"n_latents": 300}}}
    folder = tmp_path / "runs"
    assert planned(folder, base)["corpus"]["basis"] == "assumed"
    run = Run(folder / "one", experiment(**base).run_config("one", folder))
    for stage in ("corpus", "tokens"):
        run.run_stage(stage)
    setting = planned(folder, base)
    counts = run.tokens.figures["tokens"]
    assert setting["corpus"] == counts | {"basis": "measured"}
    assert setting["vocab_size"] == run.tokens.figures["vocab_size"]
    assert setting["disk"]["tokens"] == sum(file.stat().st_size for file in run.tokens.folder.rglob("shard-*.bin"))
    found = rows(setting)
    for stage in run.students:
        if stage.seed == 0 and "teacher" not in stage.config.reads:
            objective = stage.objective()
            model: Any = objective.evaluated()
            assert found[stage.student]["parameters"] == model.num_parameters()
            assert found[stage.student]["width"] == model.config.hidden_size
            assert found[stage.student]["flops_per_token"] == objective.flops_per_token(16)
            assert found[stage.student]["steps"] == stage.train.total_steps(counts["train"] // 16)
    assert found["ntp_wide"]["width"] > found["ntp"]["width"]
    # A tokens stage made with other settings says nothing about this one.
    assert planned(folder, merge(base, {"base": {"tokens": {"vocab_size": 310}}}))["corpus"]["basis"] == "assumed"
    given = planned(folder, base, corpus_tokens=1000)["corpus"]
    assert given == {"train": 1000, "val": 125, "test": 125, "basis": "given"}


def test_settings_refer_to_earlier_ones(tmp_path: Path) -> None:
    shift = {
        "title": "shift",
        "overrides": {
            "tokens": {"tokenizer": "$one/tokens/tokenizer"},
            "teacher": {"pretrained": "$one/teacher/model"},
            "sae": {"pretrained": "$one/sae/model", "n_latents": 5, "k": 5},
        },
    }
    settings = plan(experiment(settings={"two": shift}), tmp_path)["settings"]
    one, two = rows(settings["one"]), rows(settings["two"])
    for name in ("ntp", "cocomix", "kd", "hidden"):
        assert two[name]["flops"] == one[name]["flops"] and two[name]["parameters"] == one[name]["parameters"]
    assert set(settings["one"]["shared"]) - set(settings["two"]["shared"]) == {"teacher", "sae"}
    swapped = experiment(settings={"two": shift}).model_dump()
    swapped["settings"] = {name: swapped["settings"][name] for name in ("two", "one")}
    with pytest.raises(CocomixError, match=r"setting 'two' asks for the earlier setting 'one'"):
        plan(validate(ExperimentConfig, swapped, "swapped"), tmp_path)


def test_published_models_from_a_table(tmp_path: Path) -> None:
    base = {"tokens": {"tokenizer": "gpt2"}, "teacher": {"pretrained": "openai-community/gpt2"}, "seq_len": 16}
    setting = planned(tmp_path, {"base": base})
    assert setting["vocab_size"] == 50257
    assert rows(setting)["kd"]["memory"]["kept_gib"] * GIB == 4 * gpt2_parameters(50257, 1024, 768, 12)
    unknown = planned(tmp_path, {"base": base | {"teacher": {"pretrained": "somebody/unheard-of"}}})
    found = rows(unknown)
    assert found["kd"]["flops"] is None and found["hidden"]["parameters"] is None
    assert found["cocomix"]["flops"] == rows(setting)["cocomix"]["flops"]
    assert unknown["shared"]["labels/exact"] is None and unknown["flops"] > 0
    assert any("somebody/unheard-of is not known" in note for note in unknown["notes"])
    assert any("leaves out: kd, hidden" in note for note in unknown["notes"])
    loaded = planned(tmp_path, {"base": base | {"sae": {"pretrained": "some.pt"}}})
    assert rows(loaded)["cocomix"]["parameters"] == rows(setting)["cocomix"]["parameters"]


def test_local_models_are_read(tmp_path: Path) -> None:
    """A folder with a config.json is enough; no weights are needed."""
    local = tmp_path / "teacher"
    build_plain(ModelShape(width=40, layers=2, heads=2), vocab_size=300, seq_len=16).config.save_pretrained(local)
    setting = planned(tmp_path, {"base": {"teacher": {"pretrained": str(local)}}})
    assert rows(setting)["kd"]["memory"]["kept_gib"] * GIB == 4 * gpt2_parameters(300, 16, 40, 2)


def test_too_little_known(tmp_path: Path) -> None:
    with pytest.raises(CocomixError, match=r"vocabulary of the tokenizer somebody/else .* a folder"):
        planned(tmp_path, {"base": {"tokens": {"tokenizer": "somebody/else"}}})
    epochs = {"steps": None, "epochs": 1.0}
    base = {name: {"train": epochs} for name in ("teacher", "sae")} | {"students_train": epochs}
    with pytest.raises(CocomixError, match=r"in epochs .* one:corpus and one:tokens first"):
        planned(tmp_path, {"base": base})
    setting = planned(tmp_path, {"base": base}, corpus_tokens=16 * 80)
    assert rows(setting)["ntp"]["steps"] == 10 and rows(setting)["ntp_2x"]["steps"] == 20


def test_known_corpora_cap_what_is_assumed(tmp_path: Path) -> None:
    corpus = {"source": "hf", "options": {"path": "Skylion007/openwebtext"}, "every": 2}
    setting = planned(tmp_path, {"base": {"corpus": corpus, "students_train": {"steps": 1_000_000_000}}})
    assert setting["corpus"]["train"] == round(9_040_017_095 / 2 * 0.8)
    assert any("nanoGPT" in note for note in setting["notes"])
    assert planned(tmp_path, {"base": {"corpus": corpus}})["corpus"]["train"] == 25_600


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_table_fits(tmp_path: Path, columns: int) -> None:
    file = tmp_path / "table.txt"
    with file.open("w") as stream:
        Console(width=columns, file=stream).print(plan_table(plan(experiment(), tmp_path, gpu_memory_gib=1e-6)))
    text = file.read_text()
    assert max(map(len, text.splitlines())) <= min(columns, 100)
    for name in [*TINY["variants"], "labels/exact", "!", "Note: the corpus has 25,600 training tokens"]:
        assert name in text
    assert "hours" not in text
    with file.open("w") as stream:
        Console(width=columns, file=stream).print(plan_table(plan(experiment(), tmp_path, peak_tflops=989.0)))
    assert "Assumed: 40% of 989 TFLOPS on each of 8 GPUs." in file.read_text() and "hours" in file.read_text()

"""Plain students as other programs expect them: equal logits, the names that converters look for."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, LlamaForCausalLM

from cocomix.model.build import ModelShape, build_plain
from cocomix.pipeline.config import load_config
from cocomix.pipeline.run import Run
from cocomix.pipeline.trained import existing_run, export_student, student_stage, write_plain
from cocomix.utils.errors import CocomixError
from tests.helpers.command import cocomix, refused

pytestmark = pytest.mark.slow
SHAPE = {"width": 32, "layers": 3, "heads": 2}


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(ids).logits


def test_an_exported_student_is_a_plain_gpt2(tiny: Path, tmp_path: Path) -> None:
    run, out = tiny / "runs" / "tiny", tmp_path / "out"
    done = cocomix("export", "-r", str(run), "--student", "ntp", "-o", str(out), cwd=tmp_path)
    assert str(out) in done.stdout
    stage = student_stage(existing_run(run), "ntp", 0)
    original, exported = stage.model(), AutoModelForCausalLM.from_pretrained(out)
    assert type(exported) is GPT2LMHeadModel and exported.config.activation_function == "gelu_new"
    text = "Fellow citizens of the Senate, 1799 — «we» must"
    ids = AutoTokenizer.from_pretrained(out)(text, return_tensors="pt").input_ids
    assert ids.tolist() == [stage.tokens.tokenizer().encode(text)]
    torch.testing.assert_close(logits(exported, ids), logits(original, ids), atol=1e-5, rtol=0)
    assert {"vocab.json", "merges.txt", "tokenizer.json", "model.safetensors"} <= {path.name for path in out.iterdir()}
    again = ("export", "-r", str(run), "--student", "ntp", "-o", str(out))
    refused(cocomix(*again, cwd=tmp_path, check=False), "is not empty")
    with pytest.raises(CocomixError, match=r"has a predictor \(concepts\) .* export a plain student \(ntp, ntp_wide\)"):
        export_student(existing_run(run), "cocomix", 0, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("backbone", "kind"), [("gpt2", GPT2LMHeadModel), ("llama", LlamaForCausalLM)])
def test_both_families(tiny: Path, tmp_path: Path, backbone: str, kind: type) -> None:
    tokenizer = student_stage(existing_run(tiny / "runs" / "tiny"), "ntp", 0).tokens.tokenizer()
    torch.manual_seed(0)
    shape = ModelShape(backbone=backbone, width=32, layers=3, heads=4)
    model = build_plain(shape, vocab_size=len(tokenizer), seq_len=32)
    ids = torch.randint(0, len(tokenizer), (2, 32))
    expected = logits(model, ids)
    write_plain(model, tokenizer, tmp_path / "out")
    exported = kind.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(exported, ids), expected, atol=1e-5, rtol=0)
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    arch = {"gpt2": gguf.MODEL_ARCH.GPT2, "llama": gguf.MODEL_ARCH.LLAMA}[backbone]
    names = gguf.get_tensor_name_map(arch, shape.layers)
    from safetensors import safe_open

    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as weights:
        known = {name: names.get_name(name, try_suffixes=(".weight", ".bias")) for name in weights.keys()}  # noqa: SIM118
    assert len(known) > 20 and None not in known.values()


def test_a_student_whose_channel_was_dropped_and_one_fine_tuned_are_plain(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny / "runs" / "tiny", tmp_path / "run")
    short = {"length": 0.05}
    dropped = {"objective": "dropped", "model": SHAPE, "labels": "exact", "concept": {"concept_layer": 1}, **short}
    tuned = {"objective": "finetune", "trains": "lora", "concept_layer": 1, **short}
    given = [f"students.{name}={json.dumps(each)}" for name, each in (("dropped", dropped), ("tuned", tuned))]
    run = Run(tmp_path / "run", load_config(tmp_path / "run" / "config.yaml", given))
    for name in ("dropped", "tuned"):
        run.run_stage(f"students/{name}/seed0")
        export_student(run, name, 0, tmp_path / name)
        exported, stage = AutoModelForCausalLM.from_pretrained(tmp_path / name), student_stage(run, name, 0)
        assert type(exported) is GPT2LMHeadModel
        ids = torch.arange(24).view(2, 12)
        torch.testing.assert_close(logits(exported, ids), logits(stage.model(), ids), atol=1e-5, rtol=1e-5)
    with pytest.raises(CocomixError, match=r"export a plain student \(dropped, ntp, ntp_wide, tuned\)"):
        export_student(run, "cocomix", 0, tmp_path / "other")

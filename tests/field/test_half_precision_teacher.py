"""A checkpoint in half precision: fp32 runs it in float32, and what was run is what the record says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cocomix.data.shards import write_shards
from cocomix.evaluation.perplexity import perplexity
from cocomix.labels import attribute, select_labels
from cocomix.model import load_causal_lm
from cocomix.model.loading import as_run
from cocomix.sae import TopKSAE


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.dtype]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("half")
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).to(request.param).save_pretrained(folder)
    return folder, request.param


def test_fp32_is_float32(saved: tuple[Path, torch.dtype]) -> None:
    folder, _ = saved
    loaded = load_causal_lm(folder, "the teacher")
    assert as_run(loaded) == {"dtype": "float32", "attention": "sdpa", "positions": 64, "eos_token_id": 2}
    sae, ids = TopKSAE(64, 256, 8), torch.randint(0, 512, (4, 32), generator=torch.Generator().manual_seed(1))
    wide = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    chosen = [
        select_labels(attribute(model, sae, ids, layer=1, rule="exact", sign="absolute"), 4).ids
        for model in (loaded, wide)
    ]
    assert torch.equal(*chosen)


def test_bf16_keeps_bfloat16_weights_and_never_half_ones(saved: tuple[Path, torch.dtype]) -> None:
    folder, dtype = saved
    kept = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32  # float16 overflows where bfloat16 does not
    assert load_causal_lm(folder, "the teacher", precision="bf16").dtype == kept
    assert load_causal_lm(folder, "the teacher", precision="saved").dtype == dtype  # what a copy is made from


def test_perplexity_in_fp32_is_that_of_float32(saved: tuple[Path, torch.dtype], tmp_path: Path) -> None:
    folder, _ = saved
    documents = [np.random.default_rng(0).integers(0, 512, 200).tolist()]
    shards = write_shards(tmp_path, iter(documents), vocab_size=512, eos_id=0, shard_tokens=1000)
    measured = perplexity(load_causal_lm(folder, "m"), shards, seq_len=32, batch_size=4)["loss"]
    wide = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = perplexity(wide, shards, seq_len=32, batch_size=4)["loss"]
    narrow = perplexity(LlamaForCausalLM.from_pretrained(folder).eval(), shards, seq_len=32, batch_size=4)["loss"]
    assert measured == expected != narrow


def test_a_config_that_names_no_dtype_is_no_obstacle(saved: tuple[Path, torch.dtype], tmp_path: Path) -> None:
    folder, _ = saved
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config.pop("dtype", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_causal_lm(tmp_path, "the teacher").dtype == torch.float32
    assert load_causal_lm(tmp_path, "the teacher", precision="bf16").dtype == torch.float32

"""Gemma 3 as a teacher: a tokenizer with one token more than the model has rows, and the multimodal models."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    PreTrainedModel,
)

import cocomix
from cocomix.data import train_tokenizer
from cocomix.labels import attribute, labelling_flops
from cocomix.pipeline.config import load_config
from cocomix.pipeline.run import Run
from cocomix.sae import TopKSAE
from cocomix.utils.errors import CocomixError

RECIPE = Path(cocomix.__file__).parent / "recipes" / "tiny.yaml"
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 128,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
TEXT = "the road and the ship are counted, said he. " + "".join(map(chr, range(33, 500)))
IMAGE = "<image_soft_token>"


def text_model(rows: int) -> PreTrainedModel:
    return Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, vocab_size=rows))


def multimodal(rows: int) -> PreTrainedModel:
    text: Any = {**SHAPE, "vocab_size": rows}
    return Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4, image_token_index=rows - 1)
    )


def run_with(folder: Path, model: PreTrainedModel, tokenizer: Any, *more: str) -> Run:
    model.save_pretrained(folder / "gemma")
    tokenizer.save_pretrained(folder / "gemma")
    overrides = ["corpus.every=60", "corpus.val_fraction=0.3", "corpus.test_fraction=0.3", *more]
    overrides += [f"{key}={folder / 'gemma'}" for key in ("teacher.pretrained", "tokens.tokenizer")]
    run = Run(folder / "run", load_config(RECIPE, overrides))
    run.run_stage("corpus")
    run.run_stage("tokens")
    return run


def test_a_token_that_no_text_has_needs_no_row(tmp_path: Path) -> None:
    tokenizer = train_tokenizer([TEXT] * 30, 400, tmp_path / "tokenizer")
    model = text_model(len(tokenizer))
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    run = run_with(tmp_path, model, tokenizer)
    figures = run.run_stage("teacher")
    assert run.tokens.figures["vocab_size"] == len(tokenizer) == model.config.vocab_size + 1
    assert figures["saved_dtype"] == "float32" and "width 32" in figures["description"]


def test_a_token_in_the_text_without_a_row_is_named(tmp_path: Path) -> None:
    tokenizer = train_tokenizer([TEXT] * 30, 400, tmp_path / "tokenizer")
    model = text_model(len(tokenizer) - 1)  # the tokenizer's last token occurs
    run = run_with(tmp_path, model, tokenizer)
    largest = max(run.tokens.shards(split).largest_id() for split in ("train", "val", "test"))
    if largest < len(tokenizer) - 1:
        pytest.skip("the last token does not occur")
    with pytest.raises(CocomixError, match=f"has {largest} rows for tokens and the text has the token {largest}"):
        run.run_stage("teacher")


def test_the_text_model_of_a_multimodal_one_is_the_teacher(tmp_path: Path) -> None:
    tokenizer = train_tokenizer([TEXT] * 30, 400, tmp_path / "tokenizer")
    run = run_with(tmp_path, multimodal(len(tokenizer)), tokenizer)
    figures = run.run_stage("teacher")
    assert "gemma3, 3 layers, width 32" in figures["description"] and run.teacher.width == 32
    teacher, sae = run.teacher.model(), TopKSAE(32, 64, 4)
    ids = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    scores = attribute(teacher, sae, ids, layer=1, rule="exact")
    # The same weights as a text model: Gemma 3 from 1B down is one.
    plain = text_model(len(tokenizer)).eval()
    plain.model.load_state_dict(teacher.model.language_model.state_dict())  # pyright: ignore
    plain.tie_weights()
    assert torch.equal(scores, attribute(plain, sae, ids, layer=1, rule="exact")) and scores.abs().max() > 0
    flops = [labelling_flops(m.config, n_latents=64, k=4, layer=1, rule="exact", seq_len=64) for m in (teacher, plain)]
    assert flops[0] == flops[1] > 0

"""Sliding windows against one forward pass a token, and `cocomix perplexity` on shards and text."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix.data import TokenShards, load_tokenizer, train_tokenizer, write_shards
from cocomix.evaluation.perplexity import measure_perplexity, perplexity, strided_perplexity
from cocomix.utils.errors import CocomixError

TEXT = "The house gave way, and the long road went over the hill to the river. "


def gpt2(vocab: int = 50) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocab, n_positions=16, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5, eos_token_id=0
    )
    return GPT2LMHeadModel(config).eval()


def shards(folder: Path, tokens: int) -> TokenShards:
    ids = np.random.default_rng(0).integers(1, 50, tokens - 1)
    return write_shards(folder, [ids], vocab_size=50, eos_id=0, shard_tokens=7)


@pytest.mark.parametrize(
    ("tokens", "seq_len", "stride", "batch_size"),
    [(45, 16, 4, 3), (45, 16, 15, 1), (45, 16, 1, 8), (16, 16, 5, 2), (9, 16, 5, 2), (17, 16, 5, 4)],
)
def test_each_token_is_scored_once_with_the_windows_context(
    tmp_path: Path, tokens: int, seq_len: int, stride: int, batch_size: int
) -> None:
    model, data = gpt2().double(), shards(tmp_path / "s", tokens)
    stream, losses, end = data.span(0, tokens).tolist(), [], seq_len
    for place in range(1, tokens):
        while place >= end:  # the first window that holds it
            end = min(end + stride, tokens)
        begin = max(0, end - seq_len)
        with torch.no_grad():
            logits = model(torch.tensor([stream[begin:place]])).logits[0, -1]
        losses.append(-F.log_softmax(logits, -1)[stream[place]].item())
    figures = strided_perplexity(model, data, seq_len=seq_len, stride=stride, batch_size=batch_size)
    assert figures["tokens"] == tokens - 1 == len(losses)
    assert figures["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))


@pytest.mark.parametrize("stride", [0, 16, 17])
def test_a_stride_without_context_is_refused(tmp_path: Path, stride: int) -> None:
    with pytest.raises(CocomixError, match="choose 1 to 15"):
        strided_perplexity(gpt2(), shards(tmp_path / "s", 40), seq_len=16, stride=stride, batch_size=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    train_tokenizer([TEXT], 280, folder)
    gpt2(280).save_pretrained(folder)
    return folder


def measure(model: Path, text: Path, **options: object) -> dict:
    defaults = {"seq_len": None, "stride": None, "batch_size": 4, "max_windows": None, "precision": "fp32"}
    return measure_perplexity(str(model), text, **(defaults | {"field": "text"} | options))  # pyright: ignore


def test_text_jsonl_folder_and_shards_agree(model: Path, tmp_path: Path) -> None:
    texts = [TEXT * 3, TEXT.upper() * 2]
    tokenizer = load_tokenizer(str(model))
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    expected = perplexity(
        gpt2(280),
        write_shards(tmp_path / "shards", ids, vocab_size=len(tokenizer), eos_id=0),
        seq_len=16,
        batch_size=4,
    )
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "texts" / f"[{number}].txt").write_text(text)
    (tmp_path / "texts" / "0.txt.bak").write_text("not this")
    for text, options in (("shards", {}), ("a.jsonl", {"field": "body"}), ("texts", {})):
        figures = measure(model, tmp_path / text, **options)
        assert figures["loss"] == pytest.approx(expected["loss"], rel=1e-6) and figures["seq_len"] == 16
    single = measure(model, tmp_path / "texts" / "[0].txt", stride=5)
    assert single["tokens"] == len(ids[0]) and single["stride"] == 5


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("nowhere", {}, "there is no .*nowhere"),
        ("s", {"seq_len": 17}, "16 positions, fewer than --seq-len 17"),
        ("s", {"precision": "fp8"}, "no precision 'fp8'"),
        ("s", {"stride": 3, "max_windows": 2}, "leave one out"),
        ("s", {"stride": 16}, "choose 1 to 15"),
        ("big", {}, "vocabulary of 999"),
        ("empty", {}, "holds no text"),
    ],
)
def test_bad_input_is_one_sentence(model: Path, tmp_path: Path, text: str, options: dict, words: str) -> None:
    shards(tmp_path / "s", 40)
    write_shards(tmp_path / "big", [[1, 2, 998] * 10], vocab_size=999, eos_id=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CocomixError, match=words):
        measure(model, tmp_path / text, **options)


def test_a_larger_vocabulary_is_no_obstacle_where_all_tokens_have_rows(model: Path, tmp_path: Path) -> None:
    for name, size in (("same", 280), ("larger", 999)):
        write_shards(tmp_path / name, [[1, 2, 279] * 10], vocab_size=size, eos_id=0)
    assert measure(model, tmp_path / "larger") == measure(model, tmp_path / "same")

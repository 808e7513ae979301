"""Perplexity, recall and FLOPs against their definitions and PyTorch's own counter."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from cocomix import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.data import TokenShards, write_shards
from cocomix.evaluation import channel_certificate, concept_recall, perplexity
from cocomix.labels import LabelStore, attribute_active, labelling_flops
from cocomix.model import model_flops
from cocomix.sae import TopKSAE
from cocomix.utils.errors import CocomixError


def shards(folder: Path) -> TokenShards:
    rng = np.random.default_rng(0)
    return write_shards(folder, [rng.integers(1, 50, 45) for _ in range(3)], vocab_size=50, eos_id=0)


def gpt2(layers: int = 2) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=layers, n_head=2, initializer_range=0.5)
    ).eval()


def llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


def student(backbone: str = "gpt2", **settings) -> CoCoMixForCausalLM:
    torch.manual_seed(0)
    config = CoCoMixConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2 if backbone == "llama" else None,
        max_position_embeddings=16,
        backbone=backbone,
        concept_layer=1,
        num_concepts=12,
        concept_top_k=3,
        **settings,
    )
    return CoCoMixForCausalLM(config).eval()


def test_perplexity_equals_a_loop_in_float64(tmp_path: Path) -> None:
    model, data = gpt2().double(), shards(tmp_path / "s")
    losses = []
    for window in data.windows(np.arange(data.n_windows(16)), 16):
        for t in range(15):
            logits = model(torch.tensor(window[: t + 1])[None]).logits[0, -1]
            losses.append(-F.log_softmax(logits, -1)[window[t + 1]].item())
    figures = perplexity(model, data, seq_len=16, batch_size=3)
    assert figures["tokens"] == len(losses)
    assert figures["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-6)
    assert perplexity(model, data, seq_len=16, batch_size=3, max_windows=2)["tokens"] == 30


def test_a_split_shorter_than_a_window_has_no_perplexity(tmp_path: Path) -> None:
    with pytest.raises(CocomixError, match="fewer tokens than one window of 500"):
        perplexity(gpt2(), shards(tmp_path / "s"), seq_len=500, batch_size=3)


def labelled(folder: Path, n: int, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Random labels of `n` windows of 16 tokens, also written to `folder`: ids `[n, 16, 2]`, valid `[n, 16]`."""
    rng = np.random.default_rng(1)
    ids = np.stack([rng.permutation(12)[:2] for _ in range(n * 16)]).reshape(n, 16, 2)
    valid = rng.random((n, 16)) > 0.4
    store = LabelStore.create(folder, n_tokens=n_tokens, seq_len=16, n_labels=2, n_latents=12, lineage={})
    store.write(0, ids, np.ones(ids.shape), valid)
    store.finish()
    return ids, valid


def measured(home: Path, *, sharded: bool) -> dict[str, dict[str, Any]]:
    """Perplexity, recall and certificate over the 8 windows in `home`, two at a time; the first call writes these."""
    exists = (home / "s").exists()
    torch.manual_seed(0)
    data = TokenShards.open(home / "s") if exists else shards(home / "s")
    if not exists:
        labelled(home / "l", data.n_windows(16), data.n_tokens)
    options = {"seq_len": 16, "batch_size": 2, "sharded": sharded}
    model = student()
    return {
        "perplexity": perplexity(model, data, **options),
        "recall": concept_recall(model, data, LabelStore.open(home / "l"), **options),
        "certificate": channel_certificate(model, data, labels=LabelStore.open(home / "l"), **options),
    }


def test_recall_equals_a_loop(tmp_path: Path) -> None:
    model, data = student(), shards(tmp_path / "s")
    n = data.n_windows(16)
    ids, valid = labelled(tmp_path / "l", n, data.n_tokens)
    hits = n_labels = 0
    for w, window in enumerate(data.windows(np.arange(n), 16)):
        logits = model(torch.tensor(window)[None]).concept_logits[0]
        for t in range(16):
            if valid[w, t]:
                best = set(logits[t].argsort(descending=True)[:2].tolist())
                hits += len(best & set(ids[w, t].tolist()))
                n_labels += 2
    figures = concept_recall(model, data, LabelStore.open(tmp_path / "l"), seq_len=16, batch_size=2)
    assert figures["recall"] == pytest.approx(hits / n_labels) and figures["positions"] == n_labels // 2
    counts = np.bincount(ids[valid].ravel(), minlength=12)
    assert figures["baseline"] == pytest.approx(np.sort(counts)[-2:].sum() / n_labels)


MIXED = {
    "interleave": {},
    "interleave-llama": {"backbone": "llama"},
    "add": {"mixer": "add"},
    "gated_add": {"mixer": "gated_add"},
    "keys_values": {"mixer": "keys_values"},
    "keys_values-llama": {"mixer": "keys_values", "backbone": "llama"},
    "every": {"mixer": "every", "mixer_options": {"every": 4}},
    "drop_tokens": {"mixer": "drop_tokens", "mixer_options": {"blocks": 1}},
    "none": {"mixer": "none"},
    "pause": {"channel": "pause"},
    "mlp": {"channel": "mlp"},
    "hidden": {"channel": "hidden", "channel_options": {"target_size": 24}},
    "ncp": {"channel": "ncp", "mixer": "add", "channel_options": {"chunk": 4, "segments": 2, "codes": 8, "layers": 2}},
}
MODELS = {"gpt2": gpt2, "llama": llama} | {name: partial(student, **settings) for name, settings in MIXED.items()}


@pytest.mark.parametrize("name", MODELS)
def test_flops_equal_pytorchs_counter(name: str) -> None:
    model = MODELS[name]()
    ids = torch.zeros(2, 16, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(ids, use_cache=False)
    expected = counter.get_total_flops() / ids.numel()
    if name in MIXED and "channel" not in MIXED[name] and name != "none":
        expected += 2 * 3 * 16  # the gather of K rows, which the counter does not see
    if name == "ncp":  # codes are chosen in training alone, once a chunk, and predicted for every chunk
        expected += 2 * 8 * 16 / 4
    assert model_flops(model.config, 16).forward == pytest.approx(
        expected, rel=1e-3
    )  # some versions build rotary tables by a product


class NoModules:
    """Stands in for the counter's module tracker, whose hooks cannot live with torch.autograd.grad."""

    parents = frozenset({"Global"})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


@pytest.mark.parametrize("rule", ["activation", "reference", "exact"])
def test_labelling_flops_are_near_pytorchs_counter(rule: str) -> None:
    model, sae = gpt2(layers=4), TopKSAE(16, 64, 4)
    ids = torch.zeros(2, 16, dtype=torch.long)
    attribute_active(model, sae, ids[:, :2], layer=1, rule=rule)  # a model is tried out once before its first pass
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = NoModules()
    with counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        attribute_active(model, sae, ids, layer=1, rule=rule)
    measured = counter.get_total_flops() / ids.numel()
    counted = labelling_flops(model.config, n_latents=64, k=4, layer=1, rule=rule, seq_len=16)
    assert counted == pytest.approx(measured, rel=0.1)

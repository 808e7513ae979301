"""Bytes a plan gives, against hand counts, real files, and what autograd keeps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cocomix.data.shards import write_shards
from cocomix.experiments.plan_memory import shard_bytes, store_bytes, token_activations
from cocomix.labels import LabelStore
from cocomix.model import ModelShape, Sizes, build_mixed, build_plain
from cocomix.objectives import ConceptConfig
from tests.helpers.planned_recipes import GIB, SHAPE, gpt2_parameters, planned, rows


@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize(("n_ids", "itemsize"), [(65_535, 2), (65_536, 4)])
def test_label_bytes_are_the_stores(tmp_path: Path, n_ids: int, itemsize: int, scores: bool) -> None:
    """1030 tokens are 64 windows of 16 and a rest; ids, and fp32 scores if they are kept."""
    LabelStore.create(
        tmp_path / "store", n_tokens=1030, seq_len=16, n_labels=3, n_latents=n_ids, lineage={}, scores=scores
    )
    written = sum(file.stat().st_size for file in (tmp_path / "store").glob("*.bin"))
    expected = 64 * 16 * 3 * (itemsize + (4 if scores else 0))
    assert store_bytes(1030, 16, 3, n_ids, scores=scores) == written == expected


@pytest.mark.parametrize(("vocab_size", "itemsize"), [(65_536, 2), (65_537, 4)])
def test_shard_bytes_are_the_shards(tmp_path: Path, vocab_size: int, itemsize: int) -> None:
    shards = write_shards(tmp_path / "shards", [range(100), range(7)], vocab_size=vocab_size, eos_id=0, shard_tokens=50)
    written = sum(file.stat().st_size for file in (tmp_path / "shards").glob("*.bin"))
    assert shard_bytes(shards.n_tokens, vocab_size) == written == 109 * itemsize


def test_disk(tmp_path: Path) -> None:
    setting = planned(tmp_path)
    disk, found = setting["disk"], rows(setting)
    a_split = {split: store_bytes(setting["corpus"][split], 16, 3, 64, scores=False) for split in ("train", "val")}
    assert disk["tokens"] == 2 * (25_600 + 3200 + 3200)
    assert disk["labels/exact"] == 2 * sum(a_split.values()) and disk["labels/activation"] == sum(a_split.values())
    assert "labels/unused" not in disk and "labels/unused" not in setting["shared"]
    assert disk["logits/top5"] == 25_600 * 5 * 6
    assert disk["models"] == sum(4 * row["parameters"] * 2 for row in found.values())
    # Weights and two moments in fp32, two checkpoints; the bootstrap keeps its average and its autoencoder, too.
    ntp, cocomix = found["ntp"]["parameters"], found["cocomix"]["parameters"]
    autoencoder = 2 * 64 * 32 + 64 + 32
    assert found["ntp"]["checkpoint_bytes"] == 2 * 12 * ntp
    assert found["bootstrap"]["checkpoint_bytes"] == 2 * (12 * (cocomix + autoencoder) + 4 * cocomix)
    assert disk["checkpoints"] == found["bootstrap"]["checkpoint_bytes"]


def test_live_labels(tmp_path: Path) -> None:
    """Nothing on disk or made once; teacher and autoencoder stay in memory, passes are filled up to 3 windows."""
    stored = planned(tmp_path, gpus=2)
    live = planned(tmp_path, {"base": {"labels": {"exact": {"live": True, "batch_size": 3}}}}, gpus=2)
    assert "labels/exact" not in live["disk"] and "labels/exact" not in live["shared"]
    before, after = rows(stored)["cocomix"], rows(live)["cocomix"]
    each = stored["shared"]["labels/exact"] / (25_600 // 16 * 16)
    assert after["flops_per_token"] == pytest.approx(before["flops_per_token"] + each * 6 / 4)
    kept = gpt2_parameters(300, 16, 48, 4) + 2 * 64 * 48 + 64 + 48
    assert after["memory"]["kept_gib"] * GIB == before["memory"]["kept_gib"] * GIB + 4 * kept
    assert rows(live)["cocomix_act"] == rows(stored)["cocomix_act"]


def test_checkpoint_bytes_are_the_files(tmp_path: Path) -> None:
    """The formula against a checkpoint as the trainer writes it, weights and moments after one step."""
    model = build_plain(ModelShape(**SHAPE), vocab_size=300, seq_len=16)
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.arange(16)[None], labels=torch.arange(16)[None]).loss.backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    written = (tmp_path / "state.pt").stat().st_size
    assert 2 * written == pytest.approx(rows(planned(tmp_path))["ntp"]["checkpoint_bytes"], rel=0.15)


def test_memory(tmp_path: Path) -> None:
    """By hand: 2 GPUs share 8 windows, 4 each; 64 d bytes a slot and block; a chunk of logits,
    for distillation all of them thrice, twice as many.

    Of the last block's two slots one gives keys and values only: 24 d bytes.
    """
    train = {"base": {"students_train": {"micro_batch_size": 100}}}
    found = rows(planned(tmp_path, train, gpus=2))
    ntp, cocomix, kd = (found[name]["memory"] for name in ("ntp", "cocomix", "kd"))
    tokens, parameters = 4 * 16, found["ntp"]["parameters"]
    assert ntp["activations_gib"] * GIB == tokens * 3 * 64 * 32
    assert cocomix["activations_gib"] * GIB == tokens * ((1 + 2 * 2 - 1) * 64 + 24) * 32
    assert ntp["logits_gib"] * GIB == tokens * 300 * 4 and kd["logits_gib"] * GIB == tokens * 600 * 12
    assert cocomix["logits_gib"] * GIB == tokens * 300 * 4
    assert ntp["ddp_gib"] * GIB == pytest.approx(16 * parameters + tokens * (3 * 64 * 32 + 300 * 4))
    assert ntp["sharded_gib"] * GIB == pytest.approx(8 * parameters + tokens * (3 * 64 * 32 + 300 * 4))
    assert kd["kept_gib"] * GIB == 4 * gpt2_parameters(300, 16, 48, 4)
    small = {"base": {"students_train": {"micro_batch_size": 1, "precision": "bf16"}}}
    half = rows(planned(tmp_path, small, gpus=2))["ntp"]["memory"]
    assert half["activations_gib"] * GIB == 16 * 3 * 36 * 32 and half["logits_gib"] * GIB == 16 * 300 * (2 + 4)
    assert half["copies_gib"] * GIB == 2 * parameters and ntp["copies_gib"] == 0
    less = {"base": {"students_train": {"micro_batch_size": 1, "gradient_checkpointing": True}}}
    recomputed = rows(planned(tmp_path, less))["ntp"]["memory"]["activations_gib"]
    assert recomputed * GIB == 16 * (3 * 4 * 32 + 64 * 32)
    limit = (ntp["ddp_gib"] + ntp["sharded_gib"]) / 2
    tight = rows(planned(tmp_path, train, gpus=2, gpu_memory_gib=limit))["ntp"]["memory"]
    assert not tight["fits_ddp"] and tight["fits_sharded"] and ntp["fits_ddp"]


BLOCKS: dict[str, Callable[[int], Any]] = {
    "plain": lambda layers: build_plain(ModelShape(width=64, layers=layers, heads=2), vocab_size=32, seq_len=64)
} | {
    mixer: lambda layers, mixer=mixer: build_mixed(
        ModelShape(width=64, layers=layers, heads=2),
        ConceptConfig(concept_layer=2, mixer=mixer),
        Sizes(32, 64, 16, 4, 0, 0),
        num_concepts=16,
        concept_top_k=4,
    )
    for mixer in ("interleave", "keys_values", "every", "drop_tokens", "gated_add", "none")
}


@pytest.mark.parametrize("width", [4, 2], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", BLOCKS)
def test_activations_are_what_autograd_keeps(name: str, width: int) -> None:
    """Three blocks more keep as many bytes more as the model of a block's activations says."""
    kept, expected = [], []
    for layers in (4, 7):
        model = BLOCKS[name](layers).train()
        kept.append(_saved_bytes(model, width == 2))
        expected.append(token_activations(model, width) * 2 * 64)
    copies = 3 * 12 * 64**2 * 2 if width == 2 else 0  # the matrices in bf16; a plan counts them with the weights
    assert expected[1] - expected[0] == pytest.approx(kept[1] - kept[0] - copies, rel=0.03)


def _saved_bytes(model: Any, bf16: bool) -> int:
    """Bytes of all storages a forward pass keeps for the backward pass, without the parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            storages[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    ids = torch.randint(0, 32, (2, 64))
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16),
    ):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    assert loss.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())

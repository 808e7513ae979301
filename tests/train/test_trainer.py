"""Training: accumulation, schedule, lengths, and what is refused."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from cocomix import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.data import write_shards
from cocomix.labels import LabelStore
from cocomix.objectives import CoCoMixObjective
from cocomix.train.batches import BatchSource
from cocomix.train.config import TrainConfig
from cocomix.train.optimizer import parameter_groups
from cocomix.train.trainer import Trainer
from cocomix.utils.errors import CocomixError
from tests.helpers.small_training import CONFIG, objective, source, weights


def test_gradient_accumulation_equals_the_whole_batch(tmp_path: Path) -> None:
    results = []
    for micro in (None, 1, 3):
        made = objective().double()
        Trainer(
            made, source(tmp_path / "s"), CONFIG.model_copy(update={"micro_batch_size": micro}), tmp_path / str(micro)
        ).run()
        results.append(weights(made))
    for other in results[1:]:
        for name, tensor in results[0].items():
            assert (tensor - other[name]).abs().max() < 1e-6


def labelled_source(folder: Path) -> BatchSource:
    data = source(folder / "s")
    store = LabelStore.create(
        folder / "l", n_tokens=data.shards.n_tokens, seq_len=8, n_labels=2, n_latents=12, lineage={}
    )
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 12, (data.n_windows, 8, 2))
    valid = rng.random((data.n_windows, 8)) < rng.random((data.n_windows, 1))  # some windows have few labels
    store.write(0, ids, np.ones(ids.shape), valid)
    store.finish()
    return BatchSource(data.shards, 8, LabelStore.open(folder / "l"))


def test_accumulated_concept_losses_equal_the_whole_batch_however_labels_are_spread(tmp_path: Path) -> None:
    data, results = labelled_source(tmp_path), []
    for micro in (None, 1, 3):
        torch.manual_seed(0)
        config = CoCoMixConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=8,
            concept_layer=1, num_concepts=12, concept_top_k=3, concept_loss_weight=1.0,
        )  # fmt: skip
        made = CoCoMixObjective(CoCoMixForCausalLM(config).double())
        Trainer(made, data, CONFIG.model_copy(update={"micro_batch_size": micro}), tmp_path / str(micro)).run()
        results.append(weights(made))
    for other in results[1:]:
        for name, tensor in results[0].items():
            assert (tensor - other[name]).abs().max() < 1e-6, name


def test_an_infinite_loss_stops_with_a_sentence(tmp_path: Path) -> None:
    made = objective()
    made.model.transformer.wte.weight.data.fill_(float("nan"))
    with pytest.raises(CocomixError, match=r"the loss is nan by step 1 \(windows \d+, .*on_fault to skip"):
        Trainer(made, source(tmp_path / "s"), CONFIG, tmp_path / "a").run()


def test_a_module_without_gradient_checkpointing_says_so(tmp_path: Path) -> None:
    made = objective()
    made.trainable = lambda: torch.nn.Linear(2, 2)
    config = CONFIG.model_copy(update={"gradient_checkpointing": True})
    with pytest.raises(CocomixError, match="Linear has no gradient checkpointing"):
        Trainer(made, source(tmp_path / "s"), config, tmp_path / "a").run()


def test_schedule_warms_up_and_ends_at_a_tenth() -> None:
    config = TrainConfig(steps=100, learning_rate=2.0, warmup_fraction=0.1)
    rates = [config.learning_rate_at(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == rates[10] == pytest.approx(2.0)
    assert rates[-1] == pytest.approx(0.2)
    assert all(a < b for a, b in itertools.pairwise(rates[:10]))
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))


def test_lengths_and_groups() -> None:
    assert TrainConfig(epochs=2, batch_size=3).total_steps(10) == 6
    for wrong in ({}, {"epochs": 1, "steps": 2}):
        with pytest.raises(ValidationError, match="exactly one"):
            TrainConfig(**wrong)
    decayed, rest = parameter_groups(objective().trainable(), 0.1)
    assert all(p.ndim >= 2 for p in decayed["params"]) and all(p.ndim == 1 for p in rest["params"])
    assert decayed["weight_decay"] == 0.1 and rest["weight_decay"] == 0


def test_a_batch_that_cannot_be_filled_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path / "s", [[1, 2]], vocab_size=50, eos_id=0)
    with pytest.raises(CocomixError, match="fewer tokens than one window"):
        Trainer(objective(), source(tmp_path / "s"), CONFIG, tmp_path / "a")

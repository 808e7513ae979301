"""A small model, its data and its settings, for tests of the training loop."""

from pathlib import Path

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix.data import TokenShards, write_shards
from cocomix.objectives import NtpObjective, Objective
from cocomix.train.batches import BatchSource
from cocomix.train.config import TrainConfig
from cocomix.utils.distributed import on_main

CONFIG = TrainConfig(
    batch_size=4,
    steps=12,
    learning_rate=0.01,
    warmup_fraction=0.1,
    n_evals=3,
    checkpoint_seconds=1e9,
    seed=5,
)


def source(folder: Path) -> BatchSource:
    def write() -> None:
        if not (folder / "manifest.json").exists():
            rng = np.random.default_rng(0)
            documents = [rng.integers(1, 50, 40) for _ in range(12)]
            write_shards(folder, documents, vocab_size=50, eos_id=0, shard_tokens=100)

    on_main(write)
    return BatchSource(TokenShards.open(folder), 8)


def objective(dropout: float = 0.0) -> NtpObjective:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=50,
        n_positions=8,
        n_embd=16,
        n_layer=2,
        n_head=2,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
    )
    return NtpObjective(GPT2LMHeadModel(config))


def weights(made: Objective) -> dict[str, torch.Tensor]:
    """Whole weights, however the model is shared."""
    state = made.trainable().state_dict()
    return {name: t.full_tensor() if isinstance(t, DTensor) else t.clone() for name, t in state.items()}

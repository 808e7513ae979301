"""What the labelling tests share: a small concept model, autoencoder and corpus, and ways to label it."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix.data import TokenShards, write_shards
from cocomix.labels import ConceptLabeller, TopTokens
from cocomix.labels.labeller import label_split
from cocomix.sae import TopKSAE
from cocomix.utils.distributed import on_main
from tests.helpers.distributed_programs import launch, program

SIGNS = ("helpful", "absolute")
SEQ, K, BATCH, WINDOWS = 32, 4, 6, 700
BLOCK_WINDOWS = 256
"""Windows of 32 x 4 two-byte ids that fill a block of 64 KiB; scores fill it with half as many."""
SHARD_TOKENS = 400 * SEQ
"""Two shards, of two blocks each."""


def teacher() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=40, n_positions=SEQ, n_embd=8, n_layer=3, n_head=2, initializer_range=0.3,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval().requires_grad_(False)


def autoencoder() -> TopKSAE:
    torch.manual_seed(1)
    return TopKSAE(8, 30, 6).requires_grad_(False)


def labeller(**settings: Any) -> ConceptLabeller:
    given: dict[str, Any] = {"layer": 1, "rule": "exact", "signs": SIGNS, "k": K, "batch_size": BATCH} | settings
    return ConceptLabeller(teacher(), autoencoder(), **given)


def corpus(folder: Path, windows: int = WINDOWS) -> TokenShards:
    def write() -> None:
        if not (folder / "manifest.json").exists():
            rng = np.random.default_rng(0)
            documents = [rng.integers(1, 40, SEQ - 1) for _ in range(windows)]
            write_shards(folder, [*documents, rng.integers(1, 40, 5)], vocab_size=40, eos_id=0)

    on_main(write)
    return TokenShards.open(folder)


def label(home: Path, name: str, progress: Any = None, windows: int = WINDOWS, **options: Any) -> dict[str, Any]:
    """Label the corpus in `home/s` into `home/name`."""
    shards = corpus(home / "s", windows)
    given = {"seq_len": SEQ, "lineage": {"tokens": shards.fingerprint}, "shard_tokens": SHARD_TOKENS}
    return label_split(labeller(), shards, home / name, progress=progress, **(given | options))


def label_logits(home: Path, name: str) -> dict[str, Any]:
    """Store the teacher's likeliest tokens of the same corpus."""
    shards = corpus(home / "s")
    source = TopTokens(teacher(), k=K, vocab_size=40, batch_size=BATCH)
    return label_split(source, shards, home / name, seq_len=SEQ, lineage={}, scores=True, shard_tokens=SHARD_TOKENS)


def killed_at(batch: int, rank: int) -> Any:
    """Progress that kills process `rank` of the launch, as `kill -9` does, after `batch` batches."""

    def progress(step: int, _total: int, _metrics: dict[str, Any]) -> None:
        if step == batch and os.environ.get("RANK", "0") == str(rank):
            os.kill(os.getpid(), signal.SIGKILL)

    return progress


def contents(folder: Path) -> dict[str, bytes]:
    """Every data file below `folder`, by its name there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.bin"))}


def in_two_processes(home: Path, *lines: str) -> subprocess.CompletedProcess[str]:
    """Run `lines` in two gloo processes; `home` and the names of this module are known there."""
    body = "\n".join(["from tests.helpers.labeled_tokens import *", "torch.set_num_threads(1)", *lines])
    return launch(2, program(home, body), check=False)

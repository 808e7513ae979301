"""Synthetic models and data of a shape. Times depend on sizes, not on the values of weights or tokens."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.speed.shapes import Shape
from benchmarks.speed.workload import Setting
from cocomix.data.shards import write_shards
from cocomix.labels.store import LabelStore
from cocomix.model.build import build_plain
from cocomix.model.configuration_cocomix import CoCoMixConfig
from cocomix.sae.sae import TopKSAE
from cocomix.train.batches import BatchSource

WINDOWS_A_BATCH = 8
"""Windows in the synthetic corpus per window of a step; steps cycle through them."""


def student_config(shape: Shape, **changes: Any) -> CoCoMixConfig:
    """Return the student's configuration, with some fields changed."""
    return CoCoMixConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=max(shape.seq_len, shape.prompt + shape.new_tokens),
        concept_layer=shape.concept_layer,
        num_concepts=shape.concepts,
        concept_top_k=shape.top_k,
        **changes,
    )


def plain_gpt2(shape: Shape) -> PreTrainedModel:
    """Build Transformers' GPT-2 of the student's width and depth, with the fused GELU."""
    positions = max(shape.seq_len, shape.prompt + shape.new_tokens)
    return build_plain(shape.student, vocab_size=shape.vocab, seq_len=positions)


def concept_model(setting: Setting) -> PreTrainedModel:
    """Build the teacher in evaluation mode, with the same weights every time."""
    shape = setting.shape
    torch.manual_seed(setting.seed)
    model = build_plain(shape.teacher, vocab_size=shape.vocab, seq_len=shape.seq_len)
    return model.to(setting.device).eval()  # pyright: ignore[reportArgumentType]


def autoencoder(setting: Setting) -> TopKSAE:
    """Build the teacher's autoencoder, with the same weights every time."""
    torch.manual_seed(setting.seed + 1)
    sae = TopKSAE(setting.shape.teacher.width, setting.shape.concepts, setting.shape.top_k)
    return sae.to(setting.device).requires_grad_(False)


def token_windows(shape: Shape, windows: int, seed: int) -> torch.Tensor:
    """Return random tokens, int64 `[windows, seq_len]`."""
    return torch.randint(shape.vocab, (windows, shape.seq_len), generator=torch.Generator().manual_seed(seed))


class StoredData:
    """A corpus with labels on disk, as training reads it; the folder is deleted with the object.

    Attributes:
        batches: reads windows and labels.
        windows: number of windows.
    """

    def __init__(self, shape: Shape, seed: int) -> None:
        self._folder = TemporaryDirectory(prefix="cocomix-bench-")
        home, rng = Path(self._folder.name), np.random.default_rng(seed)
        self.windows = WINDOWS_A_BATCH * shape.batch
        size = (self.windows, shape.seq_len)
        documents = [row[1:] for row in rng.integers(1, shape.vocab, size)]  # each is followed by end-of-text
        shards = write_shards(home / "tokens", documents, vocab_size=shape.vocab, eos_id=0)
        generator_model = LabelStore.create(
            home / "labels",
            n_tokens=shards.n_tokens,
            seq_len=shape.seq_len,
            n_labels=shape.labels,
            n_latents=shape.concepts,
            lineage={},
        )
        valid = np.ones(size, dtype=bool)
        valid[:, -1] = False
        ids = rng.integers(0, shape.concepts, (*size, shape.labels))
        generator_model.write(0, ids, np.zeros(ids.shape, dtype=np.float32), valid)
        generator_model.finish()
        self.batches = BatchSource(shards, shape.seq_len, LabelStore.open(home / "labels"))

    def batch(self, number: int, size: int, device: torch.device) -> dict[str, torch.Tensor]:
        """Return batch `number` of `size` windows; numbers beyond the corpus wrap around."""
        return self.batches((number * size + np.arange(size)) % self.windows, device)

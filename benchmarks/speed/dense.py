"""The student as the reference computes it: plain, dense and whole.

Transformers' own GPT-2 blocks; all C concept logits kept; TopK as a C-wide vector that is almost all zeros, and its
product with the whole `[C, d_model]` matrix; K_attr cross entropies one after the other over the same logits; all
vocabulary logits at once. What it costs is what our fast paths are measured against; that both compute the same,
losses and every gradient, is shown in the tests.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from cocomix.model.build import ModelShape, build_plain
from cocomix.model.configuration_cocomix import CoCoMixConfig


class DenseStudent(nn.Module):
    """CoCoMix with GPT-2 blocks, interleaved; calling it with a batch returns the total loss, as `CoCoMixObjective`.

    Args:
        config: of the student it is the twin of.
    """

    def __init__(self, config: CoCoMixConfig) -> None:
        super().__init__()
        d, concepts = config.hidden_size, config.num_concepts
        shape = ModelShape(width=d, layers=config.num_hidden_layers, heads=config.num_attention_heads)
        self.gpt2: Any = build_plain(shape, vocab_size=config.vocab_size, seq_len=config.max_position_embeddings)
        self.split, self.k, self.weight = config.concept_layer, config.concept_top_k, config.concept_loss_weight
        self.pre_bias = nn.Parameter(torch.zeros(d))
        self.head = nn.Linear(d, concepts)
        self.compress = nn.Linear(concepts, d)
        for layer in (self.head, self.compress):
            nn.init.normal_(layer.weight, std=config.initializer_range)
            nn.init.zeros_(layer.bias)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Loss of `input_ids` int64 `[batch, seq]` with `concept_labels` int64 `[batch, seq, K_attr]`, a scalar."""
        ids, body = batch["input_ids"], self.gpt2.transformer
        hidden = body.wte(ids) + body.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in body.h[: self.split]:
            hidden = output_of(block(hidden))
        mean = hidden.mean(-1, keepdim=True)
        std = (hidden - mean).std(-1, keepdim=True)
        concept_logits = self.head((hidden - mean) / (std + 1e-5) - self.pre_bias)
        top = concept_logits.topk(self.k, dim=-1)
        sparse = torch.zeros_like(concept_logits).scatter(-1, top.indices, top.values)
        vector = (self.compress(sparse) + self.pre_bias) * std + mean
        slots = torch.stack((hidden, vector.to(hidden.dtype)), dim=2).flatten(1, 2)
        for block in body.h[self.split :]:
            slots = output_of(block(slots))
        logits = self.gpt2.lm_head(body.ln_f(slots[:, 1::2]))
        return next_token_loss(logits, ids) + self.weight * self._concept_loss(concept_logits, batch["concept_labels"])

    @staticmethod
    def _concept_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean over the labels' places of as many cross entropies; every position has all its labels or none."""
        flat = logits.flatten(0, 1)
        losses = [F.cross_entropy(wide(flat), labels[..., place].flatten()) for place in range(labels.shape[-1])]
        return torch.stack(losses).mean()


def next_token_loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross entropy of logits `[batch, seq, vocab]`, all of them at once; labels move, logits stay."""
    targets = F.pad(ids[:, 1:], (0, 1), value=-100)
    return F.cross_entropy(wide(logits).flatten(0, 1), targets.flatten())


def wide(logits: torch.Tensor) -> torch.Tensor:
    """`logits` in float32 or better."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def output_of(result: Any) -> torch.Tensor:
    """Hidden states a block returned; older Transformers return them in a tuple."""
    return result[0] if isinstance(result, tuple) else result

"""The reference implementation's arithmetic, written in the obvious way: plain and dense.

`DenseStudent` computes the training loss with Transformers' own GPT-2 blocks. It keeps all C concept logits, writes
TopK as a C-wide vector that is almost all zeros and multiplies it by the whole `[C, d_model]` matrix, computes K_attr
cross entropies over the same logits, and holds all vocabulary logits at once.

`dense_labels` runs the whole teacher forward and backward and forms products over all C concepts. The backward pass
computes the gradient of every weight down to the embedding, which nobody uses, and activations and attributions are C
wide although only K per position are not zero. The reconstruction is left out: the rule takes its gradient at the
original hidden states and never reads it, and with it the reference would be slower still.

The fast paths are measured against these. `tests/benchmarks/speed/test_dense.py` shows that both compute the same:
losses, every gradient, attributions and labels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from cocomix.model.build import ModelShape, build_plain
from cocomix.model.configuration_cocomix import CoCoMixConfig
from cocomix.model.teacher import check_layer
from cocomix.sae.sae import TopKSAE


class DenseStudent(nn.Module):
    """CoCoMix with GPT-2 blocks and interleaving; called with a batch it returns the total loss, as `CoCoMixObjective`.

    Args:
        config: configuration of the student it must match.
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
        """Return the total loss, a scalar.

        Args:
            batch: `input_ids` int64 `[batch, seq]` and `concept_labels` int64 `[batch, seq, K_attr]`.
        """
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
        """Return the mean of K_attr cross entropies, one per label column; a position has all its labels or none."""
        flat = logits.flatten(0, 1)
        losses = [F.cross_entropy(at_least_float32(flat), column.flatten()) for column in labels.unbind(-1)]
        return torch.stack(losses).mean()


def next_token_loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return the mean next-token cross entropy of `logits` `[batch, seq, vocab]`; only the targets are shifted."""
    targets = F.pad(ids[:, 1:], (0, 1), value=-100)
    return F.cross_entropy(at_least_float32(logits).flatten(0, 1), targets.flatten())


def at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    """Return `logits` in float32, or in float64 if they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def output_of(result: Any) -> torch.Tensor:
    """Return the hidden states from a block's output; older Transformers return a tuple."""
    return result[0] if isinstance(result, tuple) else result


def dense_attribution(teacher: PreTrainedModel, sae: TopKSAE, ids: torch.Tensor, layer: int) -> torch.Tensor:
    """Return c * (gradient of the mean loss) W_dec^T, `[batch, seq, C]`, as `attribute(..., rule="reference")` does.

    Args:
        teacher: the concept model; its weights take gradients, which are dropped afterwards.
        sae: a TopK autoencoder with ReLU and per-position normalisation.
        ids: int64 `[batch, seq]`.
        layer: block (0-based) after which the autoencoder reads.
    """
    hidden, gradient = _hidden_and_gradient(teacher, ids, layer)
    with torch.no_grad():
        mean = hidden.mean(-1, keepdim=True)
        normed = (hidden - mean) / ((hidden - mean).std(-1, keepdim=True) + 1e-5)
        pre = (normed - sae.pre_bias) @ sae.encoder_weight.T + sae.latent_bias
        top = pre.topk(sae.k, dim=-1)
        latents = torch.zeros_like(pre).scatter_(-1, top.indices, top.values.relu())
        return latents * (gradient @ sae.decoder_weight.T)


def dense_labels(teacher: PreTrainedModel, sae: TopKSAE, ids: torch.Tensor, layer: int, k: int) -> torch.Tensor:
    """Return the `k` concepts with the largest attribution, int64 `[batch, seq, k]`, best first."""
    return dense_attribution(teacher, sae, ids, layer).topk(k, dim=-1).indices


def _hidden_and_gradient(teacher: PreTrainedModel, ids: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    captured: list[torch.Tensor] = []

    def keep(_block: nn.Module, _inputs: Any, output: Any) -> None:
        hidden = output_of(output)
        hidden.retain_grad()
        captured.append(hidden)

    handle = check_layer(teacher, layer).register_forward_hook(keep)
    try:
        with torch.enable_grad():
            next_token_loss(teacher(input_ids=ids, use_cache=False).logits, ids).backward()
    finally:
        handle.remove()
    teacher.zero_grad(set_to_none=True)
    gradient = captured[0].grad
    assert gradient is not None
    return captured[0].detach(), gradient

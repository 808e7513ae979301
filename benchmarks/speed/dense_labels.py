"""Labelling as the reference computes it: the whole teacher forward and backward, and products over all C concepts.

The backward pass makes the gradient of every weight down to the embedding, which nobody uses; activations and
attribution are C wide although K of each position are not zero. The reconstruction is left out, since the rule
takes its gradient at the original hidden states and never looks at it; with it the reference would be slower still.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from benchmarks.speed.dense import next_token_loss, output_of
from cocomix.model.teacher import check_layer
from cocomix.sae.sae import TopKSAE


def dense_attribution(teacher: PreTrainedModel, sae: TopKSAE, ids: torch.Tensor, layer: int) -> torch.Tensor:
    """c * (gradient of the mean loss) W_dec^T, `[batch, seq, C]`; what `attribute(..., rule="reference")` computes.

    Args:
        teacher: the concept model; its weights take gradients, which are dropped again.
        sae: a TopK autoencoder with ReLU and per-position normalisation.
        ids: int64 `[batch, seq]`.
        layer: block (0-based) the autoencoder reads.
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
    """The `k` concepts with the largest attribution, int64 `[batch, seq, k]`, best first."""
    return dense_attribution(teacher, sae, ids, layer).topk(k, dim=-1).indices


def _hidden_and_gradient(teacher: PreTrainedModel, ids: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    caught: list[torch.Tensor] = []

    def keep(_block: nn.Module, _inputs: Any, output: Any) -> None:
        hidden = output_of(output)
        hidden.retain_grad()
        caught.append(hidden)

    handle = check_layer(teacher, layer).register_forward_hook(keep)
    try:
        with torch.enable_grad():
            next_token_loss(teacher(input_ids=ids, use_cache=False).logits, ids).backward()
    finally:
        handle.remove()
    teacher.zero_grad(set_to_none=True)
    gradient = caught[0].grad
    assert gradient is not None
    return caught[0].detach(), gradient

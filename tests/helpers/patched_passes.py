"""The exact rule's slow twin."""

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from cocomix.model import hidden_at
from cocomix.model.teacher import blocks, model_inputs
from cocomix.sae import TopKSAE


def patched_loop(
    model: PreTrainedModel, sae: TopKSAE, ids: torch.Tensor, layer: int, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """The definition, slowly: for each position a forward pass with its hidden state alone replaced by D(c[t])."""
    model.eval()
    hidden = hidden_at(model, ids, layer, mask).detach()
    out = torch.zeros(*ids.shape, sae.n_latents, dtype=hidden.dtype)
    for t in range(ids.shape[1] - 1):
        alive = torch.ones_like(ids[:, t]) if mask is None else mask[:, t] * mask[:, t + 1]
        c = sae.encode_dense(hidden).detach()[:, t].requires_grad_()
        _, mean, std = sae.preprocess(hidden[:, t])
        reconstruction = (c @ sae.decoder_weight + sae.pre_bias) * std + mean
        patched = torch.cat([hidden[:, :t], reconstruction[:, None], hidden[:, t + 1 :]], dim=1)

        def replace(_module, _inputs, output, patched=patched):
            return (patched, *output[1:]) if isinstance(output, tuple) else patched

        handle = blocks(model)[layer].register_forward_hook(replace)
        logits = model(**model_inputs(model, ids, mask)).logits
        handle.remove()
        loss = (F.cross_entropy(logits[:, t], ids[:, t + 1], reduction="none") * alive).sum()
        (gradient,) = torch.autograd.grad(loss, c)
        out[:, t] = (c * gradient).detach()
    return out

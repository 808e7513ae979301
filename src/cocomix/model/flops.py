"""FLOPs counted from a model's real shapes.

Two operations a multiply-accumulate. Attention is counted over the whole context, not halved for causality, as
`torch.utils.flop_counter` does. Norms, softmax and the sparse gather of the mixer's K rows (2 K d) are the only
things that differ from it: the gather is counted here. Training costs three forward passes, and a live teacher's
forward pass on top.
"""

from typing import Any, NamedTuple

from transformers import PretrainedConfig

from cocomix.model.mixers import MIXERS, BlockCost
from cocomix.model.predictors import PREDICTORS


class Flops(NamedTuple):
    """Operations per token."""

    forward: float
    """one forward pass"""
    training: float
    """forward and backward: three times forward"""


class ModelParts(NamedTuple):
    """Forward operations per token of a causal LM's parts."""

    block: float
    """one block, one slot a token"""
    attention: float
    """the part of `block` that grows with the context"""
    keys_values: float
    """the part of `block` that makes keys and values"""
    head: float
    """the LM head"""
    layers: int


def model_flops(config: PretrainedConfig, seq_len: int) -> Flops:
    """Operations per token of any supported model at context `seq_len`."""
    parts = model_parts(config, seq_len)
    forward = parts.layers * parts.block + parts.head
    if getattr(config, "concept_layer", None) is not None:
        forward = _cocomix_forward(config, parts)
    return Flops(forward, 3 * forward)


def _cocomix_forward(config: Any, parts: ModelParts) -> float:
    """Lower blocks, then what the channel and the mixer say that they cost, then the LM head."""

    mixer = MIXERS[config.mixer](config.hidden_size, **config.mixer_options)
    cost = BlockCost(parts.block - parts.attention, parts.attention, parts.keys_values)
    channel = PREDICTORS[config.channel].flops(config, cost, mixer.uses_vector)
    upper = mixer.upper_flops(config.num_hidden_layers - config.concept_layer, config.hidden_size, cost)
    return config.concept_layer * parts.block + channel + upper + parts.head


def hidden_flops(config: PretrainedConfig, seq_len: int, blocks: int | None = None) -> float:
    """Forward operations per token of the first `blocks` blocks (or all), without the LM head."""
    parts = model_parts(config, seq_len)
    return (parts.layers if blocks is None else blocks) * parts.block


def model_parts(config: Any, seq_len: int) -> ModelParts:
    """Forward operations per token of a causal LM's parts at context `seq_len`."""
    d, heads = config.hidden_size, config.num_attention_heads
    family = getattr(config, "backbone", None) or config.model_type
    gated = family not in {"gpt2", "gpt_neox", "opt", "gptj", "phi", "bloom", "falcon", "mpt"}
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or d // heads
    named = (getattr(config, name, None) for name in ("intermediate_size", "n_inner", "ffn_dim"))
    inner = next((size for size in named if size), 4 * d)
    projections = 2 * d * head_dim * (2 * heads + 2 * kv_heads)
    mlp = (3 if gated else 2) * 2 * d * inner
    attention = 2 * 2 * seq_len * heads * head_dim
    keys_values = 2 * d * head_dim * 2 * kv_heads
    head = 2 * d * config.vocab_size
    return ModelParts(projections + mlp + attention, attention, keys_values, head, config.num_hidden_layers)


def sae_training_flops(config: PretrainedConfig, n_latents: int, k: int, layer: int, seq_len: int) -> float:
    """Operations per token of SAE training: the model's forward pass up to `layer`, then three times the SAE's."""
    parts = model_parts(config, seq_len)
    return (layer + 1) * parts.block + 3 * (2 * n_latents * config.hidden_size + 2 * k * config.hidden_size)

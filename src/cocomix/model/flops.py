"""FLOPs of a model, computed from its shapes.

A multiply-accumulate counts as two operations. As in `torch.utils.flop_counter`, attention counts over the whole
context and is not halved for causality, and norms and softmax do not count. Unlike there, the sparse gather of the
mixer's K rows (2 K d) counts. Training costs three forward passes, plus the forward pass of a live teacher.
"""

from typing import Any, NamedTuple

from transformers import PretrainedConfig

from cocomix.model.mixers import MIXERS, BlockCost
from cocomix.model.predictors import PREDICTORS
from cocomix.model.text_config import first_set, text_config, text_shape


class Flops(NamedTuple):
    """FLOPs per token."""

    forward: float
    """one forward pass"""
    training: float
    """forward and backward pass: three times `forward`"""


class ModelParts(NamedTuple):
    """Forward FLOPs per token of the parts of a causal LM."""

    block: float
    """one block, with one slot per token"""
    attention: float
    """the part of `block` that grows with the context"""
    keys_values: float
    """the part of `block` that computes keys and values"""
    head: float
    """the LM head"""
    layers: int
    """number of blocks"""


def model_flops(config: PretrainedConfig, seq_len: int) -> Flops:
    """FLOPs per token of any supported model at context length `seq_len`."""
    parts = model_parts(config, seq_len)
    forward = parts.layers * parts.block + parts.head
    if getattr(config, "concept_layer", None) is not None:
        forward = _cocomix_forward(config, parts)
    return Flops(forward, 3 * forward)


def _cocomix_forward(config: Any, parts: ModelParts) -> float:
    """Forward FLOPs per token of a CoCoMix model: lower blocks, predictor, mixer with the upper blocks, LM head."""
    mixer = MIXERS[config.mixer](config.hidden_size, **config.mixer_options)
    cost = BlockCost(parts.block - parts.attention, parts.attention, parts.keys_values)
    predictor = PREDICTORS[config.channel].flops(config, cost, mixer.uses_vector)
    upper = mixer.upper_flops(config.num_hidden_layers - config.concept_layer, config.hidden_size, cost)
    return config.concept_layer * parts.block + predictor + upper + parts.head


class TrainedPart(NamedTuple):
    """What of a CoCoMix model is trained beside predictor and mixer, where the rest is frozen."""

    lora_rank: int | None = None
    """of the adapters on each linear layer of the blocks from concept_layer on; None: there are none"""


def partial_training_flops(config: Any, seq_len: int, part: TrainedPart) -> float:
    """FLOPs per training token of a CoCoMix model whose predictor, mixer and adapters alone are trained.

    | part | forward | backward |
    |---|---|---|
    | blocks below concept_layer | once | none: nothing there is trained |
    | concept head | once | its weights: once |
    | K rows of the vector, the mixer, adapters | once | twice |
    | frozen layers above, LM head | once | their inputs: once |
    | attention above | once | twice |

    One product more is counted than is made: the first trained block's inputs have no gradient where nothing is mixed.
    """
    parts = model_parts(config, seq_len)
    mixer = MIXERS[config.mixer](config.hidden_size, **config.mixer_options)
    cost = BlockCost(parts.block - parts.attention, parts.attention, parts.keys_values)
    upper, d = config.num_hidden_layers - config.concept_layer, config.hidden_size
    own = mixer.upper_flops(upper, d, BlockCost(0.0, 0.0, 0.0))
    adapted = BlockCost(0.0, 0.0, 0.0)
    if part.lora_rank is not None:
        qkv, sides = _sides(config)
        adapted = BlockCost(2 * part.lora_rank * sides, 0.0, 2 * part.lora_rank * sum(qkv))
        cost = cost._replace(keys_values=2.0 * qkv[0] * qkv[1])  # a layer with an adapter computes all its outputs
    with_backward = BlockCost(2 * cost.linear, 3 * cost.attention, 2 * cost.keys_values)
    above = mixer.upper_flops(upper, d, with_backward) + own  # its gate reads hidden states without a gradient
    predictor = 3 * PREDICTORS[config.channel].flops(config, cost, mixer.uses_vector)
    predictor -= PREDICTORS[config.channel].input_gradient_flops(config, mixer.uses_vector)
    adapters = 3 * (mixer.upper_flops(upper, d, adapted) - own)
    return config.concept_layer * parts.block + predictor + above + adapters + 2 * parts.head


def _sides(config: Any) -> tuple[tuple[int, int], int]:
    """Inputs and outputs of a block's first projection, and of all its linear layers added up."""
    d, head_dim = config.hidden_size, config.head_dim
    queries, keys = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    mlp = (3 if has_gated_mlp(config) else 2) * (d + config.intermediate_size)
    return (d, queries + 2 * keys), (d + queries + 2 * keys) + (queries + d) + mlp


def hidden_flops(config: PretrainedConfig, seq_len: int, blocks: int | None = None) -> float:
    """Forward FLOPs per token of the first `blocks` blocks (None: all), without the LM head."""
    parts = model_parts(config, seq_len)
    return (parts.layers if blocks is None else blocks) * parts.block


PLAIN_MLP = {"gpt2", "gpt_neox", "opt", "gptj", "phi", "bloom", "falcon", "mpt"}
"""Families whose MLP has two matrices; all others have a gate, too."""


def has_gated_mlp(config: Any) -> bool:
    """Whether the MLP of a model's family has three matrices (SwiGLU and its kind)."""
    return (getattr(config, "backbone", None) or config.model_type) not in PLAIN_MLP


def model_parts(config: Any, seq_len: int) -> ModelParts:
    """Forward FLOPs per token of the parts of a causal LM at context length `seq_len`.

    An estimate for families that are no plain transformers: a mixture of experts counts the experts that a token uses,
    a block without attention (Mamba, RWKV) four square projections and its MLP, and all blocks count like the first.
    """
    shape, config = text_shape(config), text_config(config)
    d, heads = shape.hidden_size, first_set(config, "heads")
    gated = has_gated_mlp(config)
    kv_heads = first_set(config, "kv_heads") or heads or 1
    head_dim = first_set(config, "head_dim") or d // (heads or 1)
    inner = first_set(config, "inner") or 4 * d
    if experts := first_set(config, "experts_per_token"):
        inner = experts * (first_set(config, "expert_inner") or inner)
    if heads is None:
        seq_len, heads = 0, 1
    projections = 2 * d * head_dim * (2 * heads + 2 * kv_heads)
    mlp = (3 if gated else 2) * 2 * d * inner
    attention = 2 * 2 * seq_len * heads * head_dim
    keys_values = 2 * d * head_dim * 2 * kv_heads
    head = 2 * d * shape.vocab_size
    return ModelParts(projections + mlp + attention, attention, keys_values, head, shape.layers)


def sae_training_flops(
    config: PretrainedConfig, n_latents: int, k: int, layer: int, seq_len: int, n_saes: int = 1
) -> float:
    """FLOPs per token of SAE training: the model's forward pass up to `layer`, and three forward passes of each SAE.

    Args:
        layer: the deepest one.
        n_saes: autoencoders trained on one pass.
    """
    parts, d = model_parts(config, seq_len), text_shape(config).hidden_size
    return (layer + 1) * parts.block + n_saes * 3 * (2 * n_latents * d + 2 * k * d)

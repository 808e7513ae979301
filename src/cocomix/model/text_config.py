"""What a model's configuration says of its text model: vocabulary, width, blocks, heads and positions.

Transformers has no one name for these, and a multimodal model keeps them in a part of its configuration (Gemma 3 from
4B up, Llama 4). Whoever needs one asks here: each has its known names in order, then a fallback or a refusal by name.
"""

from typing import Any, NamedTuple

from transformers import PretrainedConfig

from cocomix.utils.errors import CocomixError

NAMES: dict[str, tuple[str, ...]] = {
    "vocab_size": ("vocab_size", "n_vocab"),
    "hidden_size": ("hidden_size", "d_model", "n_embd", "dim_model", "dim"),
    # BART and its kind: `num_hidden_layers` stands for the encoder's there.
    "layers": ("decoder_layers", "num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "heads": ("decoder_attention_heads", "num_attention_heads", "n_head", "n_heads", "num_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "head_dim": ("head_dim",),
    "experts_per_token": ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"),
    "expert_inner": ("moe_intermediate_size", "expert_ffn_hidden_size"),
    "inner": ("decoder_ffn_dim", "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "dim_ff", "dff"),
    "positions": (
        "max_position_embeddings",
        "n_positions",
        "max_seq_len",
        "max_sequence_length",
        "max_target_positions",
        "n_ctx",
    ),
}
"""Attributes of configurations that hold a value, the first that is set wins."""


class TextShape(NamedTuple):
    """Sizes of a causal language model."""

    vocab_size: int
    """rows of its token embedding"""
    hidden_size: int
    """width d_model of the hidden states between its blocks"""
    layers: int
    """number of its blocks"""
    positions: int | None
    """longest text in tokens; None: it has no limit (Bloom, Mamba)"""


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """The part of a configuration that describes the text model: the configuration itself, unless it is multimodal."""
    own = (getattr(config, name, None) for name in ("num_hidden_layers", "n_layer"))
    if config.is_encoder_decoder and any(own):
        return config  # BART and its kind; Transformers would copy all of it
    return config.get_text_config(decoder=True)


def first_set(config: Any, value: str) -> int | None:
    """The first of the names of `value` (a key of `NAMES`) that is set to a positive number; None: there is none.

    Of a list with a number for each block (Gemma 3n, Nemotron) it is the largest.
    """
    for name in NAMES[value]:
        number = getattr(config, name, None)
        if isinstance(number, list) and number and all(isinstance(each, int) for each in number):
            number = max(number)
        if isinstance(number, int) and not isinstance(number, bool) and number > 0:
            return number
    return None


def text_shape(config: PretrainedConfig) -> TextShape:
    """The sizes of the model that `config` describes.

    Raises:
        CocomixError: it does not state a size that is needed; the message names the names tried.
    """
    text = text_config(config)
    return TextShape(
        _needed(text, "vocab_size"),
        _needed(text, "hidden_size"),
        _needed(text, "layers"),
        first_set(text, "positions"),
    )


def _needed(config: PretrainedConfig, value: str) -> int:
    number = first_set(config, value)
    if number is None:
        raise CocomixError(
            f"the configuration of the model type {config.model_type!r} states none of {', '.join(NAMES[value])}, and"
            " cocomix needs one of them; use another model"
        )
    return number

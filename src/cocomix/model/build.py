"""Settings of a model's shape and mixing, and the models built from them.

Plain next-token models are Transformers' own GPT-2 and Llama, so baselines do not depend on this package's model code.
CoCoMix models use the same widths, depths and initialisation scale. Dropout is zero everywhere.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cocomix.data.special_tokens import SpecialTokens
from cocomix.model.configuration_cocomix import CoCoMixConfig
from cocomix.model.initialisation import INITS
from cocomix.model.mixers import MIXERS
from cocomix.model.modeling_cocomix import CoCoMixForCausalLM
from cocomix.model.transformer import BACKBONES, SpecialIds
from cocomix.utils.errors import CocomixError
from cocomix.utils.settings import Section, added


class ModelShape(Section):
    """Shape of a transformer, for any backbone."""

    backbone: str = Field(default="gpt2", description=f"backbone family: {BACKBONES.names}")
    width: int = Field(default=128, ge=8, description="hidden size d_model")
    layers: int = Field(default=4, ge=1, description="number of blocks")
    heads: int = Field(default=4, ge=1, description="attention heads")
    kv_heads: int | None = Field(
        default=None, ge=1, description="key/value heads, if the backbone has grouped queries; empty: same as heads"
    )
    init: str = added(
        default="classic",
        description=f"how weights are drawn: {INITS.names} (standard deviation 0.02 throughout, or by the number of"
        " inputs)",
    )
    tie_head: bool = added(default=True, description="the LM head is the token embedding; false: weights of its own")
    logit_cap: float | None = added(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="soft-cap c of the next-token logits, c tanh(z / c), in training and use; a plain student is then"
        " saved as a cocomix model without concepts",
    )

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        backbone = BACKBONES.choose(self.backbone)
        INITS.choose(self.init)
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}; change one of them")
        if backbone.rotary_positions and self.width // self.heads % 2:
            raise ValueError(
                f"width {self.width} over heads {self.heads} gives an odd head width, which rotary positions"
                " cannot halve; change one of them"
            )
        if self.kv_heads is not None and (not backbone.grouped_queries or self.heads % self.kv_heads):
            grouped = ", ".join(name for name, family in BACKBONES.items() if family.grouped_queries)
            raise ValueError(
                f"kv_heads {self.kv_heads} needs the {grouped} backbone and must divide heads {self.heads}"
            )
        return self


class MixConfig(Section):
    """Where and how the predicted vector joins the hidden states."""

    concept_layer: int = Field(
        default=2, ge=1, description="block (0-based) before which the vector is predicted and mixed"
    )
    mixer: str = Field(default="interleave", description=f"how the vector joins the hidden states: {MIXERS.names}")
    mixer_options: dict[str, Any] = Field(
        default_factory=dict, description="the mixer's own settings, e.g. {slot: residual} or {every: 4}"
    )

    vector_scale: float | None = added(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="rms of the vector at the start, as a share of the hidden state's, e.g. 0.3, with a learned factor"
        " from then on; empty: as the reference has it",
    )

    @model_validator(mode="after")
    def _mixer_exists(self) -> Self:
        MIXERS.check(self.mixer, self.mixer_options)
        if self.vector_scale is not None and not MIXERS[self.mixer].uses_vector:
            raise ValueError(f"the mixer {self.mixer} uses no vector that `vector_scale` could scale; leave it out")
        return self


NO_IDS = SpecialIds(bos_token_id=None, eos_token_id=None, pad_token_id=None)


class Sizes(NamedTuple):
    """Sizes that a student takes from the other parts of a run."""

    vocab_size: int
    seq_len: int
    n_concepts: int
    """number of concepts C of the run's SAE"""
    top_k: int
    """active latents K of that SAE"""
    teacher_width: int
    sae_layer: int
    """block (0-based) of the teacher whose output the SAE reads"""
    special: SpecialIds = NO_IDS
    label_flops: float = 0.0
    """FLOPs per training token of computing its labels, if they are computed during training"""
    first_position: int = 0
    """first position of a window at which hidden states are targets; 1 after a beginning-of-text token"""
    prefixes: np.ndarray | None = None
    """for each token the longest other one that it begins with, int64 `[vocab_size]`, -100 where there is none"""
    base: Callable[[], PreTrainedModel] | None = None
    """loads the finished model that a student starts as, in float32"""
    base_name: str | None = None
    """what adapters call it"""
    sae: Callable[[], Any] | None = None
    """loads the run's SAE"""
    label_counts: Callable[[], np.ndarray] | None = None
    """counts how often each concept is among its training labels, int64 `[C]`"""
    directions: Callable[[str], torch.Tensor] | None = None
    """computes directions of one kind of the SAE's concepts in that finished model, `[C, d_model]`"""


def special_ids(tokenizer: PreTrainedTokenizerBase, special: SpecialTokens) -> SpecialIds:
    """The ids with which a model's `generate` stops, pads and starts: with what training had before a text."""
    pad: Any = tokenizer.pad_token_id
    return SpecialIds(bos_token_id=special.start_id, eos_token_id=special.eos_id, pad_token_id=pad)


def build_plain(
    shape: ModelShape, *, vocab_size: int, seq_len: int, special: SpecialIds | None = None
) -> PreTrainedModel:
    """Build Transformers' causal LM of this shape, initialised from torch's global generator.

    With a logit_cap, which GPT-2 and Llama have no place for, it is the same transformer as a `CoCoMixForCausalLM`.
    """
    if shape.logit_cap is not None:
        return _build_capped(shape, vocab_size, seq_len, special or NO_IDS)
    model = BACKBONES[shape.backbone].plain_model(shape, vocab_size, seq_len, special or NO_IDS)
    INITS[shape.init]().apply(model)
    return model


def build_mixed(shape: ModelShape, mix: MixConfig, sizes: Sizes, **settings: Any) -> CoCoMixForCausalLM:
    """Build a student with a predictor and a mixer, initialised from torch's global generator.

    Args:
        sizes: vocabulary, context and special tokens of the run.
        settings: further fields of `CoCoMixConfig`.
    """
    config = CoCoMixConfig(
        vocab_size=sizes.vocab_size,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=BACKBONES[shape.backbone].inner_width(shape.width),
        max_position_embeddings=sizes.seq_len,
        backbone=shape.backbone,
        concept_layer=mix.concept_layer,
        mixer=mix.mixer,
        mixer_options=mix.mixer_options,
        vector_scale=mix.vector_scale,
        tie_word_embeddings=shape.tie_head,
        final_logit_softcapping=shape.logit_cap,
        **{**NO_CONCEPTS, **settings},
        **sizes.special,
    )
    model = CoCoMixForCausalLM(config)
    INITS[shape.init]().apply(model)
    return model


def _build_capped(shape: ModelShape, vocab_size: int, seq_len: int, special: SpecialIds) -> CoCoMixForCausalLM:
    if shape.layers < 2:
        raise CocomixError("a student with logit_cap needs 2 layers or more; add a layer or leave logit_cap out")
    sizes = Sizes(vocab_size, seq_len, n_concepts=0, top_k=0, teacher_width=0, sae_layer=0, special=special)
    # A channel that has neither weights nor losses where nothing is mixed in.
    return build_mixed(shape, MixConfig(concept_layer=1, mixer="none"), sizes, channel="mlp")


NO_CONCEPTS: dict[str, Any] = {"num_concepts": 1, "concept_top_k": 1}
"""Settings of predictors without concepts."""


def parameter_count(build: Callable[[], nn.Module]) -> int:
    """Number of parameters of the model that `build` returns, tied ones once; built on the meta device."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build().parameters())


@cache
def match_width(shape: ModelShape, target: int, *, vocab_size: int, seq_len: int) -> ModelShape:
    """`shape` with the width whose plain model has the parameter count closest to `target`.

    Raises:
        CocomixError: even the narrowest model has more parameters.
    """
    step = 2 * shape.heads

    def count(width: int) -> int:
        resized = shape.model_copy(update={"width": width})
        return parameter_count(lambda: build_plain(resized, vocab_size=vocab_size, seq_len=seq_len))

    low = step
    if count(low) > target:
        raise CocomixError(f"no width of {shape.layers} layers has as few as {target} parameters; use fewer layers")
    while count(low + step) <= target:
        low += step
    best = min((low, low + step), key=lambda width: abs(count(width) - target))
    return shape.model_copy(update={"width": best})

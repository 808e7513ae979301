"""Configuration of a CoCoMix model; the concept settings live in config.json with the rest."""

import copy
import math
from typing import Any

from transformers import PretrainedConfig

from cocomix.model import gemma  # noqa: F401, registers its backbones
from cocomix.model.mixers import MIXERS
from cocomix.model.predictors import PREDICTORS
from cocomix.model.transformer import BACKBONES
from cocomix.utils.errors import ConfigError


class CoCoMixConfig(PretrainedConfig):
    """Shape of the backbone and of the concept channel.

    Args:
        vocab_size: tokens in the vocabulary.
        hidden_size: width d_model.
        num_hidden_layers: blocks.
        num_attention_heads: query heads; divides hidden_size.
        num_key_value_heads: key/value heads (llama backbone); empty: one for each query head.
        intermediate_size: inner width of the MLP; empty: 4 * hidden_size.
        max_position_embeddings: longest sequence, in tokens.
        backbone: "gpt2" (learned positions, LayerNorm, GELU) or "llama" (rotary, RMSNorm, SwiGLU, grouped queries)
            or "qwen2" (that, with biases of query, key and value) or "qwen3" (that of "llama", and a norm of each
            head's query and key); a key of `BACKBONES`.
        backbone_options: the backbone's own settings, such as a head's width; None: none.
        norm_eps: epsilon of the norms.
        rope_theta: base of the rotary frequencies (llama backbone).
        concept_layer: block (0-based) before which concepts are predicted and mixed; 1 to num_hidden_layers - 1.
        num_concepts: number of concepts C.
        concept_top_k: concepts K kept of a prediction.
        concept_loss_weight: lambda, weight of the concept loss.
        channel: what is predicted there, a key of `PREDICTORS`.
        channel_options: the channel's own settings.
        mixer: how the predicted vector joins the hidden states, a key of `MIXERS`.
        mixer_options: the mixer's own settings.
        vector_scale: rms of the predicted vector at the start, as a share of the rms of its token's hidden state; a
            learned factor from then on. Empty: as the reference has it, whatever the initialisation makes of it.
        dropout: dropout of embeddings, residual branches and attention.
        initializer_range: standard deviation of the initial weights.
        final_logit_softcapping: soft-cap c of the next-token logits, c tanh(z / c), as in Gemma 2; None: no cap.

    Raises:
        ConfigError: a value that does not fit, with what would.
    """

    model_type = "cocomix"
    # What Trainer does not gather: predictions are the next-token logits.
    keys_to_ignore_at_inference = [
        "lm_loss",
        "concept_loss",
        "concept_logits",
        "predicted_hidden",
        "channel_loss",
        "hidden_states",
        "attentions",
        "past_key_values",
        "cache",
    ]

    def __init__(
        self,
        vocab_size: int = 50257,
        hidden_size: int = 512,
        num_hidden_layers: int = 8,
        num_attention_heads: int = 8,
        num_key_value_heads: int | None = None,
        intermediate_size: int | None = None,
        max_position_embeddings: int = 1024,
        backbone: str = "gpt2",
        norm_eps: float = 1e-5,
        rope_theta: float = 10000.0,
        concept_layer: int = 3,
        num_concepts: int = 32768,
        concept_top_k: int = 32,
        concept_loss_weight: float = 0.1,
        channel: str = "concepts",
        channel_options: dict[str, Any] | None = None,
        mixer: str = "interleave",
        mixer_options: dict[str, Any] | None = None,
        vector_scale: float | None = None,
        dropout: float = 0.0,
        initializer_range: float = 0.02,
        final_logit_softcapping: float | None = None,
        backbone_options: dict[str, Any] | None = None,
        use_cache: bool = True,
        tie_word_embeddings: bool = True,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.intermediate_size = intermediate_size or 4 * hidden_size
        self.max_position_embeddings = max_position_embeddings
        self.backbone = backbone
        self.norm_eps = norm_eps
        self.rope_theta = rope_theta
        self.concept_layer = concept_layer
        self.num_concepts = num_concepts
        self.concept_top_k = concept_top_k
        self.concept_loss_weight = concept_loss_weight
        self.channel = channel
        self.channel_options = dict(channel_options or {})
        self.mixer = mixer
        self.mixer_options = dict(mixer_options or {})
        self.vector_scale = vector_scale
        self.dropout = dropout
        self.initializer_range = initializer_range
        if final_logit_softcapping is not None:  # without one, config.json has no such key, as in earlier versions
            self.final_logit_softcapping = final_logit_softcapping
        if backbone_options:  # the same
            self.backbone_options = dict(backbone_options)
        self.use_cache = use_cache
        kwargs |= {
            "tie_word_embeddings": tie_word_embeddings,
            "bos_token_id": bos_token_id,
            "eos_token_id": eos_token_id,
            "pad_token_id": pad_token_id,
        }
        super().__init__(**kwargs)
        self._check()

    @property
    def logit_cap(self) -> float | None:
        """Soft-cap of the next-token logits."""
        return getattr(self, "final_logit_softcapping", None)

    @property
    def options_of_backbone(self) -> dict[str, Any]:
        """`backbone_options`, or an empty mapping."""
        return getattr(self, "backbone_options", {})

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.options_of_backbone.get("head_dim") or self.hidden_size // self.num_attention_heads

    def without_channel(self) -> "CoCoMixConfig":
        """The configuration of the same transformer, in which nothing is predicted and nothing mixed in."""
        config = copy.deepcopy(self)
        config.mixer, config.mixer_options, config.vector_scale = "none", {}, None
        config.channel, config.channel_options = "mlp", {}  # it has no weights where nothing is mixed in
        config.num_concepts = config.concept_top_k = 1
        return config

    @property
    def has_channel(self) -> bool:
        """Whether anything is predicted or mixed in; False: it is the configuration of a plain transformer."""
        return (self.mixer, self.channel) != ("none", "mlp")

    def _check(self) -> None:
        cap: Any = self.logit_cap
        if cap is not None and not (isinstance(cap, int | float) and 0 < cap < float("inf")):
            raise ConfigError(f"final_logit_softcapping {cap!r} is no cap; give a number above 0, or none")
        if not 1 <= self.concept_layer < self.num_hidden_layers:
            raise ConfigError(
                f"concept_layer {self.concept_layer} is outside the stack of {self.num_hidden_layers} blocks;"
                f" choose 1 to {self.num_hidden_layers - 1}"
            )
        if not 1 <= self.concept_top_k <= self.num_concepts:
            raise ConfigError(
                f"concept_top_k {self.concept_top_k} does not fit into {self.num_concepts} concepts;"
                f" choose 1 to {self.num_concepts}"
            )
        if self.hidden_size % self.num_attention_heads and "head_dim" not in self.options_of_backbone:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads};"
                " change one of them"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_key_value_heads {self.num_key_value_heads} does not divide num_attention_heads"
                f" {self.num_attention_heads}; change one of them"
            )
        backbone = BACKBONES.choose(self.backbone)
        BACKBONES.check(self.backbone, self.options_of_backbone)
        if backbone.rotary_positions and self.head_dim % 2:
            raise ConfigError(
                f"hidden_size {self.hidden_size} over num_attention_heads {self.num_attention_heads} gives an odd head"
                " width, which rotary positions cannot halve; change one of them"
            )
        MIXERS.check(self.mixer, self.mixer_options)
        PREDICTORS.check(self.channel, self.channel_options)
        if self.vector_scale is not None:
            self._check_scale(self.vector_scale)

    def _check_scale(self, scale: Any) -> None:
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
            raise ConfigError(
                f"vector_scale {scale!r} cannot be used; choose a number above 0, such as 0.3, or leave it out"
            )
        if not MIXERS[self.mixer].uses_vector:
            raise ConfigError(
                f"the mixer {self.mixer} uses no vector that vector_scale could scale; leave vector_scale out"
            )
        if not PREDICTORS[self.channel].takes_scale:
            raise ConfigError(
                f"the channel {self.channel} does not say how its vector is initialised to a vector_scale; leave it out"
            )

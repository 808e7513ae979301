"""Shapes of transformers, and where a vector is mixed in."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from cocomix.utils.section import Section


class ModelShape(Section):
    """Shape of a transformer, whichever backbone family builds it."""

    backbone: Literal["gpt2", "llama"] = Field(default="gpt2", description="backbone family")
    width: int = Field(default=128, ge=8, description="hidden size d_model")
    layers: int = Field(default=4, ge=1, description="number of blocks")
    heads: int = Field(default=4, ge=1, description="attention heads")
    kv_heads: int | None = Field(default=None, ge=1, description="key/value heads (llama only); empty: same as heads")

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}; change one of them")
        if self.backbone == "llama" and self.width // self.heads % 2:
            raise ValueError(
                f"width {self.width} over heads {self.heads} gives an odd head width, which rotary positions"
                " cannot halve; change one of them"
            )
        if self.kv_heads is not None and (self.backbone == "gpt2" or self.heads % self.kv_heads):
            raise ValueError(f"kv_heads {self.kv_heads} needs the llama backbone and must divide heads {self.heads}")
        return self


class MixConfig(Section):
    """Where and how a vector joins the hidden states."""

    concept_layer: int = Field(
        default=2, ge=1, description="block (0-based) before which the vector is predicted and mixed"
    )
    mixer: str = Field(
        default="interleave", description="interleave, add, gated_add, keys_values, every, drop_tokens, or none"
    )
    mixer_options: dict[str, Any] = Field(
        default_factory=dict, description="the mixer's own settings, e.g. {every: 4} or {blocks: 1}"
    )

    @model_validator(mode="after")
    def _mixer_exists(self) -> Self:
        from cocomix.model.mixers import check_mixer

        check_mixer(self.mixer, self.mixer_options)
        return self

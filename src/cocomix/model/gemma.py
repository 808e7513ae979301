"""Backbones of the Gemma families: Gemma (the first one) and Gemma 3's text models.

Their norms multiply by one plus a weight; here a norm's weight is that sum, so that they are plain RMSNorms. Gemma 2 is
not here: its attention caps the scores, which fused attention cannot.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    PreTrainedModel,
)

from cocomix.model.transformer import (
    Block,
    LlamaBackbone,
    Rotary,
    SpecialIds,
    SwiGluMLP,
    register_backbone,
    rms_head_norms,
    rotary_table,
)

if TYPE_CHECKING:
    from cocomix.model.build import ModelShape
    from cocomix.model.configuration_cocomix import CoCoMixConfig


class GeGluMLP(SwiGluMLP):
    """W2 (gelu(Wg x) * W1 x), without biases, with the tanh approximation."""

    def activation(self, gate: torch.Tensor) -> torch.Tensor:
        return F.gelu(gate, approximate="tanh")


class GemmaBackbone(LlamaBackbone):
    """Llama's parts with a GELU in the MLP, and embeddings times sqrt(d_model)."""

    name = "gemma"

    def mlp(self, config: "CoCoMixConfig") -> nn.Module:
        return GeGluMLP(config)

    def embed(self, embedded: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        scale = torch.tensor(math.sqrt(embedded.shape[-1]), dtype=embedded.dtype)  # rounded as Transformers does
        return super().embed(embedded * scale.to(embedded.device), positions)

    @classmethod
    def plain_model(cls, shape: "ModelShape", vocab_size: int, seq_len: int, special: SpecialIds) -> PreTrainedModel:
        settings = cls.plain_settings(shape, vocab_size, seq_len, special)
        # No padding token, whose embedding Transformers would freeze at zero.
        return GemmaForCausalLM(GemmaConfig(**settings, head_dim=shape.width // shape.heads, pad_token_id=None))


class SandwichBlock(Block):
    """A block whose branches are normed before and after: x + norm(attention(norm(x))), the same for the MLP."""

    def add_norms(self, after: tuple[nn.Module, nn.Module]) -> "SandwichBlock":
        """Set the norms of the branches' outputs."""
        self.norm_after_1, self.norm_after_2 = after
        return self

    def after_attention(self, mixed: torch.Tensor) -> torch.Tensor:
        return self.norm_after_1(mixed)

    def after_mlp(self, inner: torch.Tensor) -> torch.Tensor:
        return self.norm_after_2(inner)


class Gemma3Backbone(GemmaBackbone):
    """Gemma's parts, norms of queries, keys and branches' outputs, and blocks that see the last tokens only.

    Args:
        head_dim: as for Llama.
        frequencies: as for Llama, of the blocks that see all tokens.
        window: tokens that the other blocks see; None: there are no such blocks.
        windowed: their indices.
        window_theta: base of the rotary frequencies there.
    """

    name = "gemma3"

    def __init__(
        self,
        config: "CoCoMixConfig",
        *,
        head_dim: int | None = None,
        frequencies: list[float] | None = None,
        window: int | None = None,
        windowed: list[int] | None = None,
        window_theta: float = 10000.0,
    ) -> None:
        super().__init__(config, head_dim=head_dim, frequencies=frequencies)
        self.window_theta = window_theta
        for index in windowed or []:
            self.blocks[index].window = window  # pyright: ignore[reportArgumentType]

    def block(self, config: "CoCoMixConfig", index: int) -> Block:
        plain = super().block(config, index)
        norms = (plain.norm_1, plain.norm_2)
        block = SandwichBlock(plain.attention, plain.mlp, norms, plain.dropout)
        return block.add_norms((self.norm(config), self.norm(config)))

    def head_norms(self, config: "CoCoMixConfig") -> tuple[nn.Module, nn.Module]:
        return rms_head_norms(config)

    def local_rotary(self, positions: torch.Tensor, dtype: torch.dtype) -> Rotary | None:
        return rotary_table(positions, self.head_dim, self.window_theta, dtype)

    @classmethod
    def plain_model(cls, shape: "ModelShape", vocab_size: int, seq_len: int, special: SpecialIds) -> PreTrainedModel:
        settings: dict[str, Any] = cls.plain_settings(shape, vocab_size, seq_len, special)
        width = shape.width // shape.heads
        rotary = {"rope_type": "default", "rope_theta": 10000.0}
        return Gemma3ForCausalLM(
            Gemma3TextConfig(
                **settings,
                head_dim=width,
                query_pre_attn_scalar=width,
                pad_token_id=None,
                layer_types=["full_attention"] * shape.layers,
                rope_parameters={"full_attention": rotary, "sliding_attention": rotary},
            )
        )


for _backbone in (GemmaBackbone, Gemma3Backbone):
    register_backbone(_backbone)

"""Backbone families behind one interface, registered in `BACKBONES`.

Blocks are ours because from concept_layer on a token takes more than one slot: both slots of a token share its
position, and the cache holds both. With concepts out of the way they agree with Transformers' GPT-2 and Llama.
"""

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from cocomix.kernels.matmul import Linear
from cocomix.model.masks import Attend
from cocomix.model.transformer import Attention, Rotary, rotary_table

if TYPE_CHECKING:
    from cocomix.model.configuration_cocomix import CoCoMixConfig


class GeluMLP(nn.Module):
    """W2 gelu(W1 x), tanh-approximated as GPT-2's."""

    def __init__(self, config: "CoCoMixConfig") -> None:
        super().__init__()
        self.up = Linear(config.hidden_size, config.intermediate_size)
        self.down = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(hidden), approximate="tanh"))


class SwiGluMLP(nn.Module):
    """W2 (silu(Wg x) * W1 x), without biases."""

    def __init__(self, config: "CoCoMixConfig") -> None:
        super().__init__()
        self.gate = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(hidden)) * self.up(hidden))


class Block(GradientCheckpointingLayer):
    """Pre-norm block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self, attention: Attention, mlp: nn.Module, norms: tuple[nn.Module, nn.Module], dropout: float
    ) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = norms
        self.attention, self.mlp, self.dropout = attention, mlp, dropout

    def forward(
        self,
        hidden: torch.Tensor,
        layout: Attend,
        rotary: Rotary | None,
        cache: Cache | None = None,
        memory: torch.Tensor | None = None,
        asking: slice | None = None,
    ) -> torch.Tensor:
        """`[batch, slots, d_model]` -> the same; `memory` of that shape is attended to and not changed.

        With `asking` only those slots are carried on, `[batch, asking slots, d_model]`; all of them are attended to.
        """
        extra = None if memory is None else self.norm_1(memory)
        mixed = self.attention(self.norm_1(hidden), layout, rotary, cache, extra, asking)
        hidden = (hidden if asking is None else hidden[:, asking]) + mixed
        return hidden + F.dropout(self.mlp(self.norm_2(hidden)), self.dropout, self.training)


class Backbone(nn.Module, ABC):
    """Embeddings, blocks and the final norm of one family."""

    bias: ClassVar[bool]
    """whether the attention projections have biases"""

    def __init__(self, config: "CoCoMixConfig") -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(self.block(config, index) for index in range(config.num_hidden_layers))
        self.final_norm = self.norm(config)
        self.dropout = config.dropout

    def block(self, config: "CoCoMixConfig", index: int) -> Block:
        """A block of this family; `index` is its place in the cache."""
        attention = Attention(
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            index,
            bias=self.bias,
            dropout=config.dropout,
        )
        mlp = self.mlp(config)
        for writer in (attention.out, mlp.down):
            writer.init_scale = self.residual_scale(config.num_hidden_layers)  # pyright: ignore
        return Block(attention, mlp, (self.norm(config), self.norm(config)), config.dropout)

    @abstractmethod
    def norm(self, config: "CoCoMixConfig") -> nn.Module:
        """A norm layer of this family."""

    @abstractmethod
    def mlp(self, config: "CoCoMixConfig") -> nn.Module:
        """An MLP of this family."""

    @abstractmethod
    def embed(self, embedded: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Input of the first block from token embeddings `[batch, seq, d_model]` and positions `[batch or 1, seq]`."""

    @abstractmethod
    def rotary(self, positions: torch.Tensor, dtype: torch.dtype) -> Rotary | None:
        """Rotary table for one slot a token, or None where positions are learned."""

    def residual_scale(self, layers: int) -> float:
        """Factor on the initial weights that write to the residual stream."""
        return 1.0


class GPT2Backbone(Backbone):
    """Learned positions, LayerNorm, GELU, biases everywhere."""

    bias = True

    def __init__(self, config: "CoCoMixConfig") -> None:
        super().__init__(config)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def norm(self, config: "CoCoMixConfig") -> nn.Module:
        return nn.LayerNorm(config.hidden_size, eps=config.norm_eps)

    def mlp(self, config: "CoCoMixConfig") -> nn.Module:
        return GeluMLP(config)

    def embed(self, embedded: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return F.dropout(embedded + self.embed_positions(positions), self.dropout, self.training)

    def rotary(self, positions: torch.Tensor, dtype: torch.dtype) -> Rotary | None:
        return None

    def residual_scale(self, layers: int) -> float:
        return 1 / math.sqrt(2 * layers)


class LlamaBackbone(Backbone):
    """Rotary positions, RMSNorm, SwiGLU, grouped queries, no biases."""

    bias = False

    def __init__(self, config: "CoCoMixConfig") -> None:
        super().__init__(config)
        self.head_dim, self.theta = config.hidden_size // config.num_attention_heads, config.rope_theta

    def norm(self, config: "CoCoMixConfig") -> nn.Module:
        return nn.RMSNorm(config.hidden_size, eps=config.norm_eps)

    def mlp(self, config: "CoCoMixConfig") -> nn.Module:
        return SwiGluMLP(config)

    def embed(self, embedded: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return F.dropout(embedded, self.dropout, self.training)

    def rotary(self, positions: torch.Tensor, dtype: torch.dtype) -> Rotary | None:
        return rotary_table(positions, self.head_dim, self.theta, dtype)


BACKBONES: dict[str, type[Backbone]] = {"gpt2": GPT2Backbone, "llama": LlamaBackbone}

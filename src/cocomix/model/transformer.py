"""Multi-head attention with grouped queries, optional rotary positions and a Transformers cache."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from cocomix.kernels.matmul import Linear, linear

if TYPE_CHECKING:
    from cocomix.model.configuration_cocomix import CoCoMixConfig


# Modules that hold plain parameters and say how these begin.


class OwnInit(nn.Module):
    """A module with parameters of its own, beside those of linear layers, embeddings and norms below it."""

    def reset(self, std: float) -> None:
        """Initialise the parameters this module itself holds; `std` is the config's `initializer_range`."""


# Causal layouts over one or more slots a token.
#
# Slots are ordered token by token, so causality over slots is plain causality over positions `token * slots + slot`.
# SDPA's own causal flag aligns queries and keys at the top left and is therefore used only where both have the
# same length; cached steps of several queries need an explicit mask.


class Attend(NamedTuple):
    """What SDPA needs to know about who sees whom."""

    mask: torch.Tensor | None
    """bool `[batch or 1, 1, queries, keys]`, True where seen; None: no mask beyond `causal`"""
    causal: bool
    """whether SDPA's own causal flag is used"""

    def for_slots(self, asking: slice, slots: int, device: torch.device) -> "Attend":
        """The same layout where of `slots` slots only `asking` ask."""
        if self.causal:
            places = torch.arange(slots, device=device)
            return Attend((places[None, :] <= places[asking, None])[None, None], causal=False)
        return self if self.mask is None else Attend(self.mask[:, :, asking], causal=False)


def attend(
    padding: torch.Tensor | None,
    new: int,
    past: int,
    *,
    slots: int,
    device: torch.device,
    key_slots: int | None = None,
    present: torch.Tensor | None = None,
) -> Attend:
    """Layout for `new` tokens after `past` cached ones.

    Args:
        padding: 1 for tokens, 0 for padding, `[batch, past + new]`; None: no padding.
        slots: slots a token that ask.
        key_slots: slots a token that answer, if more of them do; a query sees all those of its own token.
        present: False for slots nobody may see, bool `[batch or 1, (past + new) * key_slots]`; None: all are there.
    """
    key_slots = key_slots or slots
    queries, keys = new * slots, (past + new) * key_slots
    if padding is None and present is None and slots == key_slots:
        if past == 0:
            return Attend(None, causal=True)
        if queries == 1:
            return Attend(None, causal=False)
    column = torch.arange(keys, device=device)[None, :]
    own = _last_seen(new, past, slots, key_slots, device)[:, None]
    mask = (column <= own)[None, None]
    hidden = None
    if padding is not None:
        hidden = padding.bool().repeat_interleave(key_slots, dim=1)
    if present is not None:
        hidden = present if hidden is None else hidden & present
    if hidden is not None:
        # A padded or absent query would see nothing and turn into NaN; let it see itself, nobody ever sees it.
        mask = (mask & hidden[:, None, None, :]) | (column == own)
    return Attend(mask, causal=False)


def _last_seen(new: int, past: int, slots: int, key_slots: int, device: torch.device) -> torch.Tensor:
    """The last key each query sees, int64 `[new * slots]`: its own slot, or the last one of its token."""
    if slots == key_slots:
        return torch.arange(past * slots, (past + new) * slots, device=device)
    return torch.arange(past + 1, past + new + 1, device=device) * key_slots - 1


Rotary = tuple[torch.Tensor, torch.Tensor]
"""cos and sin, `[batch or 1, 1, slots, head_dim]`"""


class Attention(nn.Module):
    """softmax(q k^T / sqrt(head_dim)) v, projected; one fused projection makes q, k and v.

    Args:
        hidden_size: d_model.
        heads: query heads.
        kv_heads: key/value heads.
        layer_index: place in the cache.
        bias: whether the projections have biases.
        dropout: dropout of the attention weights and the output.
    """

    def __init__(
        self, hidden_size: int, heads: int, kv_heads: int, layer_index: int, *, bias: bool, dropout: float
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, hidden_size // heads
        self.layer_index, self.dropout = layer_index, dropout
        self.qkv = Linear(hidden_size, (heads + 2 * kv_heads) * self.head_dim, bias=bias)
        self.out = Linear(heads * self.head_dim, hidden_size, bias=bias)

    def forward(
        self,
        hidden: torch.Tensor,
        layout: Attend,
        rotary: Rotary | None,
        cache: Cache | None,
        memory: torch.Tensor | None = None,
        asking: slice | None = None,
    ) -> torch.Tensor:
        """`[batch, slots, d_model]` -> `[batch, asking slots, d_model]`.

        Args:
            layout: who sees whom, for the slots that ask.
            asking: slots whose results are needed; None: all. The others give keys and values only.
            memory: `[batch, slots, d_model]`, a vector behind each slot that gives a key and a value and asks nothing.
        """
        query, key, value = self._projected(hidden, rotary, asking)
        if memory is not None:
            more_keys, more_values = self._keys_values(memory, rotary)
            key = torch.stack((key, more_keys), dim=3).flatten(2, 3)
            value = torch.stack((value, more_values), dim=3).flatten(2, 3)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_index)
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=layout.mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=layout.causal,
            enable_gqa=self.heads != self.kv_heads,
        )
        joined = mixed.transpose(1, 2).flatten(2)
        return F.dropout(self.out(joined), self.dropout, self.training)

    def _projected(
        self, hidden: torch.Tensor, rotary: Rotary | None, asking: slice | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query, key and value, each `[batch, heads or kv_heads, slots, head_dim]`; queries of the asking slots."""
        if asking is None:
            split = self.qkv(hidden).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            query, key, value = split.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
            return (query, key, value) if rotary is None else (rotate(query, rotary), rotate(key, rotary), value)
        first = self.heads * self.head_dim
        bias = None if self.qkv.bias is None else self.qkv.bias[:first]
        asked = linear(hidden[:, asking], self.qkv.weight[:first], bias)
        query = asked.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        key, value = self._keys_values(hidden, rotary)
        if rotary is not None:
            query = rotate(query, (rotary[0][:, :, asking], rotary[1][:, :, asking]))
        return query, key, value

    def _keys_values(self, memory: torch.Tensor, rotary: Rotary | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values alone, of vectors at the slots' own positions, each `[batch, kv_heads, slots, head_dim]`."""
        first = self.heads * self.head_dim
        bias = None if self.qkv.bias is None else self.qkv.bias[first:]
        split = linear(memory, self.qkv.weight[first:], bias).view(*memory.shape[:2], -1, self.head_dim)
        key, value = split.transpose(1, 2).chunk(2, dim=1)
        return (key if rotary is None else rotate(key, rotary)), value


def rotate(x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Rotary positions: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin) on the two halves of head_dim."""
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def rotary_table(positions: torch.Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> Rotary:
    """cos and sin for integer `positions` `[batch or 1, slots]`, in float32 or better."""
    wide = torch.promote_types(dtype, torch.float32)
    frequencies = theta ** -(torch.arange(0, head_dim, 2, device=positions.device, dtype=wide) / head_dim)
    angles = positions[:, None, :, None].to(wide) * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


# Backbone families behind one interface, registered in `BACKBONES`.
#
# Blocks are ours because from concept_layer on a token takes more than one slot: both slots of a token share its
# position, and the cache holds both. With concepts out of the way they agree with Transformers' GPT-2 and Llama.


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


# Running a stretch of blocks over a layout of slots; what a mixer writes the upper half of the forward pass with.


class BlockRun:
    """Runs blocks, a few or all that are left at a time; masks, positions and the cache follow from the slots.

    Args:
        blocks: the stretch, e.g. those from concept_layer on.
        backbone: for its rotary tables.
        positions: of the new tokens, int64 `[batch or 1, new]`.
        padding: 1 for tokens, 0 for padding, `[batch, past + new]`; None: no padding.
        past: tokens in the cache.
        cache: keys and values to read and extend, or None.
        seen: gets what each block returned, if there is one.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        backbone: nn.Module,
        positions: torch.Tensor,
        padding: torch.Tensor | None,
        past: int,
        cache: Cache | None,
        seen: list[torch.Tensor] | None,
    ) -> None:
        self._blocks: Iterator[nn.Module] = iter(blocks)
        self._left, self._backbone = len(blocks), backbone
        self.positions, self.padding, self.past, self.cache, self._seen = positions, padding, past, cache, seen

    @property
    def plain(self) -> bool:
        """Whether all tokens are here and none is padding: then a layout needs no mask beyond causality."""
        return self.padding is None and self.cache is None

    def run(
        self,
        hidden: torch.Tensor,
        *,
        slots: int = 1,
        blocks: int | None = None,
        memory: torch.Tensor | None = None,
        present: torch.Tensor | None = None,
        asking: slice | None = None,
    ) -> torch.Tensor:
        """Run `blocks` more blocks, or all that are left, over `slots` slots a token.

        With `asking` only those slots are returned, and the last of the blocks carries on no others.

        Args:
            hidden: `[batch, new * slots, d_model]`.
            memory: `[batch, new, d_model]`, vectors that are only attended to, one behind each token.
            present: False for slots nobody sees, bool `[batch or 1, (past + new) * slots]`.
        """
        new = self.positions.shape[1]
        key_slots = slots if memory is None else 2 * slots
        layout = attend(
            self.padding, new, self.past, slots=slots, key_slots=key_slots, present=present, device=hidden.device
        )
        rotary = self._backbone.rotary(self.positions.repeat_interleave(slots, dim=1), hidden.dtype)  # pyright: ignore
        return self._through(blocks, hidden, layout, rotary, memory, asking)

    def run_compact(self, hidden: torch.Tensor, owners: torch.Tensor) -> torch.Tensor:
        """Run all blocks left over slots of which `owners` int64 `[slots]` names the tokens; only where `plain`."""
        layout = attend(None, len(owners), 0, slots=1, device=hidden.device)
        rotary = self._backbone.rotary(self.positions[:, owners], hidden.dtype)  # pyright: ignore
        return self._through(None, hidden, layout, rotary, None, None)

    def _through(self, blocks, hidden, layout, rotary, memory, asking):
        count = self._left if blocks is None else min(blocks, self._left)
        self._left -= count
        for place in range(count):
            given = {"layout": layout, "rotary": rotary, "cache": self.cache, "memory": memory}
            # Who watches every block's hidden states gets all slots of the last one, too.
            sparing = asking is not None and place == count - 1 and self._seen is None
            if sparing:
                given |= {"layout": layout.for_slots(asking, hidden.shape[1], hidden.device), "asking": asking}
            hidden = next(self._blocks)(hidden, **given)
            if self._seen is not None:
                self._seen.append(hidden)
        return hidden if asking is None or (count and self._seen is None) else hidden[:, asking]

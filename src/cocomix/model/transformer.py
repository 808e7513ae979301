"""Multi-head attention with grouped queries, optional rotary positions and a Transformers cache."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache

from cocomix.kernels.matmul import Linear, linear
from cocomix.model.masks import Attend

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

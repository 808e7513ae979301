"""The transformer below and above concept_layer: masks, attention, blocks, the backbones and `BlockRunner`.

The blocks are not Transformers' because above concept_layer a token takes more than one slot: both slots of a token
share its position, and the cache holds both. Without concepts they agree with Transformers' GPT-2 (to 1e-9 in float64),
Llama and Qwen3 (tests/model). The model and the mixers call `BlockRunner`, at the end of the file.

Choices:
- Slots are ordered token by token, so causality over slots is plain causality over `token * slots + slot`.
- SDPA's own causal flag aligns queries and keys at the top left, so it is used only where both have the same length;
  cached steps with several queries need an explicit mask.
- A block can compute some of its slots only (`query_slots`): the last block before the head skips the queries, the
  MLP and the output projection of slots that are not read.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypedDict

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    Cache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from cocomix.kernels.plain_linear import apply_linear, plain_linear, some_outputs
from cocomix.utils.errors import ConfigError
from cocomix.utils.registry import Registry

if TYPE_CHECKING:
    from cocomix.model.build import ModelShape
    from cocomix.model.configuration_cocomix import CoCoMixConfig


class ParameterModule(nn.Module):
    """Base class of modules with parameters besides those of their linear layers, embeddings and norms."""

    def reset_parameters(self, std: float) -> None:
        """Initialise the module's own parameters; `std` is the config's `initializer_range`."""


class AttentionLayout(NamedTuple):
    """Arguments of SDPA that tell which queries see which keys."""

    mask: torch.Tensor | None
    """bool `[batch or 1, 1, queries, keys]`, True where seen; None: no mask beyond `causal`"""
    causal: bool
    """whether SDPA's own causal flag is used"""
    weights: list[torch.Tensor] | None = None
    """where each block appends its attention weights, `[batch, heads, queries, keys]`; None: they are not computed"""

    def for_slots(self, query_slots: slice, slots: int, device: torch.device) -> "AttentionLayout":
        """The layout of only the queries `query_slots`, out of `slots` slots."""
        if self.causal:
            places = torch.arange(slots, device=device)
            return AttentionLayout((places[None, :] <= places[query_slots, None])[None, None], causal=False)
        return self if self.mask is None else AttentionLayout(self.mask[:, :, query_slots], causal=False)


def attention_layout(
    padding: torch.Tensor | None,
    new: int,
    past: int,
    *,
    slots: int,
    device: torch.device,
    key_slots: int | None = None,
    visible: torch.Tensor | None = None,
    documents: torch.Tensor | None = None,
    window: int | None = None,
) -> AttentionLayout:
    """Causal layout for `new` tokens after `past` cached ones.

    Args:
        padding: 1 for tokens, 0 for padding, `[batch, past + new]`; None: no padding.
        slots: queries per token.
        key_slots: keys per token, if more than queries; a query sees all keys of its own token.
        visible: False for slots that no query attends to, bool `[batch or 1, (past + new) * key_slots]`; None: all.
        documents: numbers of the documents, int64 `[batch, new]`, without cached tokens: a query sees keys of its own
            only; None: all are one text.
        window: a query sees keys of this many tokens only, its own and those before it; None: all.
    """
    key_slots = key_slots or slots
    queries, keys = new * slots, (past + new) * key_slots
    window = None if window is None or window >= past + new else window
    if padding is None and visible is None and documents is None and window is None and slots == key_slots:
        if past == 0:
            return AttentionLayout(None, causal=True)
        if queries == 1:
            return AttentionLayout(None, causal=False)
    column = torch.arange(keys, device=device)[None, :]
    last = _last_key(new, past, slots, key_slots, device)[:, None]
    mask = (column <= last)[None, None]
    if window is not None:
        mask = mask & (last // key_slots - column // key_slots < window)
    if padding is not None:
        tokens = padding.bool().repeat_interleave(key_slots, dim=1)
        visible = tokens if visible is None else tokens & visible
    if visible is not None:
        # A padded or hidden query would see nothing and become NaN. It sees itself, and no query sees it.
        mask = (mask & visible[:, None, None, :]) | (column == last)
    if documents is not None:
        of_queries, of_keys = (documents.repeat_interleave(each, dim=1) for each in (slots, key_slots))
        mask = mask & (of_queries[:, None, :, None] == of_keys[:, None, None, :])
    return AttentionLayout(mask, causal=False)


def _last_key(new: int, past: int, slots: int, key_slots: int, device: torch.device) -> torch.Tensor:
    """The last key each query sees, int64 `[new * slots]`: its own slot, or the last one of its token."""
    if slots == key_slots:
        return torch.arange(past * slots, (past + new) * slots, device=device)
    return torch.arange(past + 1, past + new + 1, device=device) * key_slots - 1


Rotary = tuple[torch.Tensor, torch.Tensor]
"""cos and sin, `[batch or 1, 1, slots, head_dim]`"""


class Attention(nn.Module):
    """Multi-head attention, softmax(q k^T / sqrt(head_dim)) v, with one fused projection for q, k and v.

    Args:
        hidden_size: d_model.
        heads: query heads.
        kv_heads: key/value heads.
        layer_index: index in the cache.
        bias: whether the projections have biases.
        dropout: dropout of the attention weights and the output.
        head_norms: norms of each head's query and key, before the rotation; None: there are none.
        head_dim: width of a head; None: hidden_size / heads.
        out_bias: whether the output projection has a bias; None: as `bias` says.
    """

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        kv_heads: int,
        layer_index: int,
        *,
        bias: bool,
        dropout: float,
        head_norms: tuple[nn.Module, nn.Module] | None = None,
        head_dim: int | None = None,
        out_bias: bool | None = None,
    ) -> None:
        super().__init__()
        self.q_norm, self.k_norm = head_norms or (None, None)
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim or hidden_size // heads
        self.layer_index, self.dropout = layer_index, dropout
        self.qkv = nn.Linear(hidden_size, (heads + 2 * kv_heads) * self.head_dim, bias=bias)
        self.out = nn.Linear(heads * self.head_dim, hidden_size, bias=bias if out_bias is None else out_bias)

    def forward(
        self,
        hidden: torch.Tensor,
        layout: AttentionLayout,
        rotary: Rotary | None,
        cache: Cache | None,
        extra_kv: torch.Tensor | None = None,
        query_slots: slice | None = None,
    ) -> torch.Tensor:
        """`[batch, slots, d_model]` -> `[batch, query slots, d_model]`.

        Args:
            layout: which queries see which keys, for the query slots.
            extra_kv: `[batch, slots, d_model]`, a vector after each slot that gives a key and a value but no query.
            query_slots: slots whose output is needed; None: all. The others only give keys and values.
        """
        query, key, value = self._projected(hidden, rotary, query_slots)
        if extra_kv is not None:
            extra_keys, extra_values = self._keys_values(extra_kv, rotary)
            key = torch.stack((key, extra_keys), dim=3).flatten(2, 3)
            value = torch.stack((value, extra_values), dim=3).flatten(2, 3)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_index)
        if layout.weights is not None:
            mixed = self._attend_with_weights(query, key, value, layout)
        else:
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
        return F.dropout(apply_linear(self.out, joined), self.dropout, self.training)

    def _projected(
        self, hidden: torch.Tensor, rotary: Rotary | None, query_slots: slice | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query, key and value, each `[batch, heads or kv_heads, slots, head_dim]`; queries only of the query slots."""
        if query_slots is not None and plain_linear(self.qkv):
            query = some_outputs(self.qkv, hidden[:, query_slots], slice(self.heads * self.head_dim))
            query = query.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            key, value = self._keys_values(hidden, rotary)
        else:
            split = self._heads(apply_linear(self.qkv, hidden))
            query, key, value = split.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
            query = query if query_slots is None else query[:, :, query_slots]
            key = key if self.k_norm is None else self.k_norm(key)
            key = key if rotary is None else rotate(key, rotary)
        query = query if self.q_norm is None else self.q_norm(query)
        if rotary is not None:
            places = slice(None) if query_slots is None else query_slots
            query = rotate(query, (rotary[0][:, :, places], rotary[1][:, :, places]))
        return query, key, value

    def _heads(self, projected: torch.Tensor) -> torch.Tensor:
        """The output of `qkv`, `[batch, slots, width]`, by heads: `[batch, heads + 2 kv_heads, slots, head_dim]`."""
        width = (self.heads + 2 * self.kv_heads) * self.head_dim
        if projected.shape[-1] != width:
            raise ConfigError(
                f"attention.qkv gave {projected.shape[-1]} of its {width} outputs, which q, k and v cannot be cut from;"
                " gather its output: ColwiseParallel(output_layouts=Replicate()), or tp_plan's colwise_gather_output"
            )
        return projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def _attend_with_weights(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: AttentionLayout
    ) -> torch.Tensor:
        """SDPA step by step, since it returns no weights; these are appended to `layout.weights`."""
        assert layout.weights is not None
        key, value = (states.repeat_interleave(self.heads // self.kv_heads, dim=1) for states in (key, value))
        scores = query @ key.transpose(2, 3) / math.sqrt(self.head_dim)
        mask = layout.for_slots(slice(None), query.shape[2], query.device).mask
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
        weights = F.dropout(weights, self.dropout, self.training)
        layout.weights.append(weights)
        return weights @ value

    def _keys_values(self, extra_kv: torch.Tensor, rotary: Rotary | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of vectors at the positions of the slots, each `[batch, kv_heads, slots, head_dim]`."""
        both = some_outputs(self.qkv, extra_kv, slice(self.heads * self.head_dim, None))
        key, value = both.unflatten(-1, (-1, self.head_dim)).transpose(1, 2).chunk(2, dim=1)
        key = key if self.k_norm is None else self.k_norm(key)
        return (key if rotary is None else rotate(key, rotary)), value


def rotate(x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Apply rotary positions: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin) on the two halves of head_dim."""
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def rotary_frequencies(head_dim: int, theta: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Angle of a step of one position in each pair of dimensions, `[head_dim / 2]`."""
    return theta ** -(torch.arange(0, head_dim, 2, device=device, dtype=dtype) / head_dim)


def rotary_table(
    positions: torch.Tensor, head_dim: int, theta: float, dtype: torch.dtype, steps: Sequence[float] | None = None
) -> Rotary:
    """cos and sin for integer `positions` `[batch or 1, slots]`, in float32 or better.

    Args:
        steps: frequencies to use in place of those of `theta`, as scaled for longer texts.
    """
    wide = torch.promote_types(dtype, torch.float32)
    if steps is None:
        frequencies = rotary_frequencies(head_dim, theta, wide, positions.device)
    else:
        frequencies = torch.tensor(steps, dtype=wide, device=positions.device)
    angles = positions[:, None, :, None].to(wide) * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


class GeluMLP(nn.Module):
    """W2 gelu(W1 x), with GPT-2's tanh approximation."""

    def __init__(self, config: "CoCoMixConfig") -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return apply_linear(self.down, F.gelu(apply_linear(self.up, hidden), approximate="tanh"))


class SwiGluMLP(nn.Module):
    """W2 (act(Wg x) * W1 x), without biases; act is silu."""

    def __init__(self, config: "CoCoMixConfig") -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        inner = self.activation(apply_linear(self.gate, hidden)) * apply_linear(self.up, hidden)
        return apply_linear(self.down, inner)

    def activation(self, gate: torch.Tensor) -> torch.Tensor:
        """act, elementwise."""
        return F.silu(gate)


class Block(GradientCheckpointingLayer):
    """Pre-norm block: x + attention(norm(x)), then x + mlp(norm(x))."""

    window: int | None = None
    """number of tokens that a query sees, its own included; None: all"""

    def __init__(
        self, attention: Attention, mlp: nn.Module, norms: tuple[nn.Module, nn.Module], dropout: float
    ) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = norms
        self.attention, self.mlp, self.dropout = attention, mlp, dropout

    def forward(
        self,
        hidden: torch.Tensor,
        layout: AttentionLayout,
        rotary: Rotary | None,
        cache: Cache | None = None,
        extra_kv: torch.Tensor | None = None,
        query_slots: slice | None = None,
    ) -> torch.Tensor:
        """`[batch, slots, d_model]` -> `[batch, slots, d_model]`; `extra_kv` of that shape is only attended to.

        With `query_slots` only these are returned, `[batch, query slots, d_model]`; all slots are attended to.
        """
        extra_kv = None if extra_kv is None else self.norm_1(extra_kv)
        mixed = self.attention(self.norm_1(hidden), layout, rotary, cache, extra_kv, query_slots)
        hidden = (hidden if query_slots is None else hidden[:, query_slots]) + self.after_attention(mixed)
        return hidden + F.dropout(self.after_mlp(self.mlp(self.norm_2(hidden))), self.dropout, self.training)

    def after_attention(self, mixed: torch.Tensor) -> torch.Tensor:
        """What of the attention's output is added to the hidden states."""
        return mixed

    def after_mlp(self, inner: torch.Tensor) -> torch.Tensor:
        """What of the MLP's output is."""
        return inner


class SpecialIds(TypedDict):
    """Ids of special tokens, by their names in a model config."""

    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None


class Backbone(nn.Module, ABC):
    """Base class of backbones: embeddings, blocks and final norm of a family, and Transformers' plain model of it."""

    name: ClassVar[str]
    """name in settings"""
    bias: ClassVar[bool]
    """whether the attention projections have biases"""
    out_bias: ClassVar[bool | None] = None
    """whether attention's output projection has one; None: as `bias` says"""
    rotary_positions: ClassVar[bool] = False
    grouped_queries: ClassVar[bool] = False
    """whether there can be fewer key/value heads than query heads"""
    _tp_plan: ClassVar[dict[str, str]] = {
        "blocks.*.attention.qkv": "colwise_gather_output",
        "blocks.*.attention.out": "colwise_gather_output",
        "blocks.*.mlp.up": "colwise",
        "blocks.*.mlp.down": "rowwise",
    }
    """Transformers' tensor parallelism: the weights are divided, attention itself runs whole in each process"""

    def __init__(self, config: "CoCoMixConfig") -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(self.block(config, index) for index in range(config.num_hidden_layers))
        self.final_norm = self.norm(config)
        self.dropout = config.dropout

    def block(self, config: "CoCoMixConfig", index: int) -> Block:
        """A block of this family; `index` is its index in the cache."""
        attention = Attention(
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            index,
            bias=self.bias,
            dropout=config.dropout,
            head_norms=self.head_norms(config),
            head_dim=config.head_dim,
            out_bias=self.out_bias,
        )
        mlp = self.mlp(config)
        for writer in (attention.out, mlp.down):
            writer.init_scale = self.residual_scale(config.num_hidden_layers)  # pyright: ignore
        return Block(attention, mlp, (self.norm(config), self.norm(config)), config.dropout)

    @abstractmethod
    def norm(self, config: "CoCoMixConfig") -> nn.Module:
        """A norm layer of this family."""

    def head_norms(self, config: "CoCoMixConfig") -> tuple[nn.Module, nn.Module] | None:
        """Norms of each head's query and key, of width d_model / heads; None: there are none."""
        return None

    @abstractmethod
    def mlp(self, config: "CoCoMixConfig") -> nn.Module:
        """An MLP of this family."""

    @abstractmethod
    def embed(self, embedded: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Input of the first block from token embeddings `[batch, seq, d_model]` and positions `[batch or 1, seq]`."""

    @abstractmethod
    def rotary(self, positions: torch.Tensor, dtype: torch.dtype) -> Rotary | None:
        """Rotary table for one slot per token, or None where positions are learned."""

    def local_rotary(self, positions: torch.Tensor, dtype: torch.dtype) -> Rotary | None:
        """Rotary table of blocks with a `window`."""
        return self.rotary(positions, dtype)

    def residual_scale(self, layers: int) -> float:
        """Factor on the initialisation std of weights that write to the residual stream."""
        return 1.0

    @classmethod
    @abstractmethod
    def inner_width(cls, width: int) -> int:
        """Inner width of the MLP for d_model `width`."""

    @classmethod
    @abstractmethod
    def plain_model(cls, shape: "ModelShape", vocab_size: int, seq_len: int, special: SpecialIds) -> PreTrainedModel:
        """Transformers' causal LM of this family and shape, newly initialised, without dropout."""


class GPT2Backbone(Backbone):
    """Learned positions, LayerNorm, GELU, biases everywhere."""

    name = "gpt2"
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

    @classmethod
    def inner_width(cls, width: int) -> int:
        return 4 * width

    @classmethod
    def plain_model(cls, shape: "ModelShape", vocab_size: int, seq_len: int, special: SpecialIds) -> PreTrainedModel:
        config = GPT2Config(
            vocab_size=vocab_size,
            n_positions=seq_len,
            n_embd=shape.width,
            n_layer=shape.layers,
            n_head=shape.heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            activation_function="gelu_pytorch_tanh",  # GPT-2's own GELU, as one fused operation
            tie_word_embeddings=shape.tie_head,
            **special,
        )
        return GPT2LMHeadModel(config)


class HeadNorm(nn.RMSNorm):
    """RMSNorm of queries or keys, which autocast gives in bfloat16: as torch's, which warns of a weight of another
    dtype and leaves its fused kernel, to the bit.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` `[..., head_dim]`, normed, in its dtype."""
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


def rms_head_norms(config: "CoCoMixConfig") -> tuple[nn.Module, nn.Module]:
    """Norms of each head's query and key."""
    return HeadNorm(config.head_dim, eps=config.norm_eps), HeadNorm(config.head_dim, eps=config.norm_eps)


class LlamaBackbone(Backbone):
    """Rotary positions, RMSNorm, SwiGLU, grouped queries, no biases.

    Args:
        head_dim: width of a head; None: d_model / heads.
        frequencies: rotary frequencies, where they are not those of `rope_theta` (scaled for longer texts).
    """

    name = "llama"
    bias = False
    rotary_positions = True
    grouped_queries = True
    _tp_plan = Backbone._tp_plan | {"blocks.*.mlp.gate": "colwise"}

    def __init__(
        self, config: "CoCoMixConfig", *, head_dim: int | None = None, frequencies: list[float] | None = None
    ) -> None:
        super().__init__(config)
        self.head_dim, self.theta, self.frequencies = config.head_dim, config.rope_theta, frequencies

    def norm(self, config: "CoCoMixConfig") -> nn.Module:
        return nn.RMSNorm(config.hidden_size, eps=config.norm_eps)

    def mlp(self, config: "CoCoMixConfig") -> nn.Module:
        return SwiGluMLP(config)

    def embed(self, embedded: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return F.dropout(embedded, self.dropout, self.training)

    def rotary(self, positions: torch.Tensor, dtype: torch.dtype) -> Rotary | None:
        return rotary_table(positions, self.head_dim, self.theta, dtype, self.frequencies)

    @classmethod
    def inner_width(cls, width: int) -> int:
        return -(-8 * width // 48) * 16  # 8/3 of the width, rounded up to a multiple of 16

    @classmethod
    def plain_settings(cls, shape: "ModelShape", vocab_size: int, seq_len: int, special: SpecialIds) -> dict[str, Any]:
        """Fields of Transformers' configuration for this family and those made of its parts."""
        return {
            "vocab_size": vocab_size,
            "max_position_embeddings": seq_len,
            "hidden_size": shape.width,
            "intermediate_size": cls.inner_width(shape.width),
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads or shape.heads,
            "tie_word_embeddings": shape.tie_head,
            # No pad_token_id: Llama would freeze that row of its embedding at zero; here it is the end-of-text row.
            "bos_token_id": special["bos_token_id"],
            "eos_token_id": special["eos_token_id"],
        }

    @classmethod
    def plain_model(cls, shape: "ModelShape", vocab_size: int, seq_len: int, special: SpecialIds) -> PreTrainedModel:
        return LlamaForCausalLM(LlamaConfig(**cls.plain_settings(shape, vocab_size, seq_len, special)))


class Qwen2Backbone(LlamaBackbone):
    """Llama's parts, with biases of query, key and value."""

    name = "qwen2"
    bias = True
    out_bias = False

    @classmethod
    def plain_model(cls, shape: "ModelShape", vocab_size: int, seq_len: int, special: SpecialIds) -> PreTrainedModel:
        return Qwen2ForCausalLM(Qwen2Config(**cls.plain_settings(shape, vocab_size, seq_len, special)))


class Qwen3Backbone(LlamaBackbone):
    """Llama's parts, and an RMSNorm of each head's query and key (QK-norm)."""

    name = "qwen3"

    def head_norms(self, config: "CoCoMixConfig") -> tuple[nn.Module, nn.Module]:
        return rms_head_norms(config)

    @classmethod
    def plain_model(cls, shape: "ModelShape", vocab_size: int, seq_len: int, special: SpecialIds) -> PreTrainedModel:
        settings = cls.plain_settings(shape, vocab_size, seq_len, special)
        return Qwen3ForCausalLM(Qwen3Config(**settings, head_dim=shape.width // shape.heads))


BACKBONES: Registry[type[Backbone]] = Registry(
    "backbone", [GPT2Backbone, LlamaBackbone, Qwen2Backbone, Qwen3Backbone], own=("config",)
)


def register_backbone(cls: type[Backbone]) -> type[Backbone]:
    """Register a backbone under its `name`; usable as a decorator."""
    return BACKBONES.register(cls)


class BlockRunner:
    """Runs the model's blocks in order, some at a time, with the masks, positions and cache that the slots need.

    The model runs the blocks below concept_layer with it and then passes it to the mixer, which runs the others.

    Args:
        blocks: the blocks, in order.
        backbone: for its rotary tables.
        positions: positions of the new tokens, int64 `[batch or 1, new]`.
        padding: 1 for tokens, 0 for padding, `[batch, past + new]`; None: no padding.
        past: number of tokens in the cache.
        cache: keys and values to read and extend, or None.
        hidden_states: a list to which the output of each block is appended, or None.
        attentions: a list to which the attention weights of each block are appended, or None.
        documents: numbers of the documents that attention does not cross, int64 `[batch, new]`; None: one text a row.
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        backbone: nn.Module,
        positions: torch.Tensor,
        padding: torch.Tensor | None = None,
        past: int = 0,
        cache: Cache | None = None,
        hidden_states: list[torch.Tensor] | None = None,
        attentions: list[torch.Tensor] | None = None,
        documents: torch.Tensor | None = None,
    ) -> None:
        self.documents = documents
        self._blocks, self._backbone = list(blocks), backbone
        self.positions, self.padding, self.past, self.cache = positions, padding, past, cache
        self.hidden_states, self.attentions = hidden_states, attentions

    @property
    def unmasked(self) -> bool:
        """Whether there is neither padding nor a cache nor a document, so that no mask beyond causality is needed."""
        return self.padding is None and self.cache is None and self.documents is None

    def run(
        self,
        hidden: torch.Tensor,
        *,
        slots: int = 1,
        blocks: int | None = None,
        extra_kv: torch.Tensor | None = None,
        visible: torch.Tensor | None = None,
        query_slots: slice | None = None,
    ) -> torch.Tensor:
        """Run the next `blocks` blocks (None: all remaining ones) over `slots` slots per token.

        Args:
            hidden: `[batch, new * slots, d_model]`.
            extra_kv: `[batch, new, d_model]`, one vector after each token that only gives keys and values.
            visible: False for slots that no query attends to, bool `[batch or 1, (past + new) * slots]`.
            query_slots: return only these slots; the last block does not compute the others.
        """

        def layout(window: int | None) -> AttentionLayout:
            return attention_layout(
                self.padding,
                self.positions.shape[1],
                self.past,
                slots=slots,
                key_slots=slots if extra_kv is None else 2 * slots,
                visible=visible,
                documents=self.documents,
                window=window,
                device=hidden.device,
            )

        positions = self.positions.repeat_interleave(slots, dim=1)
        return self._run(blocks, hidden, layout, positions, extra_kv, query_slots)

    def run_packed(self, hidden: torch.Tensor, token_of_slot: torch.Tensor) -> torch.Tensor:
        """Run all remaining blocks over slots of the tokens `token_of_slot`, int64 `[slots]`; only if `unmasked`."""

        def layout(window: int | None) -> AttentionLayout:
            packed = attention_layout(None, len(token_of_slot), 0, slots=1, device=hidden.device)
            if window is None or window >= self.positions.shape[1]:
                return packed
            near = token_of_slot[:, None] - token_of_slot[None, :] < window
            mask = packed.for_slots(slice(None), len(token_of_slot), hidden.device).mask
            return AttentionLayout(near[None, None] if mask is None else mask & near, causal=False)

        return self._run(None, hidden, layout, self.positions[:, token_of_slot], None, None)

    def _rotary(self, positions: torch.Tensor, dtype: torch.dtype, window: int | None) -> Rotary | None:
        table: Any = self._backbone.rotary if window is None else self._backbone.local_rotary
        return table(positions, dtype)

    def _run(
        self,
        count: int | None,
        hidden: torch.Tensor,
        layout_of: Callable[[int | None], AttentionLayout],
        positions: torch.Tensor,
        extra_kv: torch.Tensor | None,
        query_slots: slice | None,
    ) -> torch.Tensor:
        blocks, self._blocks = self._blocks[:count], self._blocks[len(self._blocks[:count]) :]
        windows = dict.fromkeys(getattr(block, "window", None) for block in blocks)
        layouts = {window: layout_of(window)._replace(weights=self.attentions) for window in windows}
        tables = {window: self._rotary(positions, hidden.dtype, window) for window in windows}
        collects = self.hidden_states is not None or self.attentions is not None
        for block in blocks:
            window = getattr(block, "window", None)
            layout, rotary = layouts[window], tables[window]
            arguments = {"layout": layout, "rotary": rotary, "cache": self.cache, "extra_kv": extra_kv}
            # A caller that collects hidden states or weights gets all slots of every block, the last one included.
            if query_slots is not None and block is blocks[-1] and not collects:
                fewer = layout.for_slots(query_slots, hidden.shape[1], hidden.device)
                return block(hidden, **arguments | {"layout": fewer, "query_slots": query_slots})
            hidden = block(hidden, **arguments)
            if self.hidden_states is not None:
                self.hidden_states.append(hidden)
        return hidden if query_slots is None else hidden[:, query_slots]

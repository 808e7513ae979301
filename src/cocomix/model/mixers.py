"""How a predicted vector joins the hidden states: one small class a way, registered in `MIXERS`.

A mixer writes the upper half of the forward pass: it decides what stands in the slots of the remaining blocks and
which of them feed the head. Masks, positions and the cache follow from that (`BlockRunner`). It also says what the
upper blocks cost, so that FLOPs are counted where they are caused.

`interleave` and `add` are the paper's. The others are cheaper, to see whether the gain survives:
`keys_values` (the vector is only attended to), `every` (a slot every m tokens), `drop_tokens` (token slots leave
after a few blocks), `gated_add`, and `none` (concepts are predicted, never mixed in).
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import nn

from cocomix.model.transformer import BlockRunner
from cocomix.utils.registry import Registry

TOKENS, CONCEPTS = slice(0, None, 2), slice(1, None, 2)
"""Where tokens and their vectors stand when interleaved."""


class BlockCost(NamedTuple):
    """Operations of one block for one token with one slot."""

    linear: float
    """projections and MLP"""
    attention: float
    """scores and weighted sum over the whole context"""
    keys_values: float
    """the part of `linear` that makes keys and values"""


class Mixer(nn.Module, ABC):
    """Interface of all mixings.

    Args:
        hidden_size: d_model.
        options: the mixing's own settings, keyword arguments of its class.
    """

    name: ClassVar[str]
    """What settings call it."""
    uses_vector: ClassVar[bool] = True
    """Whether the vector is used at all."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, hidden: torch.Tensor, vector: torch.Tensor | None, upper_blocks: BlockRunner) -> torch.Tensor:
        """What feeds the final norm and the head, `[batch, seq, d_model]`.

        Args:
            hidden: hidden states entering the upper blocks, `[batch, seq, d_model]`.
            vector: what was predicted, `[batch, seq, d_model]`.
            upper_blocks: runs the blocks from concept_layer on.
        """

    def cached_slots(self, blocks: int) -> list[int]:
        """Cache entries a token has in each of `blocks` upper blocks."""
        return [1] * blocks

    def upper_flops(self, blocks: int, hidden_size: int, cost: BlockCost) -> float:
        """Forward operations per token of `blocks` upper blocks, what the mixing itself adds included."""
        return blocks * (cost.linear + cost.attention)


class InterleaveMixer(Mixer):
    """(h1, c1, h2, c2, ...): a slot for each vector after its token; these slots feed the head."""

    name = "interleave"

    def forward(self, hidden: torch.Tensor, vector: torch.Tensor | None, upper_blocks: BlockRunner) -> torch.Tensor:
        return upper_blocks.run(_interleaved(hidden, vector), slots=2, query_slots=CONCEPTS)

    def cached_slots(self, blocks: int) -> list[int]:
        return [2] * blocks

    def upper_flops(self, blocks: int, hidden_size: int, cost: BlockCost) -> float:
        return _interleaved_flops(blocks, cost)


class AddMixer(Mixer):
    """h + c: no extra slot, so the upper blocks cost what they cost in a plain model."""

    name = "add"

    def forward(self, hidden: torch.Tensor, vector: torch.Tensor | None, upper_blocks: BlockRunner) -> torch.Tensor:
        return upper_blocks.run(hidden + _given(vector, hidden))


class GatedAddMixer(Mixer):
    """h + sigmoid(G h + g) * c: each hidden state chooses, channel by channel, how much of the vector it takes."""

    name = "gated_add"

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size)
        self.gate = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden: torch.Tensor, vector: torch.Tensor | None, upper_blocks: BlockRunner) -> torch.Tensor:
        return upper_blocks.run(hidden + torch.sigmoid(self.gate(hidden)) * _given(vector, hidden))

    def upper_flops(self, blocks: int, hidden_size: int, cost: BlockCost) -> float:
        return super().upper_flops(blocks, hidden_size, cost) + 2 * hidden_size**2


class KeysValuesMixer(Mixer):
    """Vectors are extra keys and values of every upper block: no query, no MLP, no slot of their own."""

    name = "keys_values"

    def forward(self, hidden: torch.Tensor, vector: torch.Tensor | None, upper_blocks: BlockRunner) -> torch.Tensor:
        return upper_blocks.run(hidden, extra_kv=_given(vector, hidden))

    def cached_slots(self, blocks: int) -> list[int]:
        return [2] * blocks

    def upper_flops(self, blocks: int, hidden_size: int, cost: BlockCost) -> float:
        return blocks * (cost.linear + cost.keys_values + 2 * cost.attention)


class EveryMixer(Mixer):
    """A slot after every m-th token, seen by the tokens after it; token slots feed the head.

    Places are counted in each row's own tokens. Training and scoring run over the slots there are; with a cache or
    padding every token has a second slot, hidden from all where it is not due, which gives the same result.

    Args:
        every: m.
    """

    name = "every"

    def __init__(self, hidden_size: int, every: int = 4) -> None:
        super().__init__(hidden_size)
        self.every = every

    def forward(self, hidden: torch.Tensor, vector: torch.Tensor | None, upper_blocks: BlockRunner) -> torch.Tensor:
        vector = _given(vector, hidden)
        if not upper_blocks.unmasked:
            visible = self._visible(upper_blocks, hidden.shape[1], hidden.device)
            return upper_blocks.run(_interleaved(hidden, vector), slots=2, visible=visible, query_slots=TOKENS)
        seq = hidden.shape[1]
        tokens = torch.arange(seq, device=hidden.device)
        token_of_slot = torch.cat((tokens, tokens[self.every - 1 :: self.every]))
        order = token_of_slot.argsort(stable=True)  # a token first, then its slot
        slots = torch.cat((hidden, vector[:, self.every - 1 :: self.every]), dim=1)[:, order]
        return upper_blocks.run_packed(slots, token_of_slot[order])[:, order.argsort()[:seq]]

    def _visible(self, upper_blocks: BlockRunner, new: int, device: torch.device) -> torch.Tensor:
        if upper_blocks.padding is None:
            places = torch.arange(upper_blocks.past + new, device=device)[None]
        else:
            places = upper_blocks.padding.long().cumsum(-1) - 1
        due = (places + 1) % self.every == 0
        return torch.stack((torch.ones_like(due), due), dim=2).flatten(1)

    def cached_slots(self, blocks: int) -> list[int]:
        return [2] * blocks

    def upper_flops(self, blocks: int, hidden_size: int, cost: BlockCost) -> float:
        slots = 1 + 1 / self.every
        return blocks * (slots * cost.linear + slots**2 * cost.attention)


class DropTokensMixer(Mixer):
    """Interleaved for a few blocks, then the vectors' slots go on alone and feed the head.

    Args:
        blocks: upper blocks with both slots.
    """

    name = "drop_tokens"

    def __init__(self, hidden_size: int, blocks: int = 1) -> None:
        super().__init__(hidden_size)
        self.blocks = blocks

    def forward(self, hidden: torch.Tensor, vector: torch.Tensor | None, upper_blocks: BlockRunner) -> torch.Tensor:
        slots = _interleaved(hidden, vector)
        concepts = upper_blocks.run(slots, slots=2, blocks=self.blocks, query_slots=CONCEPTS)
        return upper_blocks.run(concepts)

    def cached_slots(self, blocks: int) -> list[int]:
        both = min(self.blocks, blocks)
        return [2] * both + [1] * (blocks - both)

    def upper_flops(self, blocks: int, hidden_size: int, cost: BlockCost) -> float:
        both = min(self.blocks, blocks)
        return _interleaved_flops(both, cost) + (blocks - both) * (cost.linear + cost.attention)


class NoMixer(Mixer):
    """The vector is not used: concepts shape the hidden states through their loss alone."""

    name = "none"

    uses_vector = False

    def forward(self, hidden: torch.Tensor, vector: torch.Tensor | None, upper_blocks: BlockRunner) -> torch.Tensor:
        return upper_blocks.run(hidden)


def _interleaved_flops(blocks: int, cost: BlockCost) -> float:
    """Forward operations per token of `blocks` blocks over both slots, of which the vectors' are then read."""
    whole = 2 * cost.linear + 4 * cost.attention  # two queries a token, each over twice as many keys
    last = cost.linear + cost.keys_values + 2 * cost.attention  # the token's slot gives keys and values only
    return (blocks - 1) * whole + last


def _given(vector: torch.Tensor | None, hidden: torch.Tensor) -> torch.Tensor:
    assert vector is not None, "this mixing uses the vector"
    return vector.to(hidden.dtype)


def _interleaved(hidden: torch.Tensor, vector: torch.Tensor | None) -> torch.Tensor:
    return torch.stack((hidden, _given(vector, hidden)), dim=2).flatten(1, 2)


MIXERS: Registry[type[Mixer]] = Registry(
    "mixer",
    [InterleaveMixer, AddMixer, GatedAddMixer, KeysValuesMixer, EveryMixer, DropTokensMixer, NoMixer],
    own=("hidden_size",),
)


def register_mixer(cls: type[Mixer]) -> type[Mixer]:
    """Make a mixer of your own known by its `name`; usable as a decorator."""
    return MIXERS.register(cls)

"""Mixers: how the predicted vector joins the hidden states in the upper blocks.

A mixer is the upper half of the forward pass. It decides what the slots of the upper blocks hold and which of them feed
the head; masks, positions and the cache follow from that (`BlockRunner`). It also counts the FLOPs of the upper blocks.
A mixer is one class in `MIXERS`; `register_mixer` adds one.

`interleave` and `add` are the paper's. The others are cheaper variants, to measure how much of the gain remains:
`keys_values` (the vector is only attended to), `every` (a slot every m tokens), `drop_tokens` (token slots leave after
a few blocks), `gated_add`, and `none` (concepts are predicted and never mixed in).

Mixers whose vectors have slots, or keys and values, of their own (`SlotMixer`) take the option `slot`: what such a slot
starts from. `bare` is the paper's, the vector alone; what its token's hidden state says must first be fetched by
attention. `residual` starts from the token's hidden state plus the vector. The token's own slot is the same either way.

Some mixers leave a model as it is where the vector is zero (`leaves_model`), so that a model that was trained without
one can be given one. With `add` and `gated_add` it simply adds nothing. With a `residual` slot the slot is then a copy
of its token: attention over each of the earlier tokens twice is attention over them once, so the slots of vectors
compute what the tokens did before. But a token's own slot comes before its copy and sees itself once and all others
twice, so after a block it differs, and the next block reads it. So this holds where the slots of tokens end after one
block (`drop_tokens` with `blocks: 1`, or `interleave` and `keys_values` in the last block) and nowhere else; a `bare`
slot is another token to attend to in any block.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import nn

from cocomix.model.transformer import BlockRunner
from cocomix.utils.registry import Registry

TOKENS, CONCEPTS = slice(0, None, 2), slice(1, None, 2)
"""Slots of tokens and of their vectors when interleaved."""


class BlockCost(NamedTuple):
    """FLOPs of one block for one token with one slot."""

    linear: float
    """projections and MLP"""
    attention: float
    """scores and weighted sum over the whole context"""
    keys_values: float
    """the part of `linear` that computes keys and values"""


class Mixer(nn.Module, ABC):
    """Base class of mixers.

    Args:
        hidden_size: d_model; a mixer's own options are further keyword arguments of its class.
    """

    name: ClassVar[str]
    """Name in settings."""
    uses_vector: ClassVar[bool] = True
    """Whether the vector is used."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, hidden: torch.Tensor, vector: torch.Tensor | None, upper_blocks: BlockRunner) -> torch.Tensor:
        """Run the upper blocks and return the input of the final norm and the head, `[batch, seq, d_model]`.

        Args:
            hidden: hidden states entering the upper blocks, `[batch, seq, d_model]`.
            vector: the predicted vector, `[batch, seq, d_model]`; None if the mixer does not use it.
            upper_blocks: runs the blocks from concept_layer on.
        """

    def leaves_model(self, blocks: int) -> bool:
        """Whether `blocks` upper blocks compute what they do without a mixer wherever the vector is zero."""
        return False

    def cached_slots(self, blocks: int) -> list[int]:
        """Cache entries per token in each of `blocks` upper blocks."""
        return [1] * blocks

    def upper_flops(self, blocks: int, hidden_size: int, cost: BlockCost) -> float:
        """Forward FLOPs per token of `blocks` upper blocks, including those of the mixer itself."""
        return blocks * (cost.linear + cost.attention)


Slot = Literal["bare", "residual"]


class SlotMixer(Mixer):
    """Base class of mixers whose vectors have slots, or keys and values, beside those of the tokens.

    Args:
        slot: what the vector's slot starts from: "bare", the vector; "residual", its token's hidden state + the vector.
    """

    def __init__(self, hidden_size: int, slot: Slot = "bare") -> None:
        super().__init__(hidden_size)
        self.slot = slot

    def start(self, hidden: torch.Tensor, vector: torch.Tensor | None) -> torch.Tensor:
        """What the vectors' slots start from, `[batch, seq, d_model]`."""
        vector = _required(vector, hidden)
        return vector if self.slot == "bare" else hidden + vector

    def interleaved(self, hidden: torch.Tensor, vector: torch.Tensor | None) -> torch.Tensor:
        """Slots of tokens and vectors in turns, `[batch, 2 * seq, d_model]`."""
        return torch.stack((hidden, self.start(hidden, vector)), dim=2).flatten(1, 2)


class InterleaveMixer(SlotMixer):
    """(h1, c1, h2, c2, ...): each vector has a slot after its token, and these slots feed the head."""

    name = "interleave"

    def forward(self, hidden: torch.Tensor, vector: torch.Tensor | None, upper_blocks: BlockRunner) -> torch.Tensor:
        return upper_blocks.run(self.interleaved(hidden, vector), slots=2, query_slots=CONCEPTS)

    def leaves_model(self, blocks: int) -> bool:
        return self.slot == "residual" and blocks == 1

    def cached_slots(self, blocks: int) -> list[int]:
        return [2] * blocks

    def upper_flops(self, blocks: int, hidden_size: int, cost: BlockCost) -> float:
        return _interleaved_flops(blocks, cost)


class AddMixer(Mixer):
    """h + c: no extra slot, so the upper blocks cost the same as in a plain model."""

    name = "add"

    def forward(self, hidden: torch.Tensor, vector: torch.Tensor | None, upper_blocks: BlockRunner) -> torch.Tensor:
        return upper_blocks.run(hidden + _required(vector, hidden))

    def leaves_model(self, blocks: int) -> bool:
        return True


class GatedAddMixer(Mixer):
    """h + sigmoid(G h + g) * c: a learned gate for each element of the vector."""

    name = "gated_add"

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size)
        self.gate = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden: torch.Tensor, vector: torch.Tensor | None, upper_blocks: BlockRunner) -> torch.Tensor:
        return upper_blocks.run(hidden + torch.sigmoid(self.gate(hidden)) * _required(vector, hidden))

    def leaves_model(self, blocks: int) -> bool:
        return True

    def upper_flops(self, blocks: int, hidden_size: int, cost: BlockCost) -> float:
        return super().upper_flops(blocks, hidden_size, cost) + 2 * hidden_size**2


class KeysValuesMixer(SlotMixer):
    """Vectors are extra keys and values in every upper block, without queries, MLP or slots."""

    name = "keys_values"

    def forward(self, hidden: torch.Tensor, vector: torch.Tensor | None, upper_blocks: BlockRunner) -> torch.Tensor:
        return upper_blocks.run(hidden, extra_kv=self.start(hidden, vector))

    def leaves_model(self, blocks: int) -> bool:
        return self.slot == "residual" and blocks == 1

    def cached_slots(self, blocks: int) -> list[int]:
        return [2] * blocks

    def upper_flops(self, blocks: int, hidden_size: int, cost: BlockCost) -> float:
        return blocks * (cost.linear + cost.keys_values + 2 * cost.attention)


class EveryMixer(SlotMixer):
    """A slot with the vector after every m-th token, which later tokens attend to; token slots feed the head.

    Tokens are counted in each row without padding, and in each document where attention does not cross them. Training
    and scoring run over only these slots. With a cache, padding or documents every token has a second slot, masked
    where it is not the m-th, which gives the same result.

    Args:
        every: m.
        slot: as in `SlotMixer`.
    """

    name = "every"

    def __init__(self, hidden_size: int, every: int = 4, slot: Slot = "bare") -> None:
        super().__init__(hidden_size, slot)
        self.every = every

    def forward(self, hidden: torch.Tensor, vector: torch.Tensor | None, upper_blocks: BlockRunner) -> torch.Tensor:
        if not upper_blocks.unmasked:
            visible = self._visible(upper_blocks, hidden.shape[1], hidden.device)
            slots = self.interleaved(hidden, vector)
            return upper_blocks.run(slots, slots=2, visible=visible, query_slots=TOKENS)
        seq, due = hidden.shape[1], slice(self.every - 1, None, self.every)
        starts = self.start(hidden[:, due], _required(vector, hidden)[:, due])
        tokens = torch.arange(seq, device=hidden.device)
        token_of_slot = torch.cat((tokens, tokens[due]))
        order = token_of_slot.argsort(stable=True)  # a token, then its vector's slot
        slots = torch.cat((hidden, starts), dim=1)[:, order]
        return upper_blocks.run_packed(slots, token_of_slot[order])[:, order.argsort()[:seq]]

    def _visible(self, upper_blocks: BlockRunner, new: int, device: torch.device) -> torch.Tensor:
        if upper_blocks.documents is not None:
            places = upper_blocks.positions
        elif upper_blocks.padding is None:
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


class DropTokensMixer(SlotMixer):
    """Interleaved for a few blocks; then only the slots of the vectors continue, and feed the head.

    Args:
        blocks: number of upper blocks with both slots.
        slot: as in `SlotMixer`.
    """

    name = "drop_tokens"

    def __init__(self, hidden_size: int, blocks: int = 1, slot: Slot = "bare") -> None:
        super().__init__(hidden_size, slot)
        self.blocks = blocks

    def forward(self, hidden: torch.Tensor, vector: torch.Tensor | None, upper_blocks: BlockRunner) -> torch.Tensor:
        slots = self.interleaved(hidden, vector)
        concepts = upper_blocks.run(slots, slots=2, blocks=self.blocks, query_slots=CONCEPTS)
        return upper_blocks.run(concepts)

    def leaves_model(self, blocks: int) -> bool:
        return self.slot == "residual" and min(self.blocks, blocks) == 1

    def cached_slots(self, blocks: int) -> list[int]:
        both = min(self.blocks, blocks)
        return [2] * both + [1] * (blocks - both)

    def upper_flops(self, blocks: int, hidden_size: int, cost: BlockCost) -> float:
        both = min(self.blocks, blocks)
        return _interleaved_flops(both, cost) + (blocks - both) * (cost.linear + cost.attention)


class NoMixer(Mixer):
    """The vector is not mixed in: concepts shape the hidden states through their loss only."""

    name = "none"

    uses_vector = False

    def forward(self, hidden: torch.Tensor, vector: torch.Tensor | None, upper_blocks: BlockRunner) -> torch.Tensor:
        return upper_blocks.run(hidden)

    def leaves_model(self, blocks: int) -> bool:
        return True


def _interleaved_flops(blocks: int, cost: BlockCost) -> float:
    """Forward FLOPs per token of `blocks` blocks over both slots, if only the vectors' slots are read afterwards."""
    both = 2 * cost.linear + 4 * cost.attention  # two queries per token, each over twice as many keys
    last = cost.linear + cost.keys_values + 2 * cost.attention  # the token's slot only gives keys and values
    return (blocks - 1) * both + last


def _required(vector: torch.Tensor | None, hidden: torch.Tensor) -> torch.Tensor:
    assert vector is not None, "this mixer needs the vector"
    return vector.to(hidden.dtype)


MIXERS: Registry[type[Mixer]] = Registry(
    "mixer",
    [InterleaveMixer, AddMixer, GatedAddMixer, KeysValuesMixer, EveryMixer, DropTokensMixer, NoMixer],
    own=("hidden_size",),
)


def register_mixer(cls: type[Mixer]) -> type[Mixer]:
    """Register a mixer under its `name`; usable as a decorator."""
    return MIXERS.register(cls)

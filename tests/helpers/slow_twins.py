"""A student by its definition: one row, one slot and one head at a time; no masks, no caches, no batches.

The obvious slow twin of every mixer (`MIXED`) and channel (`PREDICTED`) that is registered. A new one is one more
function here.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from cocomix import CoCoMixForCausalLM


class Slot(NamedTuple):
    """A place in the blocks."""

    owner: int
    """its token"""
    state: torch.Tensor
    """`[d_model]`"""
    read: bool = False
    """whether it feeds the final norm"""


class Slowly:
    """Runs a student's blocks over slots; each sees those before it and itself.

    Attributes:
        seen: states after the embedding and each block, `[slots, d_model]` each.
    """

    def __init__(self, model: CoCoMixForCausalLM) -> None:
        self.model, self.backbone, self.config = model, model.backbone, model.config
        self.seen: list[torch.Tensor] = []

    def lower(self, ids: Sequence[int]) -> list[torch.Tensor]:
        """Hidden states entering concept_layer, one a token."""
        states = [self.backbone.embed_tokens.weight[token] for token in ids]
        if self.config.backbone == "gpt2":
            states = [one + self.backbone.embed_positions.weight[place] for place, one in enumerate(states)]
        if self.config.backbone in ("gemma", "gemma3"):
            states = [one * math.sqrt(len(one)) for one in states]
        self.seen.append(torch.stack(states))
        slots = [Slot(place, one) for place, one in enumerate(states)]
        return [slot.state for slot in self.run(self.backbone.blocks[: self.config.concept_layer], slots)]

    def run(
        self, blocks: Any, slots: list[Slot], memory: list[torch.Tensor] | None = None, *, watched: bool = True
    ) -> list[Slot]:
        """`slots` after `blocks`; of `memory`, a vector a token, a slot sees those up to its own token's."""
        for block in blocks:
            slots = self._through(block, slots, memory or [])
            if watched:
                self.seen.append(torch.stack([slot.state for slot in slots]))
        return slots

    def _through(self, block: Any, slots: list[Slot], memory: list[torch.Tensor]) -> list[Slot]:
        made = [self._projected(block, slot.state, slot.owner) for slot in slots]
        extra = [self._projected(block, vector, owner) for owner, vector in enumerate(memory)]
        after = []
        for here, slot in enumerate(slots):
            sources = made[: here + 1] + (extra[: slot.owner + 1] if memory else [])
            heads = []
            for head, query in enumerate(made[here].queries):
                shared = head // (self.config.num_attention_heads // self.config.num_key_value_heads)
                scores = torch.stack([source.keys[shared] @ query for source in sources]) / math.sqrt(len(query))
                heads.append(torch.softmax(scores, 0) @ torch.stack([source.values[shared] for source in sources]))
            out = block.attention.out
            branch = F.linear(torch.cat(heads), out.weight, out.bias)
            sandwich = self.config.backbone == "gemma3"
            mixed = slot.state + (block.norm_after_1(branch) if sandwich else branch)
            branch = block.mlp(block.norm_2(mixed))
            after.append(slot._replace(state=mixed + (block.norm_after_2(branch) if sandwich else branch)))
        return after

    def _projected(self, block: Any, state: torch.Tensor, place: int) -> "Projected":
        qkv = block.attention.qkv
        parts = F.linear(block.norm_1(state), qkv.weight, qkv.bias).view(-1, block.attention.head_dim)
        queries, shared = self.config.num_attention_heads, self.config.num_key_value_heads
        asked, answering = list(parts[:queries]), list(parts[queries : queries + shared])
        if self.config.backbone in ("qwen3", "gemma3"):
            asked = [self._head_norm(one, block.attention.q_norm.weight) for one in asked]
            answering = [self._head_norm(one, block.attention.k_norm.weight) for one in answering]
        turned = [self._turned(one, place) for one in (*asked, *answering)]
        return Projected(turned[:queries], turned[queries:], list(parts[queries + shared :]))

    def _head_norm(self, vector: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """A query or key over its root mean square."""
        return weight * vector / (vector.dot(vector) / len(vector) + self.config.norm_eps).sqrt()

    def _turned(self, vector: torch.Tensor, place: int) -> torch.Tensor:
        """Rotary positions: the pair (i, i + half) as a complex number, turned by place * theta^(-2i / width)."""
        if self.config.backbone == "gpt2":
            return vector
        half = len(vector) // 2
        turned = [torch.empty(0)] * len(vector)
        for i in range(half):
            angle = place * self.config.rope_theta ** (-2 * i / len(vector))
            turned[i] = vector[i] * math.cos(angle) - vector[i + half] * math.sin(angle)
            turned[i + half] = vector[i + half] * math.cos(angle) + vector[i] * math.sin(angle)
        return torch.stack(turned)


class Projected(NamedTuple):
    """What a vector asks and answers, `[head_dim]` a head."""

    queries: list[torch.Tensor]
    keys: list[torch.Tensor]
    values: list[torch.Tensor]


Vectors = list[torch.Tensor]


def _starts(slowly: Slowly, h: Vectors, c: Vectors) -> Vectors:
    """What the vectors' slots start from."""
    residual = slowly.config.mixer_options.get("slot") == "residual"
    return [h[t] + c[t] if residual else c[t] for t in range(len(h))]


def _both(slowly: Slowly, h: Vectors, c: Vectors) -> list[Slot]:
    starts = _starts(slowly, h, c)
    return [one for t in range(len(h)) for one in (Slot(t, h[t]), Slot(t, starts[t], read=True))]


def _alone(h: Vectors) -> list[Slot]:
    return [Slot(t, one, read=True) for t, one in enumerate(h)]


def _interleave(slowly: Slowly, blocks: Any, h: Vectors, c: Vectors) -> list[Slot]:
    return slowly.run(blocks, _both(slowly, h, c))


def _add(slowly: Slowly, blocks: Any, h: Vectors, c: Vectors) -> list[Slot]:
    return slowly.run(blocks, _alone([a + b for a, b in zip(h, c, strict=True)]))


def _gated_add(slowly: Slowly, blocks: Any, h: Vectors, c: Vectors) -> list[Slot]:
    gate = slowly.model.mixer.gate
    opened = [torch.sigmoid(gate.weight @ one + gate.bias) for one in h]
    return slowly.run(blocks, _alone([a + g * b for a, g, b in zip(h, opened, c, strict=True)]))


def _keys_values(slowly: Slowly, blocks: Any, h: Vectors, c: Vectors) -> list[Slot]:
    return slowly.run(blocks, _alone(h), memory=_starts(slowly, h, c))


def _every(slowly: Slowly, blocks: Any, h: Vectors, c: Vectors) -> list[Slot]:
    slots, starts = [], _starts(slowly, h, c)
    for t, one in enumerate(h):
        slots.append(Slot(t, one, read=True))
        if (t + 1) % slowly.config.mixer_options["every"] == 0:
            slots.append(Slot(t, starts[t]))
    return slowly.run(blocks, slots)


def _drop_tokens(slowly: Slowly, blocks: Any, h: Vectors, c: Vectors) -> list[Slot]:
    first = slowly.config.mixer_options["blocks"]
    kept = [slot for slot in slowly.run(blocks[:first], _both(slowly, h, c)) if slot.read]
    return slowly.run(blocks[first:], kept)


def _none(slowly: Slowly, blocks: Any, h: Vectors, c: Vectors) -> list[Slot]:
    return slowly.run(blocks, _alone(h))


MIXED: dict[str, Callable[[Slowly, Any, Vectors, Vectors], list[Slot]]] = {
    "interleave": _interleave,
    "add": _add,
    "gated_add": _gated_add,
    "keys_values": _keys_values,
    "every": _every,
    "drop_tokens": _drop_tokens,
    "none": _none,
}


class Found(NamedTuple):
    """What a channel predicts for one row."""

    vectors: Vectors
    logits: Vectors | None = None
    hidden: Vectors | None = None
    parts: tuple[Vectors, Vectors] = ([], [])
    """summands of the channel's own loss: cross entropies of next codes, squared gaps to the codes"""


def _normed(h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    mean, n = h.sum() / len(h), len(h)
    std = ((h - mean).square().sum() / (n - 1)).sqrt()
    return (h - mean) / (std + 1e-5), mean, std


def concept_vector(model: CoCoMixForCausalLM, z: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """c_hat = ((W TopK(z) + b + pre_bias) * std + mean) * scale of one position: z `[C]`, h `[d_model]`."""
    head, vector = model.channel.head, model.channel.vector
    largest = sorted(range(len(z)), key=lambda i: -z[i].item())[: head.top_k]
    _, mean, std = _normed(h)
    mixed = sum((z[i] * vector.weight[i] for i in largest), vector.bias + head.pre_bias)
    return (mixed * std + mean) * _scale(model)


def _scale(model: CoCoMixForCausalLM) -> torch.Tensor | float:
    return 1.0 if model.channel.scale is None else model.channel.scale[0]


def _size(x: torch.Tensor) -> torch.Tensor:
    return (x.square().sum() / len(x) + 1e-12).sqrt()


def _concepts(slowly: Slowly, h: Vectors) -> Found:
    head = slowly.model.channel.head
    logits = [head.proj.weight @ (_normed(one)[0] - head.pre_bias) + head.proj.bias for one in h]
    if slowly.model.channel.vector is None:
        return Found([], logits)
    return Found([concept_vector(slowly.model, z, one) for z, one in zip(logits, h, strict=True)], logits)


def _pause(slowly: Slowly, h: Vectors) -> Found:
    vectors = [slowly.model.channel.vector] * len(h)
    if slowly.config.backbone in ("gemma", "gemma3"):  # as a token's embedding
        vectors = [one * math.sqrt(len(one)) for one in vectors]
    if slowly.config.backbone == "gpt2":
        vectors = [one + slowly.backbone.embed_positions.weight[place] for place, one in enumerate(vectors)]
    if slowly.model.channel.scale is not None:
        scale = slowly.model.channel.scale[0]
        vectors = [scale * one * _size(state) / _size(one) for one, state in zip(vectors, h, strict=True)]
    return Found(vectors)


def _hidden(slowly: Slowly, h: Vectors) -> Found:
    head, back = slowly.model.channel.head, slowly.model.channel.back
    normed = [_normed(one) for one in h]
    hidden = [head.weight @ one + head.bias for one, _, _ in normed]
    vectors = [(back.weight @ y + back.bias) * std + mean for y, (_, mean, std) in zip(hidden, normed, strict=True)]
    return Found([one * _scale(slowly.model) for one in vectors], hidden=hidden)


def _ncp(slowly: Slowly, h: Vectors) -> Found:
    channel, options = slowly.model.channel, slowly.config.channel_options
    size, segments = options["chunk"], options["segments"]
    book = channel.codebook
    chunks = [torch.stack(h[at : at + size]).mean(0) for at in range(0, len(h) - size + 1, size)]
    states = slowly.run(channel.blocks, [Slot(j, one) for j, one in enumerate(chunks)], watched=False)
    guesses = [channel.predict(channel.norm(slot.state)).view(segments, -1) for slot in states]
    vectors: Vectors = [channel.start] * size
    for guess in guesses:
        expected = torch.cat([guess[s].softmax(-1) @ book[s] for s in range(segments)])
        vectors += [channel.project(expected)] * size
    if channel.scale is not None:
        vectors = [channel.scale[0] * one * _size(state) for one, state in zip(vectors, h, strict=False)]
    codes, gaps = [], []
    for chunk in chunks:
        parts = F.layer_norm(chunk, chunk.shape).view(segments, -1)
        codes.append([int((book[s] - parts[s]).square().sum(-1).argmin()) for s in range(segments)])
        for s, code in enumerate(codes[-1]):
            pulled = (parts[s].detach() - book[s, code]).square() + 0.25 * (parts[s] - book[s, code].detach()).square()
            gaps.append(pulled.mean())
    named: Vectors = []
    for guess, after in zip(guesses, codes[1:], strict=False):
        named += [-F.log_softmax(guess[s], -1)[after[s]] for s in range(segments)]
    return Found(vectors[: len(h)], parts=(named, gaps))


def _mlp(slowly: Slowly, h: Vectors) -> Found:
    channel = slowly.model.channel
    if channel.up is None:
        return Found([])
    vectors = []
    for one in h:
        normed, mean, std = _normed(one)
        x = channel.up.weight @ normed + channel.up.bias
        x = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
        vectors.append(((channel.down.weight @ x + channel.down.bias) * std + mean) * _scale(slowly.model))
    return Found(vectors)


PREDICTED: dict[str, Callable[[Slowly, Vectors], Found]] = {
    "concepts": _concepts,
    "pause": _pause,
    "hidden": _hidden,
    "ncp": _ncp,
    "mlp": _mlp,
}


class Row(NamedTuple):
    """What a student makes of one row."""

    logits: torch.Tensor
    """`[seq, vocab]`"""
    found: Found
    seen: list[torch.Tensor]
    """after the embedding and each block, `[slots, d_model]`"""


def row_by_row(model: CoCoMixForCausalLM, ids: Sequence[int]) -> Row:
    """The student's definition applied to one row of tokens."""
    slowly = Slowly(model)
    hidden = slowly.lower(ids)
    found = PREDICTED[model.config.channel](slowly, hidden)
    upper = model.backbone.blocks[model.config.concept_layer :]
    slots = MIXED[model.config.mixer](slowly, upper, hidden, found.vectors)
    read = [model.backbone.final_norm(slot.state) for slot in slots if slot.read]
    return Row(torch.stack([model.lm_head.weight @ one for one in read]), found, slowly.seen)

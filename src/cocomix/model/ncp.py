"""Next-concept prediction in the manner of ConceptLM (arXiv 2602.08984), as one more channel.

The hidden states of each chunk of tokens are pooled and quantised, segment by segment, with a learned codebook; a
small causal stack over the chunks predicts the next chunk's codes; their expected codebook entry is the vector of
every token in that next chunk. No teacher: the codes are the student's own. Choices of ours where the paper leaves
some: the stack reads the pooled states themselves rather than their codes, and pooled states are layer-normalised
before quantisation, so that the codebook cannot win by shrinking them. Chunks are counted in each row's own tokens.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from cocomix.model.backbones import Backbone
from cocomix.model.channel import Channel, Predicted
from cocomix.model.masks import Attend
from cocomix.model.mixers import BlockCost
from cocomix.utils.errors import ConfigError

if TYPE_CHECKING:
    from cocomix.model.configuration_cocomix import CoCoMixConfig

COMMITMENT = 0.25
"""Weight of pulling pooled states to their code, against pulling the code to them (van den Oord et al. 2017)."""


class NextConceptChannel(Channel):
    """Loss: ncp_weight * CE(codes of the next chunk) + vq_weight * (|sg(u) - e|^2 + 0.25 |u - sg(e)|^2).

    Args:
        chunk: tokens a chunk k.
        segments: parts S a pooled state is cut in; divides hidden_size.
        codes: codes N a part.
        layers: blocks over the chunks.
        ncp_weight, vq_weight: weights of the two losses.
    """

    cacheable = False  # a vector depends on all the tokens of the chunks before

    def __init__(
        self,
        config: "CoCoMixConfig",
        backbone: Backbone,
        with_vector: bool,
        *,
        chunk: int = 4,
        segments: int = 4,
        codes: int = 64,
        layers: int = 1,
        ncp_weight: float = 0.1,
        vq_weight: float = 0.1,
    ) -> None:
        super().__init__(config, backbone, with_vector)
        d = config.hidden_size
        if d % segments:
            raise ConfigError(f"hidden_size {d} is not a multiple of segments {segments}; change one of them")
        self.chunk, self.segments, self.codes = chunk, segments, codes
        self.ncp_weight, self.vq_weight = ncp_weight, vq_weight
        self.blocks = nn.ModuleList(backbone.block(config, index) for index in range(layers))
        self.norm = backbone.norm(config)
        self.predict = nn.Linear(d, segments * codes)
        self.codebook = nn.Parameter(torch.empty(segments, codes, d // segments))
        self.project = nn.Linear(d, d) if with_vector else None
        self.start = nn.Parameter(torch.empty(d)) if with_vector else None
        self._backbone = (backbone,)  # in a tuple: its weights are the model's, not this module's

    def forward(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        padding: torch.Tensor | None,
        labels: torch.Tensor | None = None,
    ) -> Predicted:
        if padding is None:
            return self._aligned(hidden, None)
        # Every row's tokens to the front, so that chunks begin with its first token.
        order = padding.long().argsort(dim=1, descending=True, stable=True)
        places = order[..., None].expand_as(hidden)
        found = self._aligned(hidden.gather(1, places), padding.bool().gather(1, order))
        vector = None if found.vector is None else torch.zeros_like(found.vector).scatter(1, places, found.vector)
        return found._replace(vector=vector)

    def _aligned(self, hidden: torch.Tensor, real: torch.Tensor | None) -> Predicted:
        batch, seq, d = hidden.shape
        whole = seq // self.chunk
        if not whole:
            vector = None if self.start is None else self.start.expand_as(hidden)
            return Predicted(vector, loss=hidden.new_zeros(()) if self.training else None)
        pooled = hidden[:, : whole * self.chunk].view(batch, whole, self.chunk, d).mean(2)
        logits = self._predict(pooled)
        complete = None
        if real is not None:
            complete = real[:, : whole * self.chunk].view(batch, whole, self.chunk).all(-1)
        loss = self._loss(pooled, logits, complete) if self.training else None
        return Predicted(self._vectors(logits, seq), loss=loss)

    def _predict(self, pooled: torch.Tensor) -> torch.Tensor:
        """Code logits of the chunk after each one, `[batch, chunks, S, N]`."""
        chunks = pooled.shape[1]
        rotary = self._backbone[0].rotary(torch.arange(chunks, device=pooled.device)[None], pooled.dtype)
        state = pooled
        for block in self.blocks:
            state = block(state, layout=Attend(None, causal=True), rotary=rotary)
        return self.predict(self.norm(state)).unflatten(-1, (self.segments, self.codes))

    def _vectors(self, logits: torch.Tensor, seq: int) -> torch.Tensor | None:
        """A token's vector: its chunk's expected codes as the chunks before predict them, `[batch, seq, d_model]`."""
        if self.project is None or self.start is None:
            return None
        expected = torch.einsum("bjsn,sne->bjse", logits.softmax(-1), self.codebook.to(logits.dtype)).flatten(2)
        later = self.project(expected)
        first = self.start.to(later.dtype).expand(len(later), 1, -1)
        return torch.cat((first, later), dim=1).repeat_interleave(self.chunk, dim=1)[:, :seq]

    def _loss(self, pooled: torch.Tensor, logits: torch.Tensor, complete: torch.Tensor | None) -> torch.Tensor:
        wide = torch.promote_types(pooled.dtype, torch.float32)
        parts = F.layer_norm(pooled.to(wide), pooled.shape[-1:]).unflatten(-1, (self.segments, -1))
        book = self.codebook.to(wide)
        with torch.no_grad():
            distance = book.square().sum(-1) - 2 * torch.einsum("bjse,sne->bjsn", parts, book)
            chosen = distance.argmin(-1)  # [batch, chunks, S]
        if complete is None:
            complete = chosen.new_ones(chosen.shape[:2], dtype=torch.bool)
        entries = book[torch.arange(self.segments, device=chosen.device), chosen]
        gap = (parts.detach() - entries).square() + COMMITMENT * (parts - entries.detach()).square()
        quantisation = (gap.mean((-1, -2)) * complete).sum() / complete.sum().clamp_min(1)
        targets = chosen[:, 1:].masked_fill(~complete[:, 1:, None], -100).flatten()
        guesses = logits[:, :-1].to(wide).flatten(0, 2)
        summed = F.cross_entropy(guesses, targets, ignore_index=-100, reduction="sum")
        return self.vq_weight * quantisation + self.ncp_weight * summed / (targets != -100).sum().clamp_min(1)

    @classmethod
    def flops(cls, config: "CoCoMixConfig", cost: BlockCost, with_vector: bool) -> float:
        options = {"chunk": 4, "segments": 4, "codes": 64, "layers": 1} | config.channel_options
        k, d, n = options["chunk"], config.hidden_size, options["codes"]
        stack = options["layers"] * (cost.linear + cost.attention / k)
        predict = 2 * d * options["segments"] * n
        quantise, expect = 2 * n * d, (2 * n * d + 2 * d * d if with_vector else 0)
        return (stack + predict + quantise + expect) / k

    def reset(self, std: float) -> None:
        nn.init.normal_(self.codebook)  # the pooled states' own scale: they are layer-normalised
        if self.start is not None:
            nn.init.normal_(self.start, std=std)

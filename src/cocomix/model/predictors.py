"""Predictors: what is predicted at concept_layer, and the vector that the mixer mixes in.

`ConceptPredictor` is the paper's. `PausePredictor`, `HiddenPredictor`, `NextConceptPredictor` and `MlpPredictor` are
what it is compared with. A predictor is one class in `PREDICTORS`; `register_predictor` adds one. In `config.json`
and in the state_dict a predictor is called `channel`.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from cocomix.kernels.linear_cross_entropy import LinearLosses, linear_losses
from cocomix.kernels.normalise import normalise, root_mean_square
from cocomix.kernels.plain_linear import apply_linear, plain_linear
from cocomix.kernels.sparse import largest, weighted_rows
from cocomix.model.mixers import BlockCost
from cocomix.model.transformer import AttentionLayout, Backbone, ParameterModule
from cocomix.model.vector_scale import (
    gelu_square,
    largest_squares,
    logit_variance,
    mean_square,
    softmax_squares,
    unit_std,
)
from cocomix.utils.errors import ConfigError
from cocomix.utils.registry import Registry

if TYPE_CHECKING:
    from cocomix.model.configuration_cocomix import CoCoMixConfig


class Prediction(NamedTuple):
    """Output of a predictor."""

    vector: torch.Tensor | None
    """`[batch, seq, d_model]`, for the mixer; None where the mixer uses none"""
    concept_logits: torch.Tensor | None = None
    """z, `[batch, seq, C]`"""
    hidden: torch.Tensor | None = None
    """prediction of the teacher's normalised hidden state, `[batch, seq, target_size]`"""
    loss: torch.Tensor | None = None
    """the predictor's own training loss, a scalar; only in training mode"""
    concept_losses: LinearLosses | None = None
    """cross entropies of the concept labels, where they are computed without keeping the logits"""


class Predictor(ParameterModule, ABC):
    """Base class of predictors.

    Args:
        config: the model's; its `channel_options` are the further keyword arguments of the class.
        backbone: the model's, for blocks of its family.
        with_vector: whether the mixer uses the vector; if not, the weights that compute it are left out.

    Attributes:
        with_vector: as given.
        scale: learned factor of the vector, `[1]`, which starts at `config.vector_scale`; None where that is not set.
    """

    name: ClassVar[str]
    """Name in settings."""
    cacheable: ClassVar[bool] = True
    """Whether the vector at a position depends on the hidden state of that position only, as a KV cache requires."""
    takes_scale: ClassVar[bool] = False
    """Whether `config.vector_scale` may be set: it has `init_as_hidden` and multiplies its vector by `scale`."""

    def __init__(self, config: "CoCoMixConfig", backbone: Backbone, with_vector: bool) -> None:
        super().__init__()
        self.with_vector = with_vector
        self._start = config.vector_scale if with_vector else None
        # Not a scalar, which FSDP2 cannot shard.
        self.scale = None if self._start is None else nn.Parameter(torch.empty(1))

    def reset_parameters(self, std: float) -> None:
        if self.scale is not None and self._start is not None:
            nn.init.constant_(self.scale, self._start)
            self.init_as_hidden()

    def init_as_hidden(self) -> None:
        """Initialise what makes the vector so that its rms is that of the hidden state; all else is initialised."""

    def start_at_zero(self) -> None:
        """Let the vector be zero whatever is predicted, of weights that have a gradient there.

        Raises:
            ConfigError: there are no such weights.
        """
        if self.with_vector:
            raise ConfigError(f"the channel {self.name} has no vector that could start at zero; use concepts")

    def scaled(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` times `scale`, if there is one."""
        return tensor if self.scale is None else tensor * self.scale

    @abstractmethod
    def forward(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        padding: torch.Tensor | None,
        labels: torch.Tensor | None = None,
    ) -> Prediction:
        """Predict from the hidden states that enter the upper blocks.

        Args:
            hidden: `[batch, seq, d_model]`.
            positions: positions of the tokens, int64 `[batch or 1, seq]`.
            padding: 1 for tokens, 0 for padding, `[batch, past + seq]`; None: no padding.
            labels: concepts of each position, int64 `[batch, seq, K_attr]`, if their losses are enough and the logits
                are not needed. `ConceptPredictor` also takes weights of these losses, of the same shape, after them.
        """

    @classmethod
    def input_gradient_flops(cls, config: "CoCoMixConfig", with_vector: bool) -> float:
        """FLOPs per token of the gradient of the hidden states it reads, which is not made where these have none."""
        return 0.0

    @classmethod
    @abstractmethod
    def flops(cls, config: "CoCoMixConfig", cost: BlockCost, with_vector: bool) -> float:
        """Forward FLOPs per token; `cost` is that of one block over the whole context."""


class ConceptPrediction(NamedTuple):
    """Output of `ConceptHead`: predicted concepts, and what maps them back to the scale of the hidden states."""

    logits: torch.Tensor | None
    """z, `[batch, seq, C]`; None where only the losses were computed"""
    values: torch.Tensor
    """the K largest logits, without ReLU, `[batch, seq, K]`"""
    ids: torch.Tensor
    """their concepts, int64 `[batch, seq, K]`"""
    mean: torch.Tensor
    """mean of the hidden state, `[batch, seq, 1]`"""
    std: torch.Tensor
    """unbiased standard deviation of the hidden state, `[batch, seq, 1]`"""
    pre_bias: torch.Tensor
    """learned centre, `[d_model]`, subtracted before the prediction and added to the vector"""
    losses: LinearLosses | None = None
    """cross entropies of the labels, where the logits were not kept"""


class ConceptHead(ParameterModule):
    """Predicts concept logits: z = M (norm(h) - pre_bias) + b, with norm(h) = (h - mean) / (std + 1e-5) as in the SAE.

    Args:
        hidden_size: d_model.
        num_concepts: C.
        top_k: K, number of concepts kept.
    """

    def __init__(self, hidden_size: int, num_concepts: int, top_k: int) -> None:
        super().__init__()
        self.num_concepts, self.top_k = num_concepts, top_k
        self.pre_bias = nn.Parameter(torch.zeros(hidden_size))
        self.proj = nn.Linear(hidden_size, num_concepts)

    def reset_parameters(self, std: float) -> None:
        nn.init.zeros_(self.pre_bias)

    def forward(
        self,
        hidden: torch.Tensor,
        labels: torch.Tensor | None = None,
        top_k: int | None = None,
        label_weights: torch.Tensor | None = None,
    ) -> ConceptPrediction:
        """Prediction for `hidden` `[batch, seq, d_model]`, with `top_k` of the logits; None: K.

        With `labels` int64 `[batch, seq, K_attr]` (-100 is ignored) their losses are computed and the logits are not
        kept, unless the projection is not a plain linear layer (adapters, hooks), which computes all logits.
        """
        top_k = self.top_k if top_k is None else top_k
        normed, mean, std = normalise(hidden)
        # A copy: where FSDP2 gathers this module alone, it frees the parameter after the call, before the vector's use.
        pre_bias = self.pre_bias.clone()
        centred = normed - pre_bias
        if labels is None or not plain_linear(self.proj):
            logits = apply_linear(self.proj, centred)
            values, ids = largest(logits, top_k) if top_k else _nothing(logits)
            return ConceptPrediction(logits, values, ids, mean, std, pre_bias)
        weights = self.proj.weight, self.proj.bias
        shares = None if label_weights is None else label_weights.flatten(0, 1)
        losses = linear_losses(centred.flatten(0, 1), *weights, labels.flatten(0, 1), top_k=top_k, weights=shares)
        if losses.values is None or losses.ids is None:
            return ConceptPrediction(None, *_nothing(centred), mean, std, pre_bias, losses)
        values, ids = (tensor.view(*hidden.shape[:-1], -1) for tensor in (losses.values, losses.ids))
        return ConceptPrediction(None, values, ids, mean, std, pre_bias, losses)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The concept logits z only, `[batch, seq, C]`."""
        return self(hidden, top_k=0).logits


def _nothing(like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and ids of no concept, `[..., 0]`."""
    return like.new_empty(*like.shape[:-1], 0), like.new_empty(*like.shape[:-1], 0, dtype=torch.int64)


class ConceptVector(ParameterModule):
    """Maps K active concepts to a vector: c_hat = (W TopK(z) + b + pre_bias) * std + mean.

    W is stored row by row, `[C, d_model]`, so that K active concepts are K gathered rows.
    """

    def __init__(self, hidden_size: int, num_concepts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_concepts, hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.weight, std=std)
        nn.init.zeros_(self.bias)

    def forward(self, prediction: ConceptPrediction) -> torch.Tensor:
        """The continuous concept, `[batch, seq, d_model]`."""
        vector = weighted_rows(prediction.values, prediction.ids, self.weight) + self.bias + prediction.pre_bias
        return vector * prediction.std + prediction.mean


GATE_RATE = 16.0
"""How much faster a gate moves than a weight: AdamW moves each by about the learning rate a step, with which a gate
would stay near 0 in a training of a few hundred steps."""


class ConceptPredictor(Predictor):
    """The paper's predictor: concept logits, their TopK and its vector (equations 4 and 5).

    Args:
        offset: whether `mean` and `pre_bias` are given back to the vector, as in the paper. Without them it is a sum of
            the K rows and a bias, times `std`, and so zero where these weights are zero.
        gated: whether the vector is multiplied by GATE_RATE times a learned number that starts at 0. So it can start at
            zero with rows that mean something already.
    """

    name = "concepts"
    takes_scale = True
    _tp_plan: ClassVar[dict[str, str]] = {"head.proj": "colwise_gather_output"}

    def __init__(
        self,
        config: "CoCoMixConfig",
        backbone: Backbone,
        with_vector: bool,
        *,
        offset: bool = True,
        gated: bool = False,
    ) -> None:
        super().__init__(config, backbone, with_vector)
        if gated and offset:
            raise ConfigError("the vector of a gated channel has no offset; set offset to false")
        self.offset = offset
        # Not a scalar, which FSDP2 cannot shard.
        self.gate = nn.Parameter(torch.zeros(1)) if gated and with_vector else None
        self.head = ConceptHead(config.hidden_size, config.num_concepts, config.concept_top_k)
        self.vector = ConceptVector(config.hidden_size, config.num_concepts) if with_vector else None

    def scaled(self, tensor: torch.Tensor) -> torch.Tensor:
        tensor = super().scaled(tensor)
        return tensor if self.gate is None else GATE_RATE * self.gate * tensor

    def reset_parameters(self, std: float) -> None:
        super().reset_parameters(std)
        if self.gate is not None:
            nn.init.zeros_(self.gate)

    def start_from_encoder(self, weight: torch.Tensor, bias: torch.Tensor, centre: torch.Tensor) -> None:
        """Let the logits be weight (norm(h) - centre) + bias, an autoencoder's pre-activations.

        Raises:
            ConfigError: the shapes are others.
        """
        if weight.shape != self.head.proj.weight.shape:
            raise ConfigError(
                f"an encoder of {weight.shape[0]} concepts of width {weight.shape[1]} does not fit a head of"
                f" {self.head.num_concepts} concepts of width {self.head.proj.in_features}; set num_concepts to the"
                " autoencoder's, and take one of this very model"
            )
        with torch.no_grad():
            self.head.proj.weight.copy_(weight)
            self.head.proj.bias.copy_(bias)
            self.head.pre_bias.copy_(centre)

    def start_rows(self, rows: torch.Tensor) -> None:
        """Let the vector's rows be `rows`, `[C, d_model]`.

        Raises:
            ConfigError: the shape is another, or there is no gate before them.
        """
        if self.vector is None or self.gate is None or rows.shape != self.vector.weight.shape:
            raise ConfigError(
                f"rows of the shape {list(rows.shape)} need a gated vector of {self.head.num_concepts} concepts and"
                f" width {self.head.proj.in_features}; give as many, and a mixer that uses the vector"
            )
        with torch.no_grad():
            self.vector.weight.copy_(rows)

    def start_at_zero(self) -> None:
        if self.vector is not None:
            nn.init.zeros_(self.vector.bias)
            nn.init.zeros_(self.vector.weight if self.gate is None else self.gate)

    def init_as_hidden(self) -> None:
        if self.vector is not None:
            squares = logit_variance(self.head.proj) * largest_squares(self.head.num_concepts, self.head.top_k)
            nn.init.normal_(self.vector.weight, std=unit_std(squares))

    def forward(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        padding: torch.Tensor | None,
        labels: torch.Tensor | None = None,
        label_weights: torch.Tensor | None = None,
    ) -> Prediction:
        if self.vector is None:
            unused = self.head(hidden, labels, top_k=0, label_weights=label_weights)
            return Prediction(None, unused.logits, concept_losses=unused.losses)
        prediction = self.head(hidden, labels, label_weights=label_weights)
        prediction = prediction._replace(mean=self.scaled(prediction.mean), std=self.scaled(prediction.std))
        if not self.offset:
            nothing = {name: torch.zeros_like(getattr(prediction, name)) for name in ("mean", "pre_bias")}
            prediction = prediction._replace(**nothing)
        return Prediction(self.vector(prediction), prediction.logits, concept_losses=prediction.losses)

    @classmethod
    def input_gradient_flops(cls, config: "CoCoMixConfig", with_vector: bool) -> float:
        return 2 * config.num_concepts * config.hidden_size

    @classmethod
    def flops(cls, config: "CoCoMixConfig", cost: BlockCost, with_vector: bool) -> float:
        rows = config.num_concepts + (config.concept_top_k if with_vector else 0)
        return 2 * rows * config.hidden_size


class PausePredictor(Predictor):
    """Pause tokens: the same learned vector at every position, without a prediction.

    Where positions are learned, the position embedding is added as to any token. Without it all pauses would have the
    same query and could not attend to the token before them.
    """

    name = "pause"
    takes_scale = True

    def __init__(self, config: "CoCoMixConfig", backbone: Backbone, with_vector: bool) -> None:
        super().__init__(config, backbone, with_vector)
        self.vector = nn.Parameter(torch.empty(config.hidden_size))
        self._backbone = (backbone,)  # in a tuple: its weights are the model's, not this module's

    def forward(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        padding: torch.Tensor | None,
        labels: torch.Tensor | None = None,
    ) -> Prediction:
        embedded = self._backbone[0].embed(self.vector.expand(*positions.shape, -1), positions)
        if self.scale is not None:
            embedded = self.scaled(embedded / root_mean_square(embedded) * root_mean_square(hidden))
        return Prediction(embedded.expand_as(hidden))

    @classmethod
    def flops(cls, config: "CoCoMixConfig", cost: BlockCost, with_vector: bool) -> float:
        return 0.0

    def reset_parameters(self, std: float) -> None:
        super().reset_parameters(std)
        nn.init.normal_(self.vector, std=std)


class HiddenPredictor(Predictor):
    """Predicts the teacher's normalised hidden state linearly and projects it back: no SAE and no concepts.

    y = M norm(h) + b in R^target_size; vector = (W y + c) * std + mean, with norm, mean and std as in the concept head.

    Args:
        target_size: width of the teacher's hidden states.
    """

    name = "hidden"
    takes_scale = True

    def __init__(self, config: "CoCoMixConfig", backbone: Backbone, with_vector: bool, *, target_size: int) -> None:
        super().__init__(config, backbone, with_vector)
        self.head = nn.Linear(config.hidden_size, target_size)
        self.back = nn.Linear(target_size, config.hidden_size) if with_vector else None

    def init_as_hidden(self) -> None:
        if self.back is not None:
            nn.init.normal_(self.back.weight, std=unit_std(self.back.in_features * logit_variance(self.head)))

    def forward(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        padding: torch.Tensor | None,
        labels: torch.Tensor | None = None,
    ) -> Prediction:
        normed, mean, std = normalise(hidden)
        predicted = self.head(normed)
        vector = None if self.back is None else self.back(predicted) * self.scaled(std) + self.scaled(mean)
        return Prediction(vector, hidden=predicted)

    @classmethod
    def flops(cls, config: "CoCoMixConfig", cost: BlockCost, with_vector: bool) -> float:
        return (4 if with_vector else 2) * config.channel_options["target_size"] * config.hidden_size


class MlpPredictor(Predictor):
    """A control of the concept channel's size: an MLP with num_concepts inner units, and nothing that is predicted.

    vector = (W gelu(M norm(h) + b) + c) * std + mean, with norm, mean and std as in the concept head.

    Args:
        offset: whether `mean` is added to the vector. Without it the vector is zero where W and c are.
    """

    name = "mlp"
    takes_scale = True

    def __init__(self, config: "CoCoMixConfig", backbone: Backbone, with_vector: bool, *, offset: bool = True) -> None:
        super().__init__(config, backbone, with_vector)
        self.offset = offset
        self.up = nn.Linear(config.hidden_size, config.num_concepts) if with_vector else None
        self.down = nn.Linear(config.num_concepts, config.hidden_size) if with_vector else None

    def init_as_hidden(self) -> None:
        if self.up is not None and self.down is not None:
            squares = self.down.in_features * gelu_square(logit_variance(self.up))
            nn.init.normal_(self.down.weight, std=unit_std(squares))

    def forward(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        padding: torch.Tensor | None,
        labels: torch.Tensor | None = None,
    ) -> Prediction:
        if self.up is None or self.down is None:
            return Prediction(None)
        normed, mean, std = normalise(hidden)
        vector = self.down(F.gelu(self.up(normed))) * self.scaled(std)
        return Prediction(vector + self.scaled(mean) if self.offset else vector)

    def start_at_zero(self) -> None:
        if self.down is not None:
            nn.init.zeros_(self.down.weight)
            nn.init.zeros_(self.down.bias)

    @classmethod
    def input_gradient_flops(cls, config: "CoCoMixConfig", with_vector: bool) -> float:
        return 2 * config.num_concepts * config.hidden_size if with_vector else 0.0

    @classmethod
    def flops(cls, config: "CoCoMixConfig", cost: BlockCost, with_vector: bool) -> float:
        return 4 * config.num_concepts * config.hidden_size if with_vector else 0.0


COMMITMENT = 0.25
"""Weight of moving pooled states to their code, relative to moving the code to them (van den Oord et al. 2017)."""


class NextConceptPredictor(Predictor):
    """Next-concept prediction as in ConceptLM (arXiv 2602.08984), with learned codes and no teacher.

    The hidden states of each chunk of tokens are mean-pooled and quantised, segment by segment, with a learned
    codebook. A small causal stack over the chunks predicts the codes of the next chunk; their expected codebook entry
    is the vector of every token in that chunk. The loss is ncp_weight * CE(codes of the next chunk) + vq_weight *
    (|sg(u) - e|^2 + 0.25 |u - sg(e)|^2) for a pooled state u and its code e; sg stops the gradient.

    Choices where the paper is not specific: the stack reads the pooled states and not their codes. Pooled states are
    layer-normalised before quantisation, so that shrinking them does not lower the loss. Chunks are counted from each
    row's first token, without padding.

    Args:
        chunk: tokens per chunk k.
        segments: number of segments S of a pooled state; divides hidden_size.
        codes: codes per segment N.
        layers: number of blocks over the chunks.
        ncp_weight, vq_weight: weights of the two losses.
    """

    name = "ncp"
    takes_scale = True
    cacheable = False  # a vector depends on all tokens of earlier chunks

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
    ) -> Prediction:
        prediction = self._by_chunks(hidden, padding)
        if prediction.vector is None or self.scale is None:
            return prediction
        return prediction._replace(vector=self.scaled(prediction.vector * root_mean_square(hidden)))

    def _by_chunks(self, hidden: torch.Tensor, padding: torch.Tensor | None) -> Prediction:
        if padding is None:
            return self._aligned(hidden, None)
        # Move the tokens of every row to its front, so that chunks start at the first token.
        order = padding.long().argsort(dim=1, descending=True, stable=True)
        places = order[..., None].expand_as(hidden)
        prediction = self._aligned(hidden.gather(1, places), padding.bool().gather(1, order))
        if prediction.vector is None:
            return prediction
        return prediction._replace(vector=torch.zeros_like(prediction.vector).scatter(1, places, prediction.vector))

    def _aligned(self, hidden: torch.Tensor, real: torch.Tensor | None) -> Prediction:
        batch, seq, d = hidden.shape
        chunks = seq // self.chunk
        if not chunks:
            vector = None if self.start is None else self.start.expand_as(hidden)
            return Prediction(vector, loss=hidden.new_zeros(()) if self.training else None)
        pooled = hidden[:, : chunks * self.chunk].view(batch, chunks, self.chunk, d).mean(2)
        logits = self._predict(pooled)
        complete = None
        if real is not None:
            complete = real[:, : chunks * self.chunk].view(batch, chunks, self.chunk).all(-1)
        loss = self._loss(pooled, logits, complete) if self.training else None
        return Prediction(self._vectors(logits, seq), loss=loss)

    def _predict(self, pooled: torch.Tensor) -> torch.Tensor:
        """Code logits of the chunk that follows each chunk, `[batch, chunks, S, N]`."""
        chunks = pooled.shape[1]
        rotary = self._backbone[0].rotary(torch.arange(chunks, device=pooled.device)[None], pooled.dtype)
        hidden = pooled
        for block in self.blocks:
            hidden = block(hidden, layout=AttentionLayout(None, causal=True), rotary=rotary)
        return self.predict(self.norm(hidden)).unflatten(-1, (self.segments, self.codes))

    def _vectors(self, logits: torch.Tensor, seq: int) -> torch.Tensor | None:
        """Vector of each token, from the expected codes that were predicted for its chunk, `[batch, seq, d_model]`."""
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
        predicted = logits[:, :-1].to(wide).flatten(0, 2)
        summed = F.cross_entropy(predicted, targets, ignore_index=-100, reduction="sum")
        return self.vq_weight * quantisation + self.ncp_weight * summed / (targets != -100).sum().clamp_min(1)

    @classmethod
    def flops(cls, config: "CoCoMixConfig", cost: BlockCost, with_vector: bool) -> float:
        options = {"chunk": 4, "segments": 4, "codes": 64, "layers": 1} | config.channel_options
        k, d, n = options["chunk"], config.hidden_size, options["codes"]
        stack = options["layers"] * (cost.linear + cost.attention / k)
        predict = 2 * d * options["segments"] * n
        quantise, expect = 2 * n * d, (2 * n * d + 2 * d * d if with_vector else 0)
        return (stack + predict + quantise + expect) / k

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.codebook)  # the scale of the layer-normalised pooled states
        if self.start is not None:
            nn.init.normal_(self.start, std=std)
        super().reset_parameters(std)

    def init_as_hidden(self) -> None:
        if self.project is None or self.start is None:
            return
        nn.init.normal_(self.start)
        # Expected codes are near the mean code: its square, and that of what the probabilities differ from uniform by.
        d = self.project.in_features
        uneven = softmax_squares(self.codes, d * mean_square(self.predict.weight)) - 1 / self.codes
        squares = d * (mean_square(self.codebook.mean(1)) + uneven * mean_square(self.codebook))
        nn.init.normal_(self.project.weight, std=unit_std(squares))


PREDICTORS: Registry[type[Predictor]] = Registry(
    "channel",
    [ConceptPredictor, PausePredictor, HiddenPredictor, NextConceptPredictor, MlpPredictor],
    own=("config", "backbone", "with_vector"),
)


def register_predictor(cls: type[Predictor]) -> type[Predictor]:
    """Register a predictor under its `name`; usable as a decorator."""
    return PREDICTORS.register(cls)

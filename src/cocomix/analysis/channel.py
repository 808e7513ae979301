"""One token through the channel: how many nats come through it, and which concepts bring them.

- `nats` is exact: the token's loss with the vectors of all positions zeroed, less its loss as it is.
- The vector of a position is a sum: a row for each of its K concepts, times the concept's logit, and a rest (biases,
  and the mean of the hidden state). That is exact. What a summand brings the token is first order through all that
  comes after: minus the gradient of the token's loss with respect to the vector, times the summand. The summands of all
  positions together bring `first_order`. How far that is from `nats` says how far the first order is to be trusted:
  the blocks above are not linear, and a concept may matter only where another is missing.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, Field

from cocomix.analysis.inspect import check_length
from cocomix.model.predictors import ConceptPrediction, ConceptPredictor, Prediction
from cocomix.model.vector_replacements import ZeroVector, mixed_predictor, vector_replaced
from cocomix.utils.errors import CocomixError


class BroughtConcept(BaseModel):
    """What a concept brings one token, over all positions before it."""

    concept: int
    name: str | None = None
    nats: float = Field(description="first order: above 0, the token is likelier by it")
    here: float = Field(description="of these, from the position that predicts the token")
    positions: int = Field(description="positions before the token that mix it in")


class ChannelReading(BaseModel):
    """One token and what came through the channel."""

    at: int = Field(description="the token's index in the text")
    loss: float = Field(description="nats")
    loss_zeroed: float = Field(description="the same with the vectors of all positions zeroed")
    nats: float = Field(description="loss_zeroed - loss: what comes through the channel, exactly")
    first_order: float = Field(description="what all summands of the vectors bring together")
    rest: float = Field(description="of that, what is no concept's: biases and the mean of the hidden state")
    concepts: list[BroughtConcept] = Field(description="largest effect first; empty where the channel has no concepts")


class Contributions(NamedTuple):
    """What the summands of all positions before a token bring it; together minus the gradient times the vector."""

    loss: torch.Tensor
    """of the token, a scalar"""
    rest: torch.Tensor
    """what is no concept's, `[seq]`; of a channel without concepts the whole vector"""
    values: torch.Tensor
    """of each concept that is mixed in, `[seq, K]`; K is 0 for a channel without concepts"""
    ids: torch.Tensor
    """these concepts, int64 `[seq, K]`"""
    vector: torch.Tensor
    """`[seq, d_model]`"""
    gradient: torch.Tensor
    """of the loss with respect to it, `[seq, d_model]`"""


def contributions(student: Any, ids: Sequence[int], target: int) -> Contributions:
    """What each summand of the vectors of `ids` brings the next token `target`, first order.

    One forward pass, and one backward pass of the blocks above.

    Args:
        student: a causal LM that mixes a vector in, in evaluation mode.
    """
    predictor = mixed_predictor(student)
    leaf: list[torch.Tensor] = []
    predictions: list[ConceptPrediction] = []

    def cut(_module: Any, _inputs: Any, prediction: Prediction) -> Prediction:
        assert prediction.vector is not None
        leaf[:] = [prediction.vector.detach().requires_grad_()]
        return prediction._replace(vector=leaf[0])

    def keep(_module: Any, inputs: tuple[Any, ...]) -> None:
        predictions[:] = inputs[:1]

    vectors = predictor.vector if isinstance(predictor, ConceptPredictor) else None
    with ExitStack() as hooks, torch.enable_grad():
        hooks.callback(predictor.register_forward_hook(cut).remove)
        if vectors is not None:
            hooks.callback(vectors.register_forward_pre_hook(keep).remove)
        loss = _loss(student, ids, target)
        (gradient,) = torch.autograd.grad(loss, leaf)
    with torch.no_grad():
        vector, gradient = leaf[0].detach()[0], gradient[0]
        brought = -(gradient * vector).sum(-1)
        if vectors is None:
            none = torch.zeros(len(vector), 0, device=vector.device)
            return Contributions(loss.detach(), brought, none, none.long(), vector, gradient)
        active, weight = predictions[0], vectors.weight
        concepts, scaled = active.ids[0], gradient * active.std[0]
        # Row by row of the K, because [seq, K, d_model] may not fit into the memory.
        rows = [(scaled * weight[concepts[:, k]].to(scaled)).sum(-1) for k in range(concepts.shape[1])]
        values = -active.values[0].to(scaled) * torch.stack(rows, dim=-1)
        fixed = (vectors.bias + active.pre_bias) * active.std[0] + active.mean[0]
        return Contributions(loss.detach(), -(gradient * fixed).sum(-1), values, concepts, vector, gradient)


def read_channel(
    student: Any,
    ids: Sequence[int],
    at: int,
    *,
    top: int = 8,
    name: Callable[[int], str | None] = lambda _: None,
) -> ChannelReading:
    """What came through the channel of the token at the place `at` of a text.

    Args:
        student: a causal LM that mixes a vector in, in evaluation mode.
        ids: the text's tokens.
        top: concepts to name.
        name: a concept's name, if it has one.

    Raises:
        CocomixError: the student mixes no vector in, the text is empty or too long, or the place has no loss.
    """
    check_length(ids, student.config.max_position_embeddings)
    if not 1 <= at < len(ids):
        raise CocomixError(
            f"there is nothing before the token {at} of a text of {len(ids)} that could predict it; choose 1 to"
            f" {len(ids) - 1}"
            if len(ids) > 1
            else "a text of one token has none that is predicted; give more words"
        )
    found = contributions(student, ids[:at], ids[at])
    with torch.no_grad(), vector_replaced(student, ZeroVector()):
        zeroed = float(_loss(student, ids[:at], ids[at]))
    loss = float(found.loss)
    return ChannelReading(
        at=at,
        loss=loss,
        loss_zeroed=zeroed,
        nats=zeroed - loss,
        first_order=float(found.values.sum() + found.rest.sum()),
        rest=float(found.rest.sum()),
        concepts=_by_concept(found, top, name),
    )


def _loss(student: Any, ids: Sequence[int], target: int) -> torch.Tensor:
    """Loss of `target` after `ids`, a scalar, in float32 or better."""
    tokens = torch.tensor([list(ids)], device=student.device)
    logits = student(input_ids=tokens, use_cache=False, logits_to_keep=1).logits[0, -1]
    return -logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)[target]


def _by_concept(found: Contributions, top: int, name: Callable[[int], str | None]) -> list[BroughtConcept]:
    """The concepts of the largest effect, either way."""
    concepts, place, counts = found.ids.unique(return_inverse=True, return_counts=True)
    total = found.values.new_zeros(len(concepts)).index_add(0, place.flatten(), found.values.flatten())
    here = found.values.new_zeros(len(concepts)).index_add(0, place[-1], found.values[-1])
    largest = total.abs().topk(min(top, len(concepts))).indices
    rows = zip(*(part[largest].tolist() for part in (concepts, total, here, counts)), strict=True)
    return [
        BroughtConcept(concept=concept, name=name(concept), nats=nats, here=near, positions=positions)
        for concept, nats, near, positions in rows
    ]

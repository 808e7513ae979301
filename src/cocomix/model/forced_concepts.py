"""`concepts_forced`: a student mixes in given concepts, such as its labels, where its own predictions would be.

What is asked: how much better would this student be if its head named exactly these concepts? So only *which* concepts
is changed. Each position keeps the K values its own TopK has, largest first. The given concepts get the largest of
them, in the order of the student's own logits, and what is left of the K goes to its own other concepts. A position
whose given concepts are the student's own best is therefore not changed at all, and none gets a strength that the
blocks above have not seen. To weigh the given concepts by their own logits instead would also weaken the vector
wherever the head does not expect them, and ask two questions at once.

In training, where the logits are not kept, given concepts keep the order they are given in (labels: best first).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from cocomix.model.interventions import concept_head
from cocomix.model.predictors import ConceptPrediction
from cocomix.utils.errors import CocomixError


def with_concepts(
    prediction: ConceptPrediction, concepts: torch.Tensor, strength: torch.Tensor | None = None
) -> ConceptPrediction:
    """`prediction` with `concepts` as the largest of its K; its logits stay.

    Args:
        concepts: int64 `[batch, seq, n]`, different ones at each position; negative ones are ignored. Of more than K,
            those with the largest logits are taken; without logits, the first.
        strength: what the values of given concepts are multiplied by, broadcast to `[batch, seq, K]`; None: 1.

    Raises:
        CocomixError: the shape does not fit.
    """
    if concepts.shape[:-1] != prediction.ids.shape[:-1]:
        raise CocomixError(
            f"concepts of the shape {list(concepts.shape)} do not fit {list(prediction.ids.shape[:-1])} positions; give"
            " some for each"
        )
    given = concepts >= 0
    if prediction.logits is not None:
        scores = prediction.logits.gather(-1, concepts.clamp_min(0)).masked_fill(~given, -torch.inf)
        order = scores.argsort(dim=-1, descending=True, stable=True)
        concepts, given = concepts.gather(-1, order), given.gather(-1, order)
    values, order = prediction.values.sort(dim=-1, descending=True, stable=True)
    own = prediction.ids.gather(-1, order)
    repeated = (own.unsqueeze(-1) == concepts.unsqueeze(-2)).any(-1)
    rank = torch.cat([torch.where(given, 0, 2), torch.where(repeated, 2, 1)], dim=-1)
    places = rank.argsort(dim=-1, stable=True)[..., : own.shape[-1]]
    if strength is not None:
        values = torch.where(rank.gather(-1, places) == 0, values * strength, values)
    return prediction._replace(values=values, ids=torch.cat([concepts, own], dim=-1).gather(-1, places))


@contextmanager
def concepts_forced(model: nn.Module, concepts: torch.Tensor, strength: torch.Tensor | None = None) -> Iterator[None]:
    """Context in which every forward pass of `model` mixes in `concepts`; see the top of this file.

    Predicted logits and losses of labels are those of the unchanged prediction.

    Args:
        model: a student that predicts concepts and mixes them in.
        concepts, strength: as in `with_concepts`, for the batch that is read.

    Raises:
        CocomixError: the model predicts no concepts or does not mix them in; in the context, a batch of another shape.
    """

    def force(_module: nn.Module, _inputs: Any, prediction: ConceptPrediction) -> ConceptPrediction:
        return with_concepts(prediction, concepts, strength)

    handle = concept_head(model).register_forward_hook(force)
    try:
        yield
    finally:
        handle.remove()

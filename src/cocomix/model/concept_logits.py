"""Steer a student: change its concept logits on their way to TopK.

`steered` puts a hook between the concept head's projection and its TopK, so every forward pass within sees the
change, and so does generation, with or without a cache. The model's output carries the changed logits. Unless told
from which token on, prompts are steered like what follows them. A steered projection is no plain one, so a training
step that would skip its logits makes them after all (`kernels.plain_linear`).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from cocomix.model.concept_head import ConceptHead
from cocomix.model.interventions import Scale
from cocomix.model.plan import Plan, Steering
from cocomix.model.predictors import ConceptChannel
from cocomix.utils.errors import CocomixError


def concept_head(model: nn.Module) -> ConceptHead:
    """The model's concept head.

    Raises:
        CocomixError: it has none, or does not use what the head predicts.
    """
    return _channel(model).head


@contextmanager
def steered(model: nn.Module, steering: Steering) -> Iterator[None]:
    """Within: every forward pass of `model` has its concept logits changed before TopK.

    Nested uses compose: the inner one reads what the outer one made. Nothing is left on exit, however that comes, and
    a steering that changes nothing leaves the model untouched.

    Args:
        model: a student that predicts concepts and mixes them in.
        steering: interventions by concept, for all rows or a list with a mapping for each.

    Raises:
        CocomixError: the model has no concepts, or not these; within, a batch the rows of steering do not fit.
    """
    channel = _channel(model)
    plan = Plan(steering, channel.head.proj.out_features)
    places: list[torch.Tensor] = []

    def note_places(_module: nn.Module, given: tuple[Any, ...]) -> None:
        places[:] = [own_places(*given[:3])]

    def change(_module: nn.Module, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        return changed_logits(logits, plan, places[0] if places else None)

    with ExitStack() as hooks:
        if plan.from_a_token_on:
            hooks.callback(channel.register_forward_pre_hook(note_places).remove)
        if not plan.idle:
            hooks.callback(channel.head.proj.register_forward_hook(change).remove)
        yield


def changed_logits(logits: torch.Tensor, plan: Plan, places: torch.Tensor | None) -> torch.Tensor:
    """Concept logits as `plan` has them; `logits` `[batch, seq, C]` stay as they are."""
    lowest = logits.amin(-1, keepdim=True)
    limits = torch.finfo(logits.dtype)
    # By the least that the dtype can tell: further down, an ablated logit would count as the largest of the next unit.
    off = lowest - (lowest.abs() * limits.eps).clamp_min(limits.tiny)
    scale = Scale(logits.abs().amax(-1, keepdim=True), off)
    changed = logits.clone()
    for rows, apply, concepts, due in plan.changes(len(logits), places):
        before = logits[rows][..., concepts]
        after = apply(before, scale.of(rows))
        changed[rows, :, concepts] = after if due is None else torch.where(due, after, before)
    return changed


def own_places(hidden: torch.Tensor, positions: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
    """Place of each new token among its row's own, int64 `[batch or 1, seq]`, from what a channel is given.

    Positions count the unpadded tokens unless a caller set them; so where there is padding it is counted here.
    """
    return positions if padding is None else (padding.long().cumsum(-1) - 1)[:, -hidden.shape[1] :]


def _channel(model: nn.Module) -> ConceptChannel:
    channel = next((module for module in model.modules() if isinstance(module, ConceptChannel)), None)
    if channel is None:
        raise CocomixError(
            f"{type(model).__name__} predicts no concepts that could be steered; use a student trained with the"
            " objective cocomix"
        )
    if channel.vector is None:
        raise CocomixError(
            "this student predicts concepts but does not mix them in, so steering them changes nothing; use a student"
            " with a mixer such as interleave"
        )
    return channel

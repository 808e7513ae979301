"""Change a student's concept logits on their way to TopK.

An intervention maps the logits z `[batch, seq, C]` to others of the same shape; `steered` puts it between the
concept head's projection and its TopK, so every forward pass within sees it, and so does generation, with or without
a cache. Prompts are steered like what follows them, and the model's output carries the changed logits. Strengths
count in multiples of the position's own largest logit, so that one number means the same in every model and place.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from cocomix.errors import CocomixError
from cocomix.model.concept_head import ConceptHead


class Intervention(ABC):
    """Interface of all interventions.

    Args:
        concepts: ids of the concepts changed, 0 to C - 1.

    Raises:
        CocomixError: no concept, or a negative id.
    """

    def __init__(self, concepts: Iterable[int]) -> None:
        self.concepts = [int(concept) for concept in concepts]
        if not self.concepts:
            raise CocomixError("an intervention needs at least one concept; name the ids to steer")
        if min(self.concepts) < 0:
            raise CocomixError(f"concept {min(self.concepts)} does not exist; concept ids start at 0")

    @abstractmethod
    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """The changed logits; `logits` `[batch, seq, C]` stays as it is."""

    def check(self, n_concepts: int) -> None:
        """Refuse ids that a model of `n_concepts` concepts does not have.

        Raises:
            CocomixError: there is one.
        """
        if max(self.concepts) >= n_concepts:
            raise CocomixError(
                f"concept {max(self.concepts)} is outside the model's {n_concepts} concepts;"
                f" choose from 0 to {n_concepts - 1}"
            )

    def _replaced(self, logits: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """`logits` with the chosen columns set to `value` `[batch, seq, 1]`."""
        changed = logits.clone()
        changed[..., self.concepts] = value
        return changed


class Amplify(Intervention):
    """z_i = strength * max_j |z_j| at every position.

    Args:
        strength: multiple of the position's largest logit magnitude; from 1 up the concept leads TopK, below 0 it
            pushes the other way and TopK drops it.

    Raises:
        CocomixError: the strength is not a finite number.
    """

    def __init__(self, concepts: Iterable[int], strength: float) -> None:
        super().__init__(concepts)
        if not math.isfinite(strength):
            raise CocomixError(f"a steering strength of {strength} cannot be used; choose a finite number such as 4")
        self.strength = strength

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        return self._replaced(logits, self.strength * logits.abs().amax(-1, keepdim=True))


class Suppress(Intervention):
    """z_i = min_j z_j at every position, so that TopK drops it as long as K others are left."""

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        return self._replaced(logits, logits.amin(-1, keepdim=True))


INTERVENTIONS: dict[str, type[Intervention]] = {"amplify": Amplify, "suppress": Suppress}


def concept_head(model: nn.Module) -> ConceptHead:
    """The model's concept head.

    Raises:
        CocomixError: it has none, or does not use what the head predicts.
    """
    head = next((module for module in model.modules() if isinstance(module, ConceptHead)), None)
    if head is None:
        raise CocomixError(
            f"{type(model).__name__} predicts no concepts that could be steered; use a student trained with the"
            " objective cocomix"
        )
    if not getattr(getattr(model, "mixer", None), "uses_vector", True):
        raise CocomixError(
            "this student predicts concepts but does not mix them in, so steering them changes nothing; use a student"
            " with a mixer such as interleave"
        )
    return head


@contextmanager
def steered(model: nn.Module, intervention: Intervention) -> Iterator[None]:
    """Within: every forward pass of `model` has its concept logits changed by `intervention` before TopK.

    Nested uses compose: the inner one reads what the outer one made. Nothing is left on exit, however that comes.

    Raises:
        CocomixError: the model has no concepts, or not these.
    """
    projection = concept_head(model).proj
    intervention.check(projection.out_features)

    def changed(_module: nn.Module, _inputs: Any, logits: Any) -> torch.Tensor:
        return intervention(logits)

    handle = projection.register_forward_hook(changed)
    try:
        yield
    finally:
        handle.remove()

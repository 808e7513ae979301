"""Interventions on concepts (steering), and `steered`, which applies them to a student's concept logits.

- An `Intervention` is a small frozen dataclass that maps concept values to new ones. The same classes apply to a
  student's concept logits and to an SAE's latents (`steering/residual.py`); `Scale` tells them what one unit of
  strength is there and at what value a concept is off. `INTERVENTIONS` is their registry.
- `Plan` checks which rows of a batch get which interventions once, and is then applied in every pass.
- `steered` puts a hook between the concept head's projection and its TopK. Every forward pass in the context sees the
  change, and so does generation, with or without a cache. The model's output has the changed logits. Prompts are
  steered like the text after them, unless an intervention has a `start`.
- A hooked projection cannot be fused with its loss (`kernels.plain_linear`), so a training step in the context computes
  the concept logits it would otherwise skip.
"""

import math
import numbers
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from cocomix.model.predictors import ConceptHead, ConceptPredictor
from cocomix.utils.errors import CocomixError
from cocomix.utils.registry import Registry

LAST_START = 2**63 - 1
"""Largest `start`: positions are compared with it as int64."""


def _finite(amount: numbers.Real) -> bool:
    try:
        return math.isfinite(amount)
    except OverflowError:  # an int larger than any float
        return False


class Scale(NamedTuple):
    """Unit of strength and value of an inactive concept at each position, `[rows, seq, 1]`, in the values' dtype."""

    unit: torch.Tensor
    """of concept logits z: max_j |z_j|; of SAE latents: 1"""
    off: torch.Tensor
    """of concept logits: just below min_j z_j, so that TopK prefers all others; of SAE latents: 0"""

    def for_rows(self, rows: slice) -> "Scale":
        """The scale of some rows of the batch."""
        return Scale(self.unit[rows], self.off[rows])


@dataclass(frozen=True)
class Intervention(ABC):
    """Base class of interventions; their equations are for a value v and the `unit` and `off` of `Scale`.

    Args:
        start: first token at which it acts, counted from 0 in the row without padding.

    Raises:
        CocomixError: `start` or the amount is not a usable number.
    """

    start: int = field(default=0, kw_only=True)
    name: ClassVar[str]
    """name in settings and links"""
    example: ClassVar[float]
    """an amount for error messages to suggest"""

    def __post_init__(self) -> None:
        if isinstance(self.start, bool) or not isinstance(self.start, int) or not 0 <= self.start <= LAST_START:
            raise CocomixError(
                f"steering cannot start at token {self.start!r}; choose a whole number, 0 is the text's first token"
            )
        if self.amount is not None:
            self._check(self.amount)

    def _check(self, amount: float) -> None:
        if isinstance(amount, bool) or not isinstance(amount, numbers.Real) or not _finite(amount):
            raise CocomixError(
                f"a steering strength of {amount} cannot be used; choose a finite number such as {self.example:g}"
            )

    @abstractmethod
    def __call__(self, values: torch.Tensor, scale: Scale) -> torch.Tensor:
        """The new values of `values` `[rows, seq, concepts]`, which are not changed in place."""

    @property
    def idle(self) -> bool:
        """Whether it changes no value; it is then left out."""
        return False

    @classmethod
    def amount_name(cls) -> str | None:
        """Name of its amount, the one number it takes; None if it takes none."""
        return next((field.name for field in fields(cls) if field.name != "start"), None)

    @property
    def amount(self) -> float | None:
        """Its amount; None if it takes none."""
        name = self.amount_name()
        return None if name is None else getattr(self, name)

    @classmethod
    def from_amount(cls, amount: float | None, start: int) -> "Intervention":
        """Create an intervention of this class; `amount` is None if the class takes none.

        Raises:
            CocomixError: `amount` is missing, not taken by the class, or not usable.
        """
        name = cls.amount_name()
        if name is None and amount is not None:
            raise CocomixError(f"{cls.name} takes no number and was given {amount}; leave it out")
        if name is not None and amount is None:
            raise CocomixError(f"{cls.name} needs a number; write one, such as {cls.example:g}")
        return cls(start=start) if name is None else cls(**{name: amount}, start=start)  # pyright: ignore[reportCallIssue]


@dataclass(frozen=True)
class Amplify(Intervention):
    """v + strength * unit: raises the value, or lowers it if the strength is negative; 0 changes nothing.

    On concept logits a strength of 2 or more makes the concept the first of TopK, whatever its value was.
    """

    strength: float
    name = "amplify"
    example = 4.0

    def __call__(self, values: torch.Tensor, scale: Scale) -> torch.Tensor:
        return values + self.strength * scale.unit

    @property
    def idle(self) -> bool:
        return self.strength == 0


@dataclass(frozen=True)
class Dampen(Intervention):
    """(1 - share) * v + share * off: moves the value towards off; share 0 changes nothing, 1 is `Ablate`."""

    share: float
    name = "dampen"
    example = 0.5

    def _check(self, amount: float) -> None:
        super()._check(amount)
        if not 0 <= amount <= 1:
            raise CocomixError(f"a concept cannot be dampened by {amount:g}; choose a share from 0 to 1, such as 0.5")

    def __call__(self, values: torch.Tensor, scale: Scale) -> torch.Tensor:
        return torch.lerp(values, scale.off.expand_as(values), float(self.share))

    @property
    def idle(self) -> bool:
        return self.share == 0


@dataclass(frozen=True)
class Ablate(Intervention):
    """off: the concept is never in TopK as long as K others are left."""

    name = "ablate"

    def __call__(self, values: torch.Tensor, scale: Scale) -> torch.Tensor:
        return scale.off.expand_as(values)


@dataclass(frozen=True)
class Clamp(Intervention):
    """value * unit, whatever v was.

    On concept logits a value above 1 makes the concept the first of TopK, one below -1 makes it the last.
    """

    value: float
    name = "clamp"
    example = 2.0

    def __call__(self, values: torch.Tensor, scale: Scale) -> torch.Tensor:
        return (self.value * scale.unit).expand_as(values)


INTERVENTIONS: Registry[type[Intervention]] = Registry("intervention", [Amplify, Dampen, Ablate, Clamp])


Setting = Mapping[int, Intervention]
"""Intervention on each concept, by its id. All read the original values, so their order has no effect."""
Steering = Setting | Sequence[Setting]
"""One setting for all rows, or one for each. Where generation turns a row into several, as beam search does, these are
adjacent and share its setting."""


class Change(NamedTuple):
    """One intervention on some rows of a batch."""

    rows: slice
    apply: Intervention
    concepts: list[int]
    active: torch.Tensor | None
    """positions at or after its start, bool `[rows, seq, 1]`; None: all"""


class Plan:
    """Checked steering of a batch, by row and intervention.

    Args:
        steering: see `Steering`.
        n_concepts: C.

    Raises:
        CocomixError: `steering` has no row, a concept does not exist, or a value is not an intervention.
    """

    def __init__(self, steering: Steering, n_concepts: int) -> None:
        settings: list[Any] = [steering] if isinstance(steering, Mapping) else list(steering)
        if not settings:
            raise CocomixError("steering is an empty list; give one setting, or a list with one for each row")
        self.settings = [_grouped(setting, n_concepts) for setting in settings]

    @property
    def idle(self) -> bool:
        """Whether no row is changed."""
        return not any(self.settings)

    @property
    def has_start(self) -> bool:
        """Whether any intervention starts after the first token, so that the places of tokens are needed."""
        return any(intervention.start for setting in self.settings for intervention in setting)

    def changes(self, batch: int, places: torch.Tensor | None) -> Iterator[Change]:
        """The changes to a batch, one for each row setting and intervention.

        Args:
            batch: number of rows; a multiple of the number of settings.
            places: place of each token in its row, int64 `[batch or 1, seq]`; needed only if `has_start`.

        Raises:
            CocomixError: the number of rows is not a multiple of the number of settings.
        """
        times, remainder = divmod(batch, len(self.settings))
        if remainder or not times:
            raise CocomixError(
                f"{len(self.settings)} rows of steering do not fit a batch of {batch}; give one setting for all, or"
                " one for each prompt"
            )
        for number, setting in enumerate(self.settings):
            rows = slice(number * times, (number + 1) * times)
            for apply, concepts in setting.items():
                active = None
                if apply.start and places is not None:
                    active = (places.expand(batch, -1)[rows] >= apply.start).unsqueeze(-1)
                yield Change(rows, apply, concepts, active)


def _grouped(setting: Any, n_concepts: int) -> dict[Intervention, list[int]]:
    """Concepts by intervention, so that concepts with the same one are changed together; idle ones are left out."""
    if not isinstance(setting, Mapping):
        raise CocomixError(f"{setting!r} is not a steering setting; give a mapping such as {{123: Amplify(4.0)}}")
    grouped: dict[Intervention, list[int]] = {}
    for concept, intervention in setting.items():
        if not isinstance(intervention, Intervention):
            raise CocomixError(
                f"{intervention!r} is not an intervention for concept {concept}; use one such as Amplify(4.0)"
            )
        number = _checked_concept(concept, n_concepts)
        if not intervention.idle:
            grouped.setdefault(intervention, []).append(number)
    return grouped


def _checked_concept(concept: Any, n_concepts: int) -> int:
    try:
        number = operator.index(concept)
    except TypeError:
        raise CocomixError(f"{concept!r} is not the number of a concept; choose from 0 to {n_concepts - 1}") from None
    if not 0 <= number < n_concepts:
        raise CocomixError(
            f"concept {number} is outside the model's {n_concepts} concepts; choose from 0 to {n_concepts - 1}"
        )
    return number


def concept_head(model: nn.Module) -> ConceptHead:
    """The model's concept head.

    Raises:
        CocomixError: the model has none, or does not mix its predictions in.
    """
    return _concept_predictor(model).head


@contextmanager
def steered(model: nn.Module, steering: Steering) -> Iterator[None]:
    """Context in which every forward pass of `model` has its concept logits changed before TopK.

    Contexts can be nested; the inner one reads the logits that the outer one has changed. The hooks are always removed
    on exit, and steering that changes nothing adds none.

    Args:
        model: a student that predicts concepts and mixes them in.
        steering: interventions by concept, for all rows or a list with a mapping for each.

    Raises:
        CocomixError: the model does not have these concepts, or none; in the context, the batch does not fit the rows.
    """
    predictor = _concept_predictor(model)
    plan = Plan(steering, predictor.head.num_concepts)
    places: list[torch.Tensor] = []

    def note_places(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        places[:] = [places_in_row(*inputs[:3])]

    def change(_module: nn.Module, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        return changed_logits(logits, plan, places[0] if places else None)

    with ExitStack() as hooks:
        if plan.has_start:
            hooks.callback(predictor.register_forward_pre_hook(note_places).remove)
        if not plan.idle:
            hooks.callback(predictor.head.proj.register_forward_hook(change).remove)
        yield


def changed_logits(logits: torch.Tensor, plan: Plan, places: torch.Tensor | None) -> torch.Tensor:
    """Apply `plan` to concept logits `[batch, seq, C]`, which are not changed in place."""
    lowest = logits.amin(-1, keepdim=True)
    limits = torch.finfo(logits.dtype)
    # By the smallest difference in this dtype: a lower value could become max_j |z_j|, the unit of a nested context.
    off = lowest - (lowest.abs() * limits.eps).clamp_min(limits.tiny)
    scale = Scale(logits.abs().amax(-1, keepdim=True), off)
    changed = logits.clone()
    for rows, apply, concepts, active in plan.changes(len(logits), places):
        before = logits[rows][..., concepts]
        after = apply(before, scale.for_rows(rows))
        changed[rows, :, concepts] = after if active is None else torch.where(active, after, before)
    return changed


def places_in_row(hidden: torch.Tensor, positions: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
    """Place of each new token in its row, int64 `[batch or 1, seq]`, from the inputs of a predictor.

    Positions count unpadded tokens unless the caller has set them, so with padding the tokens are counted again.
    """
    return positions if padding is None else (padding.long().cumsum(-1) - 1)[:, -hidden.shape[1] :]


def _concept_predictor(model: nn.Module) -> ConceptPredictor:
    predictor = next((module for module in model.modules() if isinstance(module, ConceptPredictor)), None)
    if predictor is None:
        raise CocomixError(
            f"{type(model).__name__} predicts no concepts to steer; use a student trained with the objective cocomix"
        )
    if predictor.vector is None:
        raise CocomixError(
            "this student predicts concepts but does not mix them in, so steering them changes nothing; use a student"
            " with a mixer such as interleave"
        )
    return predictor

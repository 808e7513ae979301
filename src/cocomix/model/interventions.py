"""What can be done to a concept: small frozen dataclasses, one registry.

An intervention maps the values of the concepts it is given to others. It knows nothing of where they come from: on a
student's concept logits and on an SAE's latents it is the same, and `Scale` says what a unit is there and where a
concept is off.
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

LAST_START = 2**63 - 1
"""Positions are compared with it as int64."""


def _finite(amount: numbers.Real) -> bool:
    try:
        return math.isfinite(amount)
    except OverflowError:  # a whole number larger than any float
        return False


class Scale(NamedTuple):
    """What strengths are measured by at each position, `[rows, seq, 1]` each, in the values' dtype."""

    unit: torch.Tensor
    """of concept logits z: max_j |z_j|; of SAE latents: 1"""
    off: torch.Tensor
    """of concept logits: just below min_j z_j, so that TopK takes any other first; of SAE latents: 0"""

    def of(self, rows: slice) -> "Scale":
        """The scale of some rows of the batch."""
        return Scale(self.unit[rows], self.off[rows])


@dataclass(frozen=True)
class Intervention(ABC):
    """Interface of all interventions; their equations are for a value v, with `Scale`'s `unit` and `off`.

    Args:
        start: the first token at which it acts, counted from 0 in the row's own tokens, padding aside.

    Raises:
        CocomixError: a number that cannot be used.
    """

    start: int = field(default=0, kw_only=True)
    example: ClassVar[float]
    """an amount that error messages can propose"""

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
        """The changed values; `values` `[rows, seq, concepts]` stay as they are."""

    @property
    def idle(self) -> bool:
        """Whether it changes nothing whatever the values; such a one is left out altogether."""
        return False

    @classmethod
    def amount_name(cls) -> str | None:
        """Name of the one number it takes; None if it takes none."""
        return next((one.name for one in fields(cls) if one.name != "start"), None)

    @property
    def amount(self) -> float | None:
        """The one number it takes; None if it takes none."""
        name = self.amount_name()
        return None if name is None else getattr(self, name)

    @classmethod
    def of(cls, amount: float | None, start: int) -> "Intervention":
        """One made from what a text or a file says.

        Raises:
            CocomixError: an amount where none belongs or none where one does, or one that cannot be used.
        """
        name = cls.amount_name()
        if name is None and amount is not None:
            raise CocomixError(f"{word(cls)} takes no number and was given {amount}; leave it out")
        if name is not None and amount is None:
            raise CocomixError(f"{word(cls)} needs a number; write one, such as {cls.example:g}")
        return cls(start=start) if name is None else cls(**{name: amount}, start=start)  # pyright: ignore[reportCallIssue]


@dataclass(frozen=True)
class Amplify(Intervention):
    """v + strength * unit: turned up from where it stands, or down if the strength is negative; 0 changes nothing.

    Of concept logits: from 2 up the concept leads TopK wherever it stood.
    """

    strength: float
    example = 4.0

    def __call__(self, values: torch.Tensor, scale: Scale) -> torch.Tensor:
        return values + self.strength * scale.unit

    @property
    def idle(self) -> bool:
        return self.strength == 0


@dataclass(frozen=True)
class Dampen(Intervention):
    """(1 - share) * v + share * off: part of the way to off; share 0 changes nothing, 1 is `Ablate`."""

    share: float
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
    """off: never in TopK as long as K others are left."""

    def __call__(self, values: torch.Tensor, scale: Scale) -> torch.Tensor:
        return scale.off.expand_as(values)


@dataclass(frozen=True)
class Clamp(Intervention):
    """value * unit, whatever v was.

    Of concept logits: above 1 the concept leads TopK; below -1 it is the last.
    """

    value: float
    example = 2.0

    def __call__(self, values: torch.Tensor, scale: Scale) -> torch.Tensor:
        return (self.value * scale.unit).expand_as(values)


INTERVENTIONS: dict[str, type[Intervention]] = {
    "amplify": Amplify,
    "dampen": Dampen,
    "ablate": Ablate,
    "clamp": Clamp,
}


def word(kind: type[Intervention]) -> str:
    """The name `kind` is registered under."""
    return next(name for name, one in INTERVENTIONS.items() if one is kind)


def named(name: str) -> type[Intervention]:
    """The intervention registered as `name`.

    Raises:
        CocomixError: there is none.
    """
    if name not in INTERVENTIONS:
        raise CocomixError(f"there is no intervention {name!r}; choose one of {', '.join(INTERVENTIONS)}")
    return INTERVENTIONS[name]


# Who is steered how: a setting for all rows of a batch or one for each, checked once and applied in every pass.

Setting = Mapping[int, Intervention]
"""What is done to each concept, by its id. All read what was there before any of them, so their order is nothing."""
Steering = Setting | Sequence[Setting]
"""One setting for all rows, or one for each. Where generation makes several rows of one, as beam search does, these
stand together and share its setting."""


class Change(NamedTuple):
    """One intervention on some rows of a batch."""

    rows: slice
    apply: Intervention
    concepts: list[int]
    due: torch.Tensor | None
    """where it has begun, bool `[rows, seq, 1]`; None: everywhere"""


class Plan:
    """A checked steering.

    Args:
        steering: see `Steering`.
        n_concepts: C.

    Raises:
        CocomixError: no row, a concept that does not exist, or something that is no intervention.
    """

    def __init__(self, steering: Steering, n_concepts: int) -> None:
        settings: list[Any] = [steering] if isinstance(steering, Mapping) else list(steering)
        if not settings:
            raise CocomixError("steering was given for no row; give one setting, or a list with one for each row")
        self.settings = [_grouped(setting, n_concepts) for setting in settings]

    @property
    def idle(self) -> bool:
        """Whether nothing is changed in any row."""
        return not any(self.settings)

    @property
    def from_a_token_on(self) -> bool:
        """Whether it matters where in its row a token stands."""
        return any(one.start for setting in self.settings for one in setting)

    def changes(self, batch: int, places: torch.Tensor | None) -> Iterator[Change]:
        """What to do to a batch.

        Args:
            batch: its rows, as many as there are settings or a multiple.
            places: of its tokens, each in its own row, int64 `[batch or 1, seq]`; not needed unless `from_a_token_on`.

        Raises:
            CocomixError: the settings do not fit the rows.
        """
        times, left = divmod(batch, len(self.settings))
        if left or not times:
            raise CocomixError(
                f"{len(self.settings)} rows of steering do not fit a batch of {batch}; give one setting for all, or"
                " one for each prompt"
            )
        for number, setting in enumerate(self.settings):
            rows = slice(number * times, (number + 1) * times)
            for apply, concepts in setting.items():
                due = None
                if apply.start and places is not None:
                    due = (places.expand(batch, -1)[rows] >= apply.start).unsqueeze(-1)
                yield Change(rows, apply, concepts, due)


def _grouped(setting: Any, n_concepts: int) -> dict[Intervention, list[int]]:
    """Concepts by what is done to them, so that as many as share an intervention cost one; idle ones are left out."""
    if not isinstance(setting, Mapping):
        raise CocomixError(f"{setting!r} is no steering setting; give a mapping such as {{123: Amplify(4.0)}}")
    grouped: dict[Intervention, list[int]] = {}
    for concept, intervention in setting.items():
        if not isinstance(intervention, Intervention):
            raise CocomixError(
                f"{intervention!r} is no intervention for concept {concept}; use one such as Amplify(4.0)"
            )
        number = _checked(concept, n_concepts)
        if not intervention.idle:
            grouped.setdefault(intervention, []).append(number)
    return grouped


def _checked(concept: Any, n_concepts: int) -> int:
    try:
        number = operator.index(concept)
    except TypeError:
        raise CocomixError(f"{concept!r} is no concept's number; choose from 0 to {n_concepts - 1}") from None
    if not 0 <= number < n_concepts:
        raise CocomixError(
            f"concept {number} is outside the model's {n_concepts} concepts; choose from 0 to {n_concepts - 1}"
        )
    return number


# Steer a student: change its concept logits on their way to TopK.
#
# `steered` puts a hook between the concept head's projection and its TopK, so every forward pass within sees the
# change, and so does generation, with or without a cache. The model's output carries the changed logits. Unless told
# from which token on, prompts are steered like what follows them. A steered projection is no plain one, so a training
# step that would skip its logits makes them after all (`kernels.plain_linear`).


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


def _channel(model: nn.Module) -> ConceptPredictor:
    channel = next((module for module in model.modules() if isinstance(module, ConceptPredictor)), None)
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

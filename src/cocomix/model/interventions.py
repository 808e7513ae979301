"""What can be done to a concept: small frozen dataclasses, one registry.

An intervention maps the values of the concepts it is given to others. It knows nothing of where they come from: on a
student's concept logits and on an SAE's latents it is the same, and `Scale` says what a unit is there and where a
concept is off.
"""

import math
import numbers
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import ClassVar, NamedTuple

import torch

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

"""Who is steered how: a setting for all rows of a batch or one for each, checked once and applied in every pass."""

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from cocomix.model.interventions import Intervention
from cocomix.utils.errors import CocomixError

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

"""Learning-rate schedules: the rate at each step, by name in `SCHEDULES`.

All begin with a linear warm-up. A schedule whose rates do not depend on the length of training until `extends_from` can
be extended there: a longer training has taken the same steps so far.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

from cocomix.utils.registry import Registry


class Schedule(ABC):
    """One learning-rate schedule.

    Args:
        total: number of steps.
        warmup: steps of linear warm-up.
        final: share of the maximum at the end, where the rate falls.
        decay_fraction: share of the steps in which `wsd` falls.
    """

    name: ClassVar[str]

    def __init__(self, total: int, warmup: int, final: float, decay_fraction: float) -> None:
        self.total, self.warmup, self.final, self.decay_fraction = total, max(1, warmup), final, decay_fraction

    def rate(self, step: int, maximum: float) -> float:
        """Learning rate at 0-based `step`."""
        return maximum * (step + 1) / self.warmup if step < self.warmup else maximum * self.after_warmup(step)

    @abstractmethod
    def after_warmup(self, step: int) -> float:
        """Share of the maximum rate at 0-based `step` behind the warm-up."""

    @property
    def extends_from(self) -> int | None:
        """Number of steps after which the state is kept, so that a longer training goes on there; None: it cannot."""
        return None


class CosineSchedule(Schedule):
    """A cosine from the maximum to `final_lr_fraction`; its rates depend on the length from the first step on."""

    name = "cosine"

    def after_warmup(self, step: int) -> float:
        progress = (step - self.warmup) / max(1, self.total - 1 - self.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.final + (1 - self.final) * cosine


class LinearSchedule(Schedule):
    """A line from the maximum to zero, which it reaches after the last step; `final_lr_fraction` is not read."""

    name = "linear"

    def after_warmup(self, step: int) -> float:
        return (self.total - step) / max(1, self.total - self.warmup)


class ConstantSchedule(Schedule):
    """The maximum to the end; a finished training can be extended."""

    name = "constant"

    def after_warmup(self, step: int) -> float:
        return 1.0

    @property
    def extends_from(self) -> int | None:
        return self.total


class WsdSchedule(Schedule):
    """Warm-up, stable, decay: the maximum, then a line down; it can be extended from the end of the stable part."""

    name = "wsd"

    def after_warmup(self, step: int) -> float:
        into = step - self._stable_until + 1
        if into <= 0:
            return 1.0
        return 1.0 - (1.0 - self.final) * into / max(1, self.total - self._stable_until)

    @property
    def _stable_until(self) -> int:
        return self.total - max(1, round(self.decay_fraction * self.total))

    @property
    def extends_from(self) -> int | None:
        return self._stable_until if self._stable_until >= self.warmup else None


SCHEDULES = Registry("schedule", [CosineSchedule, LinearSchedule, ConstantSchedule, WsdSchedule])
"""Every learning-rate schedule."""

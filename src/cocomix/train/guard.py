"""What to do about a step whose loss or gradient is not finite, or whose loss jumps: stop, or leave the step out."""

import math
from abc import ABC, abstractmethod
from statistics import median
from typing import Any

from cocomix.utils.errors import CocomixError

REMEMBERED, NEEDED = 50, 10
"""Losses a jump is judged by, and how many there must be before one can be."""


class Guard:
    """Judges each step before its gradient is used.

    Args:
        spike_factor: a loss beyond this many times the median of the last 50 is a spike; None: never.
        recent: the losses remembered so far, newest last, e.g. from a checkpoint.
    """

    def __init__(self, spike_factor: float | None, recent: list[float] | None = None) -> None:
        self.spike_factor = spike_factor
        self.recent = list(recent or [])

    def fault(self, loss: float, grad_norm: float) -> str | None:
        """What is wrong with this step, in a few words; None if it is sound, and its loss is then remembered."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(grad_norm):
            return f"the gradient's norm is {grad_norm} (loss {loss:.4g})"
        if self.spike_factor is not None and len(self.recent) >= NEEDED:
            usual = median(self.recent)
            if loss > self.spike_factor * usual:
                return f"the loss jumped to {loss:.4g}, the median of the last {len(self.recent)} is {usual:.4g}"
        self.recent = [*self.recent, loss][-REMEMBERED:]
        return None


class OnFault(ABC):
    """What a faulty step leads to."""

    @abstractmethod
    def handle(self, event: dict[str, Any]) -> None:
        """Called with `step`, `fault` and `windows`, the ids of the batch's windows; its gradient is not used."""


class Stop(OnFault):
    """End the run; its last checkpoint is from before the step."""

    def handle(self, event: dict[str, Any]) -> None:
        raise CocomixError(
            f"{event['fault']} by step {event['step']} (windows {', '.join(map(str, event['windows']))}); lower"
            " learning_rate, use precision fp32, or set on_fault to skip"
        )


class Skip(OnFault):
    """Leave the step out and go on."""

    def handle(self, event: dict[str, Any]) -> None:
        pass


ON_FAULT: dict[str, OnFault] = {"stop": Stop(), "skip": Skip()}

LONGEST_RUN_OF_FAULTS = 20


def check_not_hopeless(skipped: list[dict[str, Any]], step: int) -> None:
    """Refuse to skip for ever.

    Raises:
        CocomixError: the last 20 steps were all left out.
    """
    last = skipped[-LONGEST_RUN_OF_FAULTS:]
    if len(last) == LONGEST_RUN_OF_FAULTS and last[0]["step"] > step - LONGEST_RUN_OF_FAULTS:
        raise CocomixError(
            f"the last {LONGEST_RUN_OF_FAULTS} steps were all left out ({last[-1]['fault']} by step {step});"
            " lower learning_rate or use precision fp32"
        )

"""What every measured thing looks like, and the setting it is measured in."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.speed.shapes import Shape

Lap = Callable[[str], None]
"""Called within a run: what was done since the last call, or the start, is booked under this name."""
Progress = Callable[[int, int], None]
"""Called with how much is done, and of how much."""


@dataclass(frozen=True)
class Setting:
    """What is the same for all that is measured.

    Attributes:
        shape: sizes.
        repeats: rounds of each group; None: each group's own number.
        device: where everything runs.
        seed: of weights, tokens and labels.
    """

    shape: Shape
    repeats: int | None
    device: torch.device
    seed: int

    def settle(self) -> None:
        """Wait until the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Contestant(ABC):
    """One thing that is timed.

    Attributes:
        name: unique in its group.
        unit: what is counted, e.g. "token".
        units: of these, in one run.
        precision: "fp32" or "bf16".
        flops: operations of one run as `cocomix.model.flops` counts them; None: not counted.
        note: what a reader must know to judge it.
        warm: whether `prepare` runs it, so that no run need be thrown away.
    """

    name: str
    unit: str
    units: float
    precision: str
    flops: float | None = None
    note: str = ""
    warm: bool = False

    @abstractmethod
    def prepare(self) -> None:
        """Build what `run` needs; not timed.

        Raises:
            CocomixError: it cannot be had here, with the mend.
        """

    @abstractmethod
    def run(self, lap: Lap) -> None:
        """Do the work once; timed."""

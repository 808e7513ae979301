"""The interface of everything that is timed, and the setting it is timed in."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.speed.shapes import Shape

Lap = Callable[[str], None]
"""Called within a run: the time since the previous call, or the start, is recorded under this name."""
Progress = Callable[[int, int], None]
"""Called with the amount done and the total."""


@dataclass(frozen=True)
class Setting:
    """What all workloads of a measurement share.

    Attributes:
        shape: sizes of models and data.
        repeats: rounds of each group; None means each group's default.
        device: device everything runs on.
        seed: seed of weights, tokens and labels.
    """

    shape: Shape
    repeats: int | None
    device: torch.device
    seed: int

    def synchronize(self) -> None:
        """Wait until the device has finished all queued work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Workload(ABC):
    """Something that is timed.

    Attributes:
        name: unique within its group.
        unit: what throughput counts, e.g. "token".
        units: number of units in one run.
        precision: "fp32" or "bf16".
        flops: operations of one run as `cocomix.model.flops` counts them; None if not counted.
        note: remark for the reader of the table.
        warm: whether `prepare` already runs the work, so that no warm-up run is needed.
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
            CocomixError: if the workload is not available here; the message says how to get it.
        """

    @abstractmethod
    def run(self, lap: Lap) -> None:
        """Do the work once; timed."""

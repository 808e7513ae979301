"""Metrics that trackers show of a training run: losses, norms, speed, and the share of the machine's peak FLOPs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cocomix.train.config import TrainConfig
from cocomix.train.trackers import open_trackers
from cocomix.utils.console import world_size
from cocomix.utils.env import memory_used, peak_flops


class Metrics:
    """Logs metrics every `log_every` steps and at each evaluation; does nothing without trackers.

    Args:
        config: has the trackers and the interval.
        folder: trackers write to `tracking` below it.
        flops_per_token: training FLOPs per token.
        tokens_per_step: over all processes.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        *,
        flops_per_token: Callable[[], float],
        tokens_per_step: int,
        device: torch.device,
    ) -> None:
        self.config, self.device = config, device
        self.tokens_per_step = tokens_per_step
        self.trackers = None
        if config.trackers:
            name = "-".join(folder.parts[-3:])
            self.trackers = open_trackers(config.trackers, folder / "tracking", name, config.model_dump(mode="json"))
            self.flops_per_token = flops_per_token()
            self.peak = peak_flops(device, config.precision) * world_size()
        self._last: tuple[int, float, float] | None = None

    def step(self, step: int, *, loss: float, grad_norm: float, seconds: float, waited: float, skipped: int) -> None:
        """Log optimiser step `step` (1-based); `seconds` and `waited` are the run's totals so far."""
        if self.trackers is None:
            return
        if self._last is None:
            self._last = (step - 1, seconds, waited)
            return
        if step % self.config.log_every:
            return
        steps, elapsed, waiting = (now - then for now, then in zip((step, seconds, waited), self._last, strict=True))
        self._last = (step, seconds, waited)
        rate = steps * self.tokens_per_step / elapsed if elapsed else 0.0
        self.trackers.log(
            {
                "train/loss": loss,
                "train/grad_norm": grad_norm,
                "train/tokens_per_second": rate,
                "train/mfu": rate * self.flops_per_token / self.peak,
                "train/memory_gib": memory_used(self.device) / 2**30,
                "train/wait_share": waiting / elapsed if elapsed else 0.0,
                "train/steps_left_out": float(skipped),
            },
            step,
        )

    def evaluation(self, point: dict[str, Any]) -> None:
        """Log a point of the curve."""
        if self.trackers is not None:
            measured = [name for name in point if name.startswith("val_")]
            self.trackers.log({name.replace("_", "/", 1): point[name] for name in measured}, point["step"])

    def close(self) -> None:
        """Flush and close the trackers."""
        if self.trackers is not None:
            self.trackers.close()

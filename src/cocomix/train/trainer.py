"""The training loop, for every objective.

Data order is a pure function of (seed, step), so a checkpoint needs no iterator state. The mean loss over the
global batch is minimised however it is cut into micro-batches and processes (an autoencoder's auxiliary loss and
variance are taken over each part). Seconds count training only:
evaluation and checkpoints are left out of the curve's clock.
"""

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cocomix.errors import CocomixError
from cocomix.objectives.base import Objective
from cocomix.tokens import batch_order
from cocomix.train.checkpoint import load_checkpoint, save_checkpoint
from cocomix.train.config import TrainConfig
from cocomix.train.data import BatchSource
from cocomix.train.distributed import (
    Interrupted,
    StopRequest,
    anywhere,
    barrier,
    device,
    is_main,
    mean_over_processes,
    rank,
    world_size,
)
from cocomix.train.precision import autocast


@dataclass
class TrainResult:
    """What a training run cost and how it went.

    Attributes:
        curve: points with step, tokens, flops, seconds, train_loss and whatever the evaluation returned.
        tokens: tokens trained on, repeats counted.
        flops: floating-point operations spent on them, forward and backward, two a multiply-accumulate.
        seconds: wall clock of the training steps alone.
        wait_share: share of those seconds spent waiting for data.
    """

    curve: list[dict[str, Any]]
    tokens: int
    flops: float
    seconds: float
    wait_share: float


class Trainer:
    """Trains one objective.

    Args:
        objective: what is minimised.
        data: where batches come from.
        config: settings.
        folder: checkpoints go below it.
        evaluate: called on the model at evaluation points; its figures join the curve.
        progress: called as `progress(step, total, metrics)` after each step.
    """

    def __init__(
        self,
        objective: Objective,
        data: BatchSource,
        config: TrainConfig,
        folder: Path,
        evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
        progress: Callable[[int, int, dict[str, Any]], None] | None = None,
    ) -> None:
        self.objective, self.data, self.config = objective, data, config
        self.checkpoints = folder / "checkpoints"
        self.evaluate, self.progress = evaluate, progress
        self.device = device()
        self.total = config.total_steps(data.n_windows)
        self.evaluations = {round(i * self.total / config.n_evals) for i in range(1, config.n_evals + 1)}
        if data.n_windows < 1:
            raise CocomixError(
                f"the corpus has fewer tokens than one window of {data.seq_len}; add text or lower seq_len"
            )
        if config.batch_size % world_size():
            raise CocomixError(
                f"batch_size {config.batch_size} cannot be shared evenly by {world_size()} processes; change it"
            )
        self.objective.to(self.device)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(objective.trainable(), config.weight_decay),
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.eps,
        )
        self.step, self.seconds = 0, 0.0
        self.curve: list[dict[str, Any]] = []
        self.recent: list[torch.Tensor] = []
        described = json.dumps([config.model_dump(mode="json"), data.shards.fingerprint, data.seq_len], sort_keys=True)
        self._key = hashlib.sha256(described.encode()).hexdigest()

    def run(self) -> TrainResult:
        """Train to the end, from the newest checkpoint if there is one.

        Raises:
            Interrupted: a signal asked to stop; a checkpoint was saved first.
            CocomixError: the loss is not finite.
        """
        self._resume()
        loss_fn = self.wrapped()
        saved_at = time.monotonic()
        recent = self.recent
        with StopRequest() as stop:
            while self.step < self.total:
                started = time.perf_counter()
                recent.append(self.train_step(loss_fn))
                self.step += 1
                if self.step % 10 == 0 or self.step == self.total or self.step in self.evaluations:
                    self._check_finite(recent[-1])
                self.seconds += time.perf_counter() - started
                if self.progress is not None:
                    self.progress(self.step, self.total, {"loss": recent[-1]} if self.step % 10 == 0 else {})
                if self.step in self.evaluations:
                    self.curve.append(self._point(torch.stack(recent).mean()))
                    recent.clear()
                # Processes agree on what to do every few steps, so that none waits for a save the others skip.
                ask = world_size() == 1 or self.step % 5 == 0 or self.step == self.total
                stopping = ask and anywhere(stop.received is not None)
                due = ask and anywhere(time.monotonic() - saved_at > self.config.checkpoint_seconds)
                if stopping or due or self.step == self.total:
                    self._save()
                    saved_at = time.monotonic()
                if stopping:
                    raise Interrupted(
                        f"stopped at step {self.step} of {self.total} and saved; the same command goes on from here",
                        by_user=stop.received == "SIGINT",
                    )
        return self._result()

    def train_step(self, loss_fn: Callable[..., Any]) -> torch.Tensor:
        """One optimiser step; returns this batch's mean loss over all processes."""
        config = self.config
        indices = batch_order(self.data.n_windows, config.batch_size, config.seed, self.step)
        mine = np.array_split(indices, world_size())[rank()]
        micro = config.micro_batch_size or len(mine)
        density = self.data.label_density(indices) if micro < len(indices) else None
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(self.step, self.total)
        total = torch.zeros((), device=self.device)
        for start in range(0, len(mine), micro):
            part = mine[start : start + micro]
            last = start + micro >= len(mine)
            batch = self.data(part, self.device, density)
            batch["progress"] = torch.tensor(self.step / self.total, device=self.device)
            no_sync = (
                loss_fn.no_sync()
                if isinstance(loss_fn, DistributedDataParallel) and not last
                else contextlib.nullcontext()
            )
            with no_sync:
                with autocast(self.device, self.config.precision):
                    loss = loss_fn(batch) * (len(part) / len(mine))
                loss.backward()
            total += loss.detach()
        self.objective.before_step()
        for module in self.objective.clipped():
            torch.nn.utils.clip_grad_norm_(module.parameters(), config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.after_step()
        return mean_over_processes(total)

    def wrapped(self) -> Callable[..., Any]:
        """The objective in training mode, compiled and distributed as the settings say."""
        self.objective.train()
        model = self.objective.evaluated()
        if self.config.gradient_checkpointing:
            # Transformers renamed it in 5.2x; both names are served.
            names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
            enable = next((getattr(model, name) for name in names if hasattr(model, name)), None)
            if enable is None:
                raise CocomixError(f"{type(model).__name__} has no gradient checkpointing; set it to false")
            enable()
        wrapped: nn.Module = self.objective
        if self.config.compile:
            wrapped = torch.compile(wrapped)  # pyright: ignore[reportAssignmentType]
        if world_size() > 1:
            wrapped = DistributedDataParallel(
                wrapped, device_ids=[self.device.index] if self.device.type == "cuda" else None
            )
        return wrapped

    def _check_finite(self, loss: torch.Tensor) -> None:
        if not math.isfinite(float(loss)):
            indices = batch_order(self.data.n_windows, self.config.batch_size, self.config.seed, self.step - 1)
            raise CocomixError(
                f"the loss is {float(loss)} by step {self.step} (windows {indices[:8].tolist()}...);"
                " lower learning_rate or use precision fp32"
            )

    def _point(self, train_loss: torch.Tensor) -> dict[str, Any]:
        figures = {}
        if self.evaluate is not None:
            self.objective.eval()
            figures = self.evaluate(self.objective.evaluated())
            self.objective.train()
        return self._cost() | {"train_loss": float(train_loss)} | figures

    def _cost(self) -> dict[str, Any]:
        tokens = self.step * self.config.batch_size * self.data.seq_len
        flops = tokens * self.objective.flops_per_token(self.data.seq_len)
        return {"step": self.step, "tokens": tokens, "flops": flops, "seconds": self.seconds}

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.objective.trainable().state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "recent": self.recent,
            "seconds": self.seconds,
            "waited": self.data.waited,
        }

    def _save(self) -> None:
        if is_main():
            save_checkpoint(self.checkpoints, self.step, self._state(), self.curve, self._key)
        barrier()

    def _resume(self) -> None:
        found = load_checkpoint(self.checkpoints, self._key, self.device)
        if found is None:
            return
        self.step, state, self.curve = found
        self.objective.trainable().load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"].cpu())
        self.recent = state["recent"]
        self.seconds, self.data.waited = state["seconds"], state["waited"]

    def _result(self) -> TrainResult:
        cost = self._cost()
        return TrainResult(
            curve=self.curve,
            tokens=cost["tokens"],
            flops=cost["flops"],
            seconds=self.seconds,
            wait_share=self.data.waited / self.seconds if self.seconds else 0.0,
        )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; vectors (biases, norms) do not."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]

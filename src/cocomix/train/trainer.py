"""The training loop, for every objective.

Data order, learning rate and random numbers are pure functions of (seed, step), so a checkpoint needs no iterator or
generator state, and a resumed run repeats the interrupted one bit for bit. The mean loss over the global batch is
minimised however it is cut into micro-batches and processes (an autoencoder's auxiliary loss and variance are taken
over each part). Seconds count training only: evaluation and checkpoints are left out of the curve's clock.
"""

import contextlib
import hashlib
import json
import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from cocomix.data.sampler import batch_order
from cocomix.objectives.base import Objective
from cocomix.train.batches import BatchSource
from cocomix.train.checkpoint import load_checkpoint, save_checkpoint
from cocomix.train.config import TrainConfig
from cocomix.train.metrics import Metrics
from cocomix.train.optimizer import adamw
from cocomix.train.parallel import parallel, save_snapshot
from cocomix.utils.console import is_main, rank, world_size
from cocomix.utils.distributed import StopRequest, anywhere, device, mean_over_processes
from cocomix.utils.env import autocast
from cocomix.utils.errors import CocomixError, Interrupted

# Everything of a training run that is a tensor, under names that do not depend on how many processes share it.


def training_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Parameters, persistent buffers and AdamW's moments, by name; what is written into them is written into the run.

    A tied parameter appears once. Moments that do not exist yet, before the first step, are made as zeros.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in module.named_parameters():
        tensors[f"model.{name}"] = parameter.detach()
        if parameter.requires_grad:
            for kind, moment in _moments(optimizer, parameter).items():
                tensors[f"optimizer.{name}.{kind}"] = moment
    kept = module.state_dict().keys()
    return tensors | {f"model.{name}": buffer for name, buffer in module.named_buffers() if name in kept}


def _moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
    state = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32)
        state["exp_avg"] = torch.zeros_like(parameter, requires_grad=False)
        state["exp_avg_sq"] = torch.zeros_like(parameter, requires_grad=False)
    return state


def total_norm(norms: list[torch.Tensor]) -> torch.Tensor:
    """Euclidean norm over several modules' gradients, from their own norms, a plain scalar."""
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return whole[0] if len(whole) == 1 else torch.linalg.vector_norm(torch.stack(whole))


# What to do about a step whose loss or gradient is not finite, or whose loss jumps: stop, or leave the step out.

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


@dataclass
class TrainResult:
    """What a training run cost and how it went.

    Attributes:
        curve: points with step, tokens, flops, seconds, train_loss and whatever the evaluation returned.
        tokens: tokens trained on, repeats counted.
        flops: floating-point operations spent on them, forward and backward, two a multiply-accumulate.
        seconds: wall clock of the training steps alone.
        wait_share: share of those seconds spent waiting for data.
        skipped: steps left out: step, fault, and the ids of the batch's windows.
    """

    curve: list[dict[str, Any]]
    tokens: int
    flops: float
    seconds: float
    wait_share: float
    skipped: list[dict[str, Any]]


class Trainer:
    """Trains one objective.

    Args:
        objective: what is minimised.
        data: where batches come from.
        config: settings.
        folder: checkpoints and snapshots go below it.
        evaluate: called on the model at evaluation points, in every process; its figures join the curve.
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
        self.objective, self.data, self.config, self.folder = objective, data, config, folder
        self.evaluate, self.progress = evaluate, progress
        self.device = device()
        self.total = config.total_steps(data.n_windows)
        self.evaluations = _evenly(config.n_evals, self.total)
        self.snapshots = _evenly(config.n_snapshots, self.total)
        if data.n_windows < 1:
            raise CocomixError(
                f"the corpus has fewer tokens than one window of {data.seq_len}; add text or lower seq_len"
            )
        if config.batch_size % world_size():
            raise CocomixError(
                f"batch_size {config.batch_size} cannot be shared evenly by {world_size()} processes; change it"
            )
        self.objective.to(self.device)
        self.parallel = parallel(config.parallel)
        self.parallel.prepare(objective)
        self.optimizer = adamw(objective.trainable(), config)
        self.step, self.seconds = 0, 0.0
        self.curve: list[dict[str, Any]] = []
        self.recent: list[float] = []
        self.skipped: list[dict[str, Any]] = []
        self.guard, self.grad_norm = Guard(config.spike_factor), 0.0
        described = json.dumps([config.recipe(), data.shards.fingerprint, data.seq_len], sort_keys=True)
        self._key = hashlib.sha256(described.encode()).hexdigest()

    def run(self) -> TrainResult:
        """Train to the end, from the newest checkpoint if there is one.

        Raises:
            Interrupted: a signal asked to stop; a checkpoint was saved first.
            CocomixError: a faulty step, and the settings say to stop.
        """
        self._resume()
        loss_fn = self.wrapped()
        saved_at = time.monotonic()
        metrics = Metrics(
            self.config,
            self.folder,
            flops_per_token=lambda: self.objective.flops_per_token(self.data.seq_len),
            tokens_per_step=self.config.batch_size * self.data.seq_len,
            device=self.device,
        )
        with StopRequest() as stop, contextlib.closing(metrics):
            while self.step < self.total:
                started = time.perf_counter()
                loss = self.train_step(loss_fn)
                self.step += 1
                self.seconds += time.perf_counter() - started
                if loss is not None:
                    self.recent.append(loss)
                    self._log(metrics, loss)
                if self.progress is not None:
                    self.progress(self.step, self.total, {} if loss is None else {"loss": loss})
                if self.step in self.evaluations:
                    self.curve.append(self._point())
                    metrics.evaluation(self.curve[-1])
                    self.recent.clear()
                if self.step in self.snapshots:
                    save_snapshot(self.objective, self.folder, self.step)
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

    def train_step(self, loss_fn: nn.Module) -> float | None:
        """One optimiser step; returns the batch's mean loss over all processes, or None if the step was left out."""
        config = self.config
        torch.manual_seed(_seed(config.seed, self.step, rank()))
        indices = batch_order(self.data.n_windows, config.batch_size, config.seed, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(self.step, self.total)
        loss = float(mean_over_processes(self._backward(loss_fn, indices)))
        self.objective.before_step()
        norms = [
            torch.nn.utils.clip_grad_norm_(module.parameters(), config.grad_clip) for module in self.objective.clipped()
        ]
        self.grad_norm = float(total_norm(norms))
        fault = self.guard.fault(loss, self.grad_norm)
        if fault is not None:
            self.optimizer.zero_grad(set_to_none=True)
            self._left_out(fault, indices)
            return None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.after_step()
        return loss

    def _backward(self, loss_fn: nn.Module, indices: np.ndarray) -> torch.Tensor:
        """Forward and backward passes of this process's share of a batch; returns its mean loss."""
        mine = np.array_split(indices, world_size())[rank()]
        micro = self.config.micro_batch_size or len(mine)
        density = self.data.label_density(indices) if micro < len(indices) else None
        total = torch.zeros((), device=self.device)
        for start in range(0, len(mine), micro):
            part = mine[start : start + micro]
            batch = self.data(part, self.device, density)
            batch["progress"] = torch.tensor(self.step / self.total, device=self.device)
            with self.parallel.accumulating(loss_fn, last=start + micro >= len(mine)):
                with autocast(self.device, self.config.precision):
                    loss = loss_fn(batch) * (len(part) / len(mine))
                loss.backward()
            total += loss.detach()
        return total

    def wrapped(self) -> nn.Module:
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
        if self.config.compile:
            self.objective.compile()
        return self.parallel.wrap(self.objective)

    def _log(self, metrics: Metrics, loss: float) -> None:
        metrics.step(
            self.step,
            loss=loss,
            grad_norm=self.grad_norm,
            seconds=self.seconds,
            waited=self.data.waited,
            skipped=len(self.skipped),
        )

    def _left_out(self, fault: str, indices: np.ndarray) -> None:
        event = {"step": self.step + 1, "fault": fault, "windows": indices.tolist()}
        ON_FAULT[self.config.on_fault].handle(event)
        self.skipped.append(event)
        if is_main():
            warnings.warn(f"step {event['step']} was left out: {fault}; windows {event['windows']}", stacklevel=2)
        check_not_hopeless(self.skipped, event["step"])

    def _point(self) -> dict[str, Any]:
        figures = {}
        if self.evaluate is not None:
            self.objective.eval()
            figures = self.evaluate(self.objective.evaluated())
            self.parallel.evaluated(self.objective)
            self.objective.train()
        train_loss = sum(self.recent) / len(self.recent) if self.recent else None
        return self._cost() | {"train_loss": train_loss} | figures

    def _cost(self) -> dict[str, Any]:
        tokens = self.step * self.config.batch_size * self.data.seq_len
        flops = tokens * self.objective.flops_per_token(self.data.seq_len)
        return {"step": self.step, "tokens": tokens, "flops": flops, "seconds": self.seconds}

    def _save(self) -> None:
        about = {
            "curve": self.curve,
            "recent": self.recent,
            "skipped": self.skipped,
            "remembered": self.guard.recent,
            "seconds": self.seconds,
            "waited": self.data.waited,
        }
        tensors = training_tensors(self.objective.trainable(), self.optimizer)
        save_checkpoint(self.folder / "checkpoints", self.step, tensors, about, self._key)

    def _resume(self) -> None:
        tensors = training_tensors(self.objective.trainable(), self.optimizer)
        found = load_checkpoint(self.folder / "checkpoints", self._key, tensors)
        if found is None:
            return
        self.step, about = found
        self.curve, self.recent, self.skipped = about["curve"], about["recent"], about["skipped"]
        self.guard = Guard(self.config.spike_factor, about["remembered"])
        self.seconds, self.data.waited = about["seconds"], about["waited"]

    def _result(self) -> TrainResult:
        cost = self._cost()
        return TrainResult(
            curve=self.curve,
            tokens=cost["tokens"],
            flops=cost["flops"],
            seconds=self.seconds,
            wait_share=self.data.waited / self.seconds if self.seconds else 0.0,
            skipped=self.skipped,
        )


def _evenly(n: int, total: int) -> set[int]:
    return {round(i * total / n) for i in range(1, n + 1)} - {0}


def _seed(seed: int, step: int, process: int) -> int:
    """Seed of a step's random numbers (dropout) in one process."""
    digest = hashlib.sha256(f"{seed} {step} {process}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)

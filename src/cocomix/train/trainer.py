"""The training loop of all objectives: `Trainer.run` is the loop, `Trainer.train_step` one optimiser step.

Choices:
- Data order, learning rate and random numbers are pure functions of (seed, step). So a checkpoint needs no iterator or
  generator state, and a resumed run repeats the interrupted one bit for bit.
- The loss is the mean over the global batch, however it is divided into micro-batches and processes. (An autoencoder's
  auxiliary loss and variance are computed over each micro-batch.)
- `training_tensors` collects all state that is a tensor, under names that do not depend on the number of processes.
- `Guard` checks each step before its gradient is used. A step whose loss or gradient is not finite, or whose loss
  spikes, stops the run or is skipped, as `on_fault` says.
- Seconds count training only, without evaluation and checkpoints, and not while a process is stopped.
- With several processes, one that hangs is named after `hang_seconds`, and the others stop with a checkpoint.
"""

import contextlib
import hashlib
import json
import math
import time
import warnings
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
from cocomix.train.checkpoint import load_checkpoint, save_alone, save_checkpoint
from cocomix.train.config import TrainConfig
from cocomix.train.metrics import Metrics
from cocomix.train.optimizer import OPTIMIZERS, TrainingOptimizer
from cocomix.train.parallel import parallel, save_snapshot
from cocomix.utils.clock import CLOCK
from cocomix.utils.console import is_main, rank, world_size
from cocomix.utils.distributed import (
    StopRequest,
    device,
    is_lost_connection,
    largest_anywhere,
    living_processes,
    mean_over_processes,
    waiting_at_most,
)
from cocomix.utils.env import autocast
from cocomix.utils.errors import CocomixError, Interrupted


def training_tensors(module: nn.Module, optimizer: TrainingOptimizer) -> dict[str, torch.Tensor]:
    """Parameters, persistent buffers and the optimiser's moments by name; writing into them in place restores the run.

    A tied parameter appears once. Moments that do not exist before the first step are created as zeros.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in module.named_parameters():
        tensors[f"model.{name}"] = parameter.detach()
        if parameter.requires_grad:
            for kind, moment in optimizer.moments(parameter).items():
                tensors[f"optimizer.{name}.{kind}"] = moment
    persistent = module.state_dict().keys()
    return tensors | {f"model.{name}": buffer for name, buffer in module.named_buffers() if name in persistent}


def total_norm(norms: list[torch.Tensor]) -> torch.Tensor:
    """Euclidean norm of the gradients of several modules, from the norm of each; a scalar that is not a DTensor."""
    full = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return full[0] if len(full) == 1 else torch.linalg.vector_norm(torch.stack(full))


CHECKPOINTS, STATE = "checkpoints", "state"
"""Folders of checkpoints: to resume from, and of the step from which a finished training can be extended."""
SPIKE_WINDOW, MIN_LOSSES = 50, 10
"""Number of recent losses a spike is compared with, and the minimum for a comparison."""
MAX_SKIPPED_IN_A_ROW = 20


class Guard:
    """Checks each step before its gradient is used.

    Args:
        spike_factor: a loss above this many times the median of the last 50 is a spike; None: never.
        recent: the last losses, newest last, e.g. from a checkpoint.
    """

    def __init__(self, spike_factor: float | None, recent: list[float] | None = None) -> None:
        self.spike_factor = spike_factor
        self.recent = list(recent or [])

    def fault(self, loss: float, grad_norm: float) -> str | None:
        """What is wrong with this step, for messages; None if nothing is, and its loss is then kept for comparison."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(grad_norm):
            return f"the gradient's norm is {grad_norm} (loss {loss:.4g})"
        if self.spike_factor is not None and len(self.recent) >= MIN_LOSSES:
            middle = median(self.recent)
            if loss > self.spike_factor * middle:
                return f"the loss jumped to {loss:.4g}, the median of the last {len(self.recent)} is {middle:.4g}"
        self.recent = [*self.recent, loss][-SPIKE_WINDOW:]
        return None


@dataclass
class TrainResult:
    """Learning curve and cost of a training run.

    Attributes:
        curve: points with step, tokens, flops, seconds, train_loss and the metrics of the evaluation.
        tokens: number of tokens trained on, repeats included.
        flops: FLOPs of the forward and backward passes and of the optimiser's products; a multiply-accumulate is two.
        seconds: wall-clock time of the training steps only.
        wait_share: share of those seconds spent waiting for data.
        skipped: skipped steps: step, fault, and the ids of the batch's windows.
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
        objective: the model with its loss.
        data: source of batches.
        config: training settings.
        folder: folder of checkpoints and snapshots.
        keep_state: also keep the state from which the training can be extended, in `folder/state`.
        extend: folder of the state of a shorter training, to go on from; its learning rates were the same so far.
        evaluate: called with the model at evaluation points, in every process; its metrics are added to the curve.
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
        *,
        keep_state: bool = False,
        extend: Path | None = None,
    ) -> None:
        self.objective, self.data, self.config, self.folder = objective, data, config, folder
        self._keep_state, self._extend = keep_state, extend
        objective.z_loss = config.z_loss
        self.evaluate, self.progress = evaluate, progress
        self.device = device()
        self.total = config.total_steps(data.n_windows)
        self.evaluations = _evenly_spaced(config.n_evals, self.total)
        self.snapshots = _evenly_spaced(config.n_snapshots, self.total)
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
        self.optimizer = OPTIMIZERS[config.optimizer](objective.trainable(), config)
        self._optimizer_flops = self.optimizer.step_flops(objective.trainable())
        self.step, self.seconds, self.saved_at = 0, 0.0, 0.0
        self._stopped_before, self._waited_for_stopped = CLOCK.stopped(), 0.0
        self._buffers: tuple[int, dict[str, torch.Tensor]] = (-1, {})
        self.curve: list[dict[str, Any]] = []
        self.recent: list[float] = []
        self.skipped: list[dict[str, Any]] = []
        self.guard, self.grad_norm = Guard(config.spike_factor), 0.0
        recipe = json.dumps([config.recipe(), data.shards.fingerprint, data.seq_len], sort_keys=True)
        self._key = hashlib.sha256(recipe.encode()).hexdigest()

    def run(self) -> TrainResult:
        """Train to the end, from the newest checkpoint if there is one.

        Raises:
            Interrupted: a signal asked to stop; a checkpoint was saved first.
            CocomixError: a step is faulty, and the settings say to stop.
        """
        self._resume()
        self.objective.at(self.step / self.total)
        loss_fn = self.wrapped()
        self.saved_at = time.monotonic()
        metrics = Metrics(
            self.config,
            self.folder,
            flops_per_token=lambda: self.objective.flops_per_token(self.data.seq_len),
            tokens_per_step=self.config.batch_size * self.data.seq_len,
            device=self.device,
        )
        with StopRequest() as stop, contextlib.closing(metrics), waiting_at_most(self.config.hang_seconds):
            if self._evaluation_missing():
                self._evaluate(metrics)
            try:
                while self.step < self.total:
                    self._one_step(loss_fn, metrics, stop)
            except RuntimeError as error:
                if not is_lost_connection(error):
                    raise
                self._stop_without(error)
        return self._result()

    def _one_step(self, loss_fn: nn.Module, metrics: Metrics, stop: StopRequest) -> None:
        """A step and what is due after it."""
        started = CLOCK.seconds()
        self._remember_buffers()
        loss = self.train_step(loss_fn)
        self.step += 1
        self.objective.at(self.step / self.total)
        self.seconds += CLOCK.seconds() - started
        self._log(metrics, loss)
        if self.step in self.evaluations:
            self._evaluate(metrics)
        if self.step in self.snapshots:
            save_snapshot(self.objective, self.folder, self.step)
        stopping, save_due = self._stop_and_save(stop)
        if save_due:
            self._save()
        if self._keep_state and self.step == self.config.state_kept_at(self.total):
            self._save(STATE)
        if stopping:
            raise Interrupted(
                f"stopped at step {self.step} of {self.total} and saved; rerun the same command to resume",
                by_user=stop.received == "SIGINT",
            )

    def _remember_buffers(self) -> None:
        """Keep a copy of the buffers that forward passes change, for a checkpoint if the step does not end."""
        if world_size() > 1:
            buffers = dict(self.objective.trainable().named_buffers())
            self._buffers = (self.step, {name: buffer.detach().clone() for name, buffer in buffers.items()})

    def _stop_without(self, error: RuntimeError) -> None:
        """Name the processes that do not answer, and save what this one has if it is the first of the others.

        With fsdp each process holds a part only, so the last checkpoint has to do.

        Raises:
            CocomixError: always.
        """
        living, names = living_processes(within=min(30.0, max(5.0, self.config.hang_seconds / 20)))
        lost = [number for number in range(world_size()) if number not in living]
        tensors = training_tensors(self.objective.trainable(), self.optimizer)
        whole = not any(isinstance(tensor, DTensor) for tensor in tensors.values())
        step, buffers = self._buffers
        saved = ""
        if whole and lost and self.step:
            if rank() == min(living, default=rank()):
                if step == self.step:  # the step did not end
                    current = dict(self.objective.trainable().named_buffers())
                    for name, buffer in buffers.items():
                        current[name].copy_(buffer)
                save_alone(self.folder / CHECKPOINTS, self.step, tensors, self._state(), self._key)
            saved = f", and step {self.step} is saved"
        described = ", ".join(f"process {number} ({names.get(number, 'unknown')})" for number in lost)
        why = f"{described} did not answer within {self.config.hang_seconds:g} s (hang_seconds) or ended"
        cause = str(error).splitlines()[0][:200]
        raise CocomixError(
            f"{why if lost else f'the connection between the processes failed ({cause})'}; the others have"
            f" stopped{saved}; end what is left of it and rerun the same command to resume"
        ) from error

    def train_step(self, loss_fn: nn.Module) -> float | None:
        """Take one optimiser step.

        Returns:
            The mean loss of the batch over all processes, or None if the step was skipped.
        """
        config = self.config
        torch.manual_seed(_seed(config.seed, self.step, rank()))
        indices = batch_order(self.data.n_windows, config.batch_size, config.seed, self.step)
        self.data.begin_step(self.step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(self.step, self.total)
        loss = float(mean_over_processes(self._forward_backward(loss_fn, indices)))
        self.objective.before_step()
        norms = [
            torch.nn.utils.clip_grad_norm_(module.parameters(), config.grad_clip) for module in self.objective.clipped()
        ]
        self.grad_norm = float(total_norm(norms))
        fault = self.guard.fault(loss, self.grad_norm)
        if fault is not None:
            self.optimizer.zero_grad(set_to_none=True)
            self._stop_or_skip(fault, indices)
            return None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.after_step()
        return loss

    def _forward_backward(self, loss_fn: nn.Module, indices: np.ndarray) -> torch.Tensor:
        """Forward and backward passes over this process's share of a batch; returns its mean loss."""
        share = np.array_split(indices, world_size())[rank()]
        micro_size = self.config.micro_batch_size or len(share)
        density = self.data.label_density(indices) if micro_size < len(indices) else None
        mean_loss = torch.zeros((), device=self.device)
        for start in range(0, len(share), micro_size):
            windows = share[start : start + micro_size]
            batch = self.data(windows, self.device, density)
            batch["progress"] = torch.tensor(self.step / self.total, device=self.device)
            with self.parallel.accumulating(loss_fn, last=start + micro_size >= len(share)):
                with autocast(self.device, self.config.precision):
                    loss = loss_fn(batch) * (len(windows) / len(share))
                loss.backward()
            mean_loss += loss.detach()
        return mean_loss

    def wrapped(self) -> nn.Module:
        """The objective in training mode, compiled and distributed according to the settings."""
        self.objective.train()
        model = self.objective.evaluated()
        if self.config.gradient_checkpointing:
            # Transformers renamed the method in 5.2x; both names are supported.
            names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
            enable = next((getattr(model, name) for name in names if hasattr(model, name)), None)
            if enable is None:
                raise CocomixError(f"{type(model).__name__} has no gradient checkpointing; set it to false")
            enable()
        if self.config.compile:
            self.objective.compile()
        return self.parallel.wrap(self.objective)

    def _stop_and_save(self, stop: StopRequest) -> tuple[bool, bool]:
        """Whether to stop and whether to save a checkpoint after this step; the same in all processes."""
        is_last = self.step == self.total
        # Processes agree every few steps only, because it costs a synchronisation.
        if world_size() > 1 and self.step % 5 and not is_last:
            return False, False
        due = time.monotonic() - self.saved_at > self.config.checkpoint_seconds
        own = CLOCK.stopped() - self._stopped_before
        stopping, due, stopped = largest_anywhere(float(stop.received is not None), float(due), own)
        # While another process was stopped, this one only waited for it.
        self.seconds = max(0.0, self.seconds - (stopped - own - self._waited_for_stopped))
        self._waited_for_stopped = stopped - own
        return bool(stopping), bool(stopping or due or is_last)

    def _log(self, metrics: Metrics, loss: float | None) -> None:
        """Report a step to the trackers and the progress callback; `loss` is None if it was skipped."""
        if loss is not None:
            self.recent.append(loss)
            metrics.step(
                self.step,
                loss=loss,
                grad_norm=self.grad_norm,
                seconds=self.seconds,
                waited=self.data.waited,
                skipped=len(self.skipped),
            )
        if self.progress is not None:
            self.progress(self.step, self.total, {} if loss is None else {"loss": loss})

    def _stop_or_skip(self, fault: str, indices: np.ndarray) -> None:
        """Record a faulty step as skipped, or stop the run, whose last checkpoint is from before the step.

        Raises:
            CocomixError: `on_fault` is stop, or the last 20 steps were all skipped.
        """
        step, windows = self.step + 1, indices.tolist()
        if self.config.on_fault == "stop":
            raise CocomixError(
                f"{fault} by step {step} (windows {', '.join(map(str, windows))}); lower learning_rate, use precision"
                " fp32, or set on_fault to skip"
            )
        self.skipped.append({"step": step, "fault": fault, "windows": windows})
        if is_main():
            warnings.warn(f"step {step} was skipped: {fault}; windows {windows}", stacklevel=2)
        last = self.skipped[-MAX_SKIPPED_IN_A_ROW:]
        if len(last) == MAX_SKIPPED_IN_A_ROW and last[0]["step"] > step - MAX_SKIPPED_IN_A_ROW:
            raise CocomixError(
                f"the last {MAX_SKIPPED_IN_A_ROW} steps were all skipped ({fault} by step {step}); lower learning_rate"
                " or use precision fp32"
            )

    def _evaluate(self, metrics: Metrics) -> None:
        """Evaluate the model and add a point to the curve."""
        figures = {}
        if self.evaluate is not None:
            self.objective.eval()
            figures = self.evaluate(self.objective.evaluated())
            self.parallel.evaluated(self.objective)
            self.objective.train()
        train_loss = sum(self.recent) / len(self.recent) if self.recent else None
        self.curve.append(self._cost() | {"train_loss": train_loss} | figures)
        metrics.evaluation(self.curve[-1])
        self.recent.clear()

    def _cost(self) -> dict[str, Any]:
        tokens = self.step * self.config.batch_size * self.data.seq_len
        flops = tokens * self.objective.flops_so_far(self.data.seq_len, self.step / self.total)
        flops += self.step * self._optimizer_flops
        return {"step": self.step, "tokens": tokens, "flops": flops, "seconds": self.seconds}

    def _evaluation_missing(self) -> bool:
        """Whether the process that saved this step ended before it was evaluated."""
        last = self.curve[-1]["step"] if self.curve else 0
        return self.step > 0 and self.step in self.evaluations and last < self.step

    def _state(self) -> dict[str, Any]:
        return {
            "curve": self.curve,
            "recent": self.recent,
            "skipped": self.skipped,
            "remembered": self.guard.recent,
            "seconds": self.seconds,
            "waited": self.data.waited,
        }

    def _save(self, folder: str = CHECKPOINTS) -> None:
        tensors = training_tensors(self.objective.trainable(), self.optimizer)
        save_checkpoint(self.folder / folder, self.step, tensors, self._state(), self._key)
        self.saved_at = time.monotonic()

    def _resume(self) -> None:
        tensors = training_tensors(self.objective.trainable(), self.optimizer)
        checkpoint = load_checkpoint(self.folder / CHECKPOINTS, self._key, tensors)
        if checkpoint is None and self._extend is not None:
            checkpoint = load_checkpoint(self._extend, None, tensors)
        if checkpoint is None:
            return
        self.step, state = checkpoint
        self.curve, self.recent, self.skipped = state["curve"], state["recent"], state["skipped"]
        self.guard = Guard(self.config.spike_factor, state["remembered"])
        self.seconds, self.data.waited = state["seconds"], state["waited"]

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


def _evenly_spaced(n: int, total: int) -> set[int]:
    """`n` steps evenly spaced up to `total`."""
    return {round(i * total / n) for i in range(1, n + 1)} - {0}


def _seed(seed: int, step: int, process: int) -> int:
    """Seed of the random numbers (dropout) of a step in one process."""
    digest = hashlib.sha256(f"{seed} {step} {process}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)

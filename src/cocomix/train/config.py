"""Training settings, with the paper's optimiser as defaults."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cocomix.train.optimizer import OPTIMIZERS
from cocomix.train.schedules import SCHEDULES, Schedule
from cocomix.train.trackers import TRACKERS
from cocomix.utils.env import Precision

PERFORMANCE_SETTINGS = (
    "micro_batch_size",
    "parallel",
    "gradient_checkpointing",
    "compile",
    "checkpoint_seconds",
    "trackers",
    "log_every",
    "hang_seconds",
    "keep_state",
)
"""Settings of how training is computed; they change results in their last bits at most."""


LATER_SETTINGS = ("schedule", "warmup_steps", "decay_fraction", "init_from", "optimizer", "muon_momentum", "z_loss")
"""Left out of a recipe at their defaults, so that stages finished before they existed stay finished."""
LENGTH_SETTINGS = ("steps", "epochs", "n_evals", "n_snapshots", "warmup_fraction", "warmup_steps", "decay_fraction")
"""What may differ between a finished training and one that extends it, if the learning rates so far are the same."""


class TrainConfig(BaseModel):
    """Settings of a training run. Exactly one of `epochs` and `steps` must be set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_size: int = Field(default=16, ge=1, description="windows per step, over all processes")
    micro_batch_size: int | None = Field(
        default=None, ge=1, description="windows per backward pass and process; empty: all"
    )
    epochs: float | None = Field(default=None, gt=0, description="passes over the windows")
    steps: int | None = Field(default=None, ge=1, description="optimiser steps")
    learning_rate: float = Field(default=6e-4, gt=0, allow_inf_nan=False, description="maximum learning rate")
    schedule: str = Field(default="cosine", description=f"of the learning rate: {SCHEDULES.names}")
    warmup_fraction: float = Field(default=1 / 300, ge=0, le=1, description="share of the steps with linear warm-up")
    warmup_steps: int | None = Field(
        default=None, ge=0, description="steps with linear warm-up, in place of warmup_fraction; kept when extended"
    )
    final_lr_fraction: float = Field(
        default=0.1, ge=0, le=1, description="end of cosine and wsd, as a share of the maximum"
    )
    decay_fraction: float = Field(default=0.1, gt=0, le=1, description="share of the steps in which wsd falls")
    init_from: str | None = Field(
        default=None,
        description="students_train only: start from these weights, a model folder or a stage of the run (`teacher`)",
    )
    optimizer: str = Field(
        default="adamw", description=f"{OPTIMIZERS.names}; muon is for the matrices of blocks, with AdamW for the rest"
    )
    muon_momentum: float = Field(default=0.95, ge=0, lt=1, description="Muon's momentum decay")
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="AdamW moment decays")
    eps: float = Field(default=1e-8, gt=0, description="AdamW epsilon")
    weight_decay: float = Field(
        default=0.1, ge=0, description="decoupled decay of matrices; biases and norms have none"
    )
    z_loss: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="weight of the z-loss, (log of the softmax's normaliser)^2 of the next-token logits, in training",
    )
    grad_clip: float = Field(default=1.0, gt=0, description="maximum global gradient norm")
    precision: Precision = Field(
        default="fp32",
        description="fp32, bf16 (autocast; weights stay fp32) or auto: bf16 where the machine is fast in it",
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        default="ddp",
        description="with several processes: ddp (a copy of the model each) or fsdp (FSDP2, a shard each)",
    )
    gradient_checkpointing: bool = Field(default=False, description="recompute activations in the backward pass")
    compile: bool = Field(default=False, description="torch.compile the model")
    on_fault: Literal["stop", "skip"] = Field(
        default="stop", description="of a step whose loss or gradient is not finite, or spikes: stop the run or skip it"
    )
    spike_factor: float | None = Field(
        default=None, gt=1, description="a loss this many times the median of the last 50 is a spike; empty: none is"
    )
    n_evals: int = Field(default=10, ge=0, description="evaluations, evenly spaced over the run and one at its end")
    n_snapshots: int = Field(
        default=0, ge=0, description="whole models kept in `snapshots/step-N`, evenly spaced, the last at the end"
    )
    checkpoint_seconds: float = Field(default=60.0, gt=0, description="at least this long between two checkpoints")
    keep_state: bool = Field(
        default=True,
        description="with constant and wsd: keep the state from which a finished student's training can be extended,"
        " three times its weights in fp32",
    )
    hang_seconds: float = Field(
        default=600.0, gt=0, description="with several processes: a step waits this long for one that hangs"
    )
    trackers: tuple[str, ...] = Field(default=(), description=f"where metrics go: {TRACKERS.names}")
    log_every: int = Field(default=10, ge=1, description="steps between two lines of metrics")
    seed: int = Field(default=0, ge=0, description="seed of initialisation and data order")

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {self.betas} must lie between 0 and 1, 1 excluded")
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of `epochs` and `steps`")
        SCHEDULES.choose(self.schedule)
        if not OPTIMIZERS.choose(self.optimizer).shards and self.parallel == "fsdp":
            raise ValueError(
                f"optimizer {self.optimizer} needs whole matrices, which fsdp divides; set parallel to ddp or optimizer"
                " to adamw"
            )
        return self

    def recipe(self) -> dict[str, Any]:
        """Settings that determine the result. The others, `PERFORMANCE_SETTINGS`, may change when a run is resumed."""
        recipe = self.model_dump(mode="json", exclude=set(PERFORMANCE_SETTINGS))
        for name in LATER_SETTINGS:
            if recipe[name] == type(self).model_fields[name].default:
                del recipe[name]  # as in runs made before there was such a key
        return recipe

    def total_steps(self, n_windows: int) -> int:
        """Number of optimiser steps over `n_windows` windows, at least one."""
        if self.steps is not None:
            return self.steps
        return max(1, int((self.epochs or 0) * n_windows / self.batch_size))

    def schedule_over(self, total: int) -> Schedule:
        """The learning-rate schedule of `total` steps."""
        warmup = round(self.warmup_fraction * total) if self.warmup_steps is None else self.warmup_steps
        return SCHEDULES[self.schedule](total, warmup, self.final_lr_fraction, self.decay_fraction)

    def learning_rate_at(self, step: int, total: int) -> float:
        """Learning rate at 0-based `step`: linear warm-up, then as `schedule` says."""
        return self.schedule_over(total).rate(step, self.learning_rate)

    def state_kept_at(self, total: int) -> int | None:
        """Number of steps after which the training state is kept with the finished model; None: it is not."""
        return self.schedule_over(total).extends_from if self.keep_state else None

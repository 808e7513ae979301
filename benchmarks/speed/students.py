"""The training step: Transformers' GPT-2, ours, and the dense student, with the same data and optimiser."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.speed.dense import DenseStudent
from benchmarks.speed.shapes import Shape
from benchmarks.speed.synthetic import StoredData, plain_gpt2, student_config
from benchmarks.speed.workload import Lap, Setting, Workload
from cocomix.model.flops import model_flops
from cocomix.model.modeling_cocomix import CoCoMixForCausalLM
from cocomix.objectives.cocomix import CoCoMixObjective
from cocomix.train.config import TrainConfig
from cocomix.train.optimizer import OPTIMIZERS, TrainingOptimizer
from cocomix.utils.env import autocast

TRAIN = TrainConfig(steps=1)
"""The paper's optimiser settings, for every workload."""


class Gpt2Loss(nn.Module):
    """Transformers' GPT-2 with its own loss, from its own `labels` argument."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the mean next-token loss of `input_ids` int64 `[batch, seq]`, a scalar."""
        return self.model(input_ids=batch["input_ids"], labels=batch["input_ids"], use_cache=False).loss


STUDENTS: dict[str, Callable[[Shape], nn.Module]] = {
    "gpt2": lambda shape: Gpt2Loss(plain_gpt2(shape)),
    "cocomix": lambda shape: CoCoMixObjective(CoCoMixForCausalLM(student_config(shape))),
    "dense": lambda shape: DenseStudent(student_config(shape)),
}
"""Builders of the modules that are trained, by name; each maps a batch to its loss."""

MIXINGS: dict[str, dict[str, Any]] = {
    "bare": {},
    "residual": {"mixer_options": {"slot": "residual"}},
    "scaled": {"vector_scale": 0.3},
    "residual scaled": {"mixer_options": {"slot": "residual"}, "vector_scale": 0.3},
}
"""Fields of our student's configuration, by the name of the variant: what a concept slot starts from."""


def build_student(name: str, shape: Shape) -> nn.Module:
    """Build the student called `name`, a key of `STUDENTS` or of `MIXINGS`."""
    if name in MIXINGS:
        return CoCoMixObjective(CoCoMixForCausalLM(student_config(shape, **MIXINGS[name])))
    return STUDENTS[name](shape)


class TrainingState:
    """A student and its optimiser, shared by the steps of both precisions.

    Args:
        name: key of `STUDENTS` or `MIXINGS`.
        setting: setting of the measurement.
        data: training data.
        optimizer: its optimiser's name.
    """

    def __init__(self, name: str, setting: Setting, data: StoredData, optimizer: str = "adamw") -> None:
        self.name, self.setting, self.data, self.steps = name, setting, data, 0
        self.optimizer = optimizer
        self._built: tuple[nn.Module, TrainingOptimizer] | None = None

    def built(self) -> tuple[nn.Module, TrainingOptimizer]:
        """Return the student and its optimiser, built at the first call."""
        if self._built is None:
            torch.manual_seed(self.setting.seed)
            student = build_student(self.name, self.setting.shape).to(self.setting.device).train()
            self._built = student, OPTIMIZERS[self.optimizer](student, TRAIN)
        return self._built

    def flops(self) -> float:
        """Return the operations of a step; the dense student is counted like ours, by what the arithmetic needs."""
        shape = self.setting.shape
        config = plain_gpt2_config(shape) if self.name == "gpt2" else student_config(shape)
        return model_flops(config, shape.seq_len).training * shape.tokens


def plain_gpt2_config(shape: Shape):
    """Return the configuration of `plain_gpt2` without building weights."""
    with torch.device("meta"):
        return plain_gpt2(shape).config


class TrainingStep(Workload):
    """Read a batch, forward, backward, clip, AdamW, as `Trainer.train_step` does.

    Laps: `data`, `forward_backward`, `update`.
    """

    unit = "token"

    def __init__(self, state: TrainingState, precision: str) -> None:
        self.name, self.state, self.precision = f"{state.name} {precision}", state, precision
        self.units, self.flops = float(state.setting.shape.tokens), state.flops()

    def prepare(self) -> None:
        self.state.built()

    def run(self, lap: Lap) -> None:
        state = self.state
        (student, optimizer), setting = state.built(), state.setting
        batch = state.data.batch(state.steps, setting.shape.batch, setting.device)
        lap("data")
        with autocast(setting.device, self.precision):
            loss = student(batch)
        loss.backward()
        lap("forward_backward")
        torch.nn.utils.clip_grad_norm_(student.parameters(), TRAIN.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state.steps += 1
        lap("update")

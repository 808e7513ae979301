"""Data parallelism: DDP (a copy of the model in each process) or FSDP2 (a shard in each); saving of complete models.

Choices:
- Weights and the optimiser's moments stay float32 in both, and precision is set by autocast, so both compute the same
  numbers.
- Parameter names are the same in both, so a checkpoint of one loads into the other.
- `save_model` and `save_snapshot` write complete models in their own format, to be evaluated or published.
"""

import contextlib
import shutil
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from cocomix.objectives.base import Objective
from cocomix.utils.console import is_main, world_size
from cocomix.utils.distributed import device, on_main
from cocomix.utils.files import move, sync_tree


class Parallel(ABC):
    """Base class of ways to divide a model over processes."""

    def prepare(self, objective: Objective) -> None:
        """Called before the optimiser is created, with the model on the process's device; may replace parameters."""
        return

    @abstractmethod
    def wrap(self, objective: Objective) -> nn.Module:
        """The module to call with a batch; its backward pass averages gradients over the processes."""

    def evaluated(self, objective: Objective) -> None:
        """Called after forward passes without a backward pass."""
        return

    def accumulating(self, wrapped: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Context of the passes of one micro-batch; gradients are only exchanged in the `last` one."""
        return contextlib.nullcontext()


class SingleProcess(Parallel):
    """No parallelism: one process."""

    def wrap(self, objective: Objective) -> nn.Module:
        return objective


class DataParallel(Parallel):
    """DistributedDataParallel: every process holds the complete model."""

    def wrap(self, objective: Objective) -> nn.Module:
        own_device = device()
        device_ids = [own_device.index] if own_device.type == "cuda" else None
        return DistributedDataParallel(objective, device_ids=device_ids)

    def accumulating(self, wrapped: nn.Module, last: bool) -> AbstractContextManager[Any]:
        assert isinstance(wrapped, DistributedDataParallel)
        return contextlib.nullcontext() if last else wrapped.no_sync()


class FullyShardedDataParallel(Parallel):
    """FSDP2: every process holds a shard of each parameter, gathered block by block when needed."""

    def prepare(self, objective: Objective) -> None:
        # CoCoMix's outputs are views; nothing changes them in place.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        mesh = init_device_mesh(device().type, (world_size(),))
        model = objective.evaluated()
        for unit in objective.sharded_units():
            # What encloses the blocks stays gathered until the backward pass: losses read the head's weights after it.
            fully_shard(unit, mesh=mesh, reshard_after_forward=False if unit is model else None)

    def wrap(self, objective: Objective) -> nn.Module:
        return objective

    def evaluated(self, objective: Objective) -> None:
        for module in objective.modules():  # otherwise the outermost stays gathered until a backward pass
            if isinstance(module, FSDPModule):
                module.reshard()

    @contextmanager
    def accumulating(self, wrapped: nn.Module, last: bool) -> Iterator[None]:
        for module in wrapped.modules():
            if isinstance(module, FSDPModule):
                module.set_requires_gradient_sync(last, recurse=False)
        yield


PARALLEL: dict[str, type[Parallel]] = {"ddp": DataParallel, "fsdp": FullyShardedDataParallel}


def parallel(name: str) -> Parallel:
    """The parallelism called `name`; none if there is only one process."""
    return PARALLEL[name]() if world_size() > 1 else SingleProcess()


@contextmanager
def full_parameters(module: nn.Module) -> Iterator[None]:
    """Context in which the main process sees full parameters, on the CPU, and can save `module`; all must enter it."""
    sharded = {id(p): p for p in module.parameters() if isinstance(p, DTensor)}
    places = [(m, name, p) for m in module.modules() for name, p in m._parameters.items() if id(p) in sharded]
    full_by_id: dict[int, nn.Parameter] = {}
    for key, parameter in sharded.items():
        full: torch.Tensor = parameter.full_tensor().detach()
        if is_main():
            full_by_id[key] = nn.Parameter(full.cpu(), requires_grad=parameter.requires_grad)
    try:
        if is_main():
            for owner, name, parameter in places:
                owner._parameters[name] = full_by_id[id(parameter)]
        yield
    finally:
        for owner, name, parameter in places:
            owner._parameters[name] = parameter


def save_model(objective: Objective, folder: Path) -> None:
    """Save the trained model to `folder`; all processes must call it."""
    with full_parameters(objective):
        on_main(lambda: objective.save(folder))


def save_snapshot(objective: Objective, folder: Path, step: int) -> None:
    """Save the model to `folder/snapshots/step-N` atomically; all processes must call it."""
    final = folder / "snapshots" / f"step-{step:08d}"
    temporary = final.with_name(f".{final.name}.tmp")
    save_model(objective, temporary)
    on_main(lambda: _replace(temporary, final))


def _replace(temporary: Path, final: Path) -> None:
    sync_tree(temporary)
    shutil.rmtree(final, ignore_errors=True)
    move(temporary, final)

"""How the processes of one launch share a model: a copy each (DDP) or a shard each (FSDP2).

Weights and the optimiser's moments stay float32 in both; precision is autocast's business, so that both compute the
same numbers. Parameter names are the same in both, so a checkpoint of one loads into the other.
"""

import contextlib
import os
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


class Parallel(ABC):
    """One way to share a model."""

    def prepare(self, objective: Objective) -> None:
        """Called before the optimiser is made, on the process's device; may replace parameters."""
        return

    @abstractmethod
    def wrap(self, objective: Objective) -> nn.Module:
        """What is called with a batch; averages gradients over the processes in its backward pass."""

    def evaluated(self, objective: Objective) -> None:
        """Called after forward passes that no backward pass follows."""
        return

    def accumulating(self, wrapped: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Within: a forward and backward pass of a part of the batch; gradients are exchanged in the last one only."""
        return contextlib.nullcontext()


class Alone(Parallel):
    """One process."""

    def wrap(self, objective: Objective) -> nn.Module:
        return objective


class Replicas(Parallel):
    """DistributedDataParallel: every process holds everything."""

    def wrap(self, objective: Objective) -> nn.Module:
        where = device()
        return DistributedDataParallel(objective, device_ids=[where.index] if where.type == "cuda" else None)

    def accumulating(self, wrapped: nn.Module, last: bool) -> AbstractContextManager[Any]:
        assert isinstance(wrapped, DistributedDataParallel)
        return contextlib.nullcontext() if last else wrapped.no_sync()


class Shards(Parallel):
    """FSDP2: every process holds a share of each parameter, gathered block by block when it is needed."""

    def prepare(self, objective: Objective) -> None:
        # CoCoMix's outputs are views, which nothing changes in place.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        mesh = init_device_mesh(device().type, (world_size(),))
        for unit in objective.sharded_units():
            fully_shard(unit, mesh=mesh)

    def wrap(self, objective: Objective) -> nn.Module:
        return objective

    def evaluated(self, objective: Objective) -> None:
        for module in objective.modules():  # the outermost stays gathered until a backward pass otherwise
            if isinstance(module, FSDPModule):
                module.reshard()

    @contextmanager
    def accumulating(self, wrapped: nn.Module, last: bool) -> Iterator[None]:
        for module in wrapped.modules():
            if isinstance(module, FSDPModule):
                module.set_requires_gradient_sync(last, recurse=False)
        yield


PARALLEL: dict[str, type[Parallel]] = {"ddp": Replicas, "fsdp": Shards}


def parallel(name: str) -> Parallel:
    """The way called `name`; alone there is nothing to share."""
    return PARALLEL[name]() if world_size() > 1 else Alone()


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Within: the main process sees whole parameters, on the CPU, and can save `module`; all processes must enter."""
    sharded = {id(p): p for p in module.parameters() if isinstance(p, DTensor)}
    places = [(m, name, p) for m in module.modules() for name, p in m._parameters.items() if id(p) in sharded]
    put_together: dict[int, nn.Parameter] = {}
    for key, parameter in sharded.items():
        full: torch.Tensor = parameter.full_tensor().detach()
        if is_main():
            put_together[key] = nn.Parameter(full.cpu(), requires_grad=parameter.requires_grad)
    try:
        if is_main():
            for owner, name, parameter in places:
                owner._parameters[name] = put_together[id(parameter)]
        yield
    finally:
        for owner, name, parameter in places:
            owner._parameters[name] = parameter


# Whole models kept along a training run, in their own format, to be evaluated or published like the last one.


def save_model(objective: Objective, folder: Path) -> None:
    """Save the trained model to `folder`; all processes must call it."""
    with whole(objective):
        on_main(lambda: objective.save(folder))


def save_snapshot(objective: Objective, folder: Path, step: int) -> None:
    """Save the model to `folder/snapshots/step-N`, whole or not at all; all processes must call it."""
    final = folder / "snapshots" / f"step-{step:08d}"
    temporary = final.with_name(f".{final.name}.tmp")
    save_model(objective, temporary)
    on_main(lambda: _renamed(temporary, final))


def _renamed(temporary: Path, final: Path) -> None:
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)

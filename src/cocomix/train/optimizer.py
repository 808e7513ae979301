"""Optimisers by name in `OPTIMIZERS`: AdamW, the paper's, and Muon with AdamW for what is no matrix of a block.

An optimiser is made from the trainable module and the training settings. Besides `step` and `zero_grad` it names its
state for checkpoints (`moments`), its bytes for plans and its FLOPs for costs.
"""

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import nn

from cocomix.model.matrices import block_matrices
from cocomix.utils.errors import CocomixError
from cocomix.utils.registry import Registry

if TYPE_CHECKING:
    from cocomix.train.config import TrainConfig

_FUSED = ("cpu", "cuda")
_FLOAT = 4
ITERATIONS = 5
"""Newton-Schulz iterations of a step of Muon."""


class TrainingOptimizer(Protocol):
    """What the trainer and the plans need of an optimiser."""

    name: ClassVar[str]
    shards: ClassVar[bool]
    """whether it works on a shard of each weight (FSDP2)"""
    for_any_model: ClassVar[bool]
    """whether it also trains what has no transformer blocks"""

    def __init__(self, model: nn.Module, config: "TrainConfig") -> None: ...

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Its groups, each with a learning rate `lr`."""
        ...

    def step(self) -> Any:
        """Update the parameters from their gradients."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients."""

    def moments(self, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
        """Its state for a parameter by name, zeros before the first step; writing into it restores it."""
        ...

    @staticmethod
    def step_flops(model: nn.Module) -> float:
        """FLOPs of the matrix products of one step."""
        ...

    @staticmethod
    def state_bytes(model: nn.Module) -> int:
        """Bytes of its state for `model`, which may be on the meta device."""
        ...


class AdamW(torch.optim.AdamW):
    """AdamW with weight decay on matrices only, as in the paper."""

    name: ClassVar[str] = "adamw"
    shards: ClassVar[bool] = True
    for_any_model: ClassVar[bool] = True

    def __init__(self, model: nn.Module, config: "TrainConfig", leave_out: frozenset[int] = frozenset()) -> None:
        groups = parameter_groups(model, config.weight_decay, leave_out)
        # One pass over parameters and moments instead of a dozen, where torch supports it.
        fused = all(parameter.device.type in _FUSED for group in groups for parameter in group["params"])
        super().__init__(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=fused)

    def moments(self, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter, requires_grad=False)
            state["exp_avg_sq"] = torch.zeros_like(parameter, requires_grad=False)
        return state

    @staticmethod
    def step_flops(model: nn.Module) -> float:
        return 0.0

    @staticmethod
    def state_bytes(model: nn.Module) -> int:
        return 2 * _FLOAT * sum(parameter.numel() for parameter in trained(model))


class Muon:
    """`torch.optim.Muon` for the matrices of transformer blocks, AdamW for all else.

    - Query, key and value are a matrix each, also where a model keeps them in one weight, so that families agree.
    - An update's root mean square is 0.2 times the learning rate, about that of AdamW's updates (`match_rms_adamw`,
      from "Muon is Scalable for LLM Training", arXiv 2502.16982). So both share learning rate and weight decay.
    """

    name: ClassVar[str] = "muon"
    shards: ClassVar[bool] = False
    for_any_model: ClassVar[bool] = False

    def __init__(self, model: nn.Module, config: "TrainConfig") -> None:
        self._matrices = {id(matrix.weight): matrix for matrix in block_matrices(model)}
        if not self._matrices:
            raise CocomixError(
                "optimizer muon is for the matrices of transformer blocks, and there are none here; set it to adamw"
            )
        self._adamw = AdamW(model, config, frozenset(self._matrices))
        # Leaves that share the memory of their part of a weight.
        self._parts = {
            key: [nn.Parameter(part) for part in matrix.parts(matrix.weight.detach())]
            for key, matrix in self._matrices.items()
        }
        leaves = [part for parts in self._parts.values() for part in parts]
        self._muon = torch.optim.Muon(
            leaves,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            momentum=config.muon_momentum,
            ns_steps=ITERATIONS,
            adjust_lr_fn="match_rms_adamw",
        )
        self._momentum = {key: torch.zeros_like(matrix.weight.detach()) for key, matrix in self._matrices.items()}
        for key, matrix in self._matrices.items():
            for leaf, buffer in zip(self._parts[key], matrix.parts(self._momentum[key]), strict=True):
                self._muon.state[leaf]["momentum_buffer"] = buffer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [*self._muon.param_groups, *self._adamw.param_groups]

    def step(self) -> None:
        for key, matrix in self._matrices.items():
            gradient = matrix.weight.grad
            gradients = [None] * len(matrix.sizes) if gradient is None else matrix.parts(gradient)
            for leaf, part in zip(self._parts[key], gradients, strict=True):
                leaf.grad = part
        self._muon.step()
        self._adamw.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._adamw.zero_grad(set_to_none)
        self._muon.zero_grad(set_to_none)
        for matrix in self._matrices.values():
            matrix.weight.grad = None

    def moments(self, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
        momentum = self._momentum.get(id(parameter))
        return self._adamw.moments(parameter) if momentum is None else {"momentum_buffer": momentum}

    @staticmethod
    def step_flops(model: nn.Module) -> float:
        """Of the Newton-Schulz iterations on each matrix, m x n with m <= n: 2 (2 m^2 n + m^3) each."""
        shapes = (sorted(shape) for matrix in block_matrices(model) for shape in matrix.shapes())
        return float(ITERATIONS * sum(2 * (2 * m * m * n + m**3) for m, n in shapes))

    @staticmethod
    def state_bytes(model: nn.Module) -> int:
        matrices = sum(matrix.weight.numel() for matrix in block_matrices(model))
        return AdamW.state_bytes(model) - _FLOAT * matrices


OPTIMIZERS: Registry[type[TrainingOptimizer]] = Registry("optimizer", [AdamW, Muon], own=("model", "config"))


def register_optimizer(cls: type[TrainingOptimizer]) -> type[TrainingOptimizer]:
    """Register an optimiser under its `name`; usable as a decorator."""
    return OPTIMIZERS.register(cls)


def adamw(model: nn.Module, config: "TrainConfig") -> AdamW:
    """AdamW over the trainable parameters of `model`."""
    return AdamW(model, config)


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters of `model`, tied ones once."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def parameter_groups(
    model: nn.Module, weight_decay: float, leave_out: frozenset[int] = frozenset()
) -> list[dict[str, Any]]:
    """Parameter groups: matrices with weight decay, vectors (biases, norms) without.

    Args:
        leave_out: `id` of parameters that another optimiser has.
    """
    trainable = [parameter for parameter in trained(model) if id(parameter) not in leave_out]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]

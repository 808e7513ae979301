"""Optimisers by name in `OPTIMIZERS`: AdamW, the paper's, and Muon with AdamW for what is no matrix of a block.

An optimiser is made from the trainable module and the training settings. Besides `step` and `zero_grad` it names its
state for checkpoints (`moments`), its bytes for plans and its FLOPs for costs.
"""

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import nn

from cocomix.model.matrices import block_matrices
from cocomix.utils.env import fast_precision
from cocomix.utils.errors import CocomixError
from cocomix.utils.registry import Registry

if TYPE_CHECKING:
    from cocomix.train.config import TrainConfig

_FUSED = ("cpu", "cuda")
_FLOAT = 4
ITERATIONS = 5
"""Newton-Schulz iterations of a step of Muon."""
BATCH = 1 << 18
"""Most elements of matrices that are orthogonalised at once; larger ones are no faster together."""


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


class BatchedMuon(torch.optim.Muon):
    """`torch.optim.Muon` with a faster step: matrices of one shape are orthogonalised at once.

    torch takes them one by one, always in bfloat16. Small products then take less time than their calls, and a
    processor without bf16 instructions emulates them, at some thirty times the cost of float32. Here the dtype is the
    one that the machine multiplies fast; in bfloat16 the results are torch's, bit for bit.

    Args:
        dtype: of the Newton-Schulz iterations; None: bfloat16 where the machine is fast in it, else float32.
    """

    def __init__(self, leaves: list[nn.Parameter], dtype: torch.dtype | None = None, **options: Any) -> None:
        super().__init__(leaves, adjust_lr_fn="match_rms_adamw", **options)
        self.dtype = dtype or (torch.bfloat16 if fast_precision() == "bf16" else torch.float32)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Momentum, its Nesterov form made orthogonal, decay, update; `closure` is not supported."""
        assert closure is None
        for group in self.param_groups:
            lr, momentum = float(group["lr"]), group["momentum"]
            for shape, leaves in _by_shape(group["params"]).items():
                updates = []
                for leaf in leaves:
                    gradient, buffer = leaf.grad, self.state[leaf]["momentum_buffer"]
                    assert gradient is not None, "_by_shape leaves out those without one"
                    buffer.lerp_(gradient, 1 - momentum)
                    updates.append(gradient.lerp(buffer, momentum))
                at_once = max(1, BATCH // shape.numel())
                for first in range(0, len(leaves), at_once):
                    some = slice(first, first + at_once)
                    made = orthogonalised(updates[some], self.dtype, group["ns_coefficients"])
                    for leaf, update in zip(leaves[some], made, strict=True):
                        leaf.mul_(1 - lr * group["weight_decay"])
                        leaf.add_(update, alpha=-0.2 * lr * max(shape) ** 0.5)


def _by_shape(leaves: list[nn.Parameter]) -> dict[torch.Size, list[nn.Parameter]]:
    found: dict[torch.Size, list[nn.Parameter]] = {}
    for leaf in leaves:
        if leaf.grad is not None:
            found.setdefault(leaf.shape, []).append(leaf)
    return found


def orthogonalised(
    matrices: list[torch.Tensor], dtype: torch.dtype, coefficients: tuple[float, float, float]
) -> list[torch.Tensor]:
    """About U V^T of each matrix U S V^T, all of one shape, in `dtype`: quintic Newton-Schulz iterations, as Muon's.

    X <- a X + (b X X^T + c (X X^T)^2) X, from the matrix over its Frobenius norm, with fewer rows than columns.
    """
    a, b, c = coefficients
    alone = len(matrices) == 1
    add_product = torch.addmm if alone else torch.baddbmm
    x = (matrices[0] if alone else torch.stack(matrices)).to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = add_product(x, add_product(square, square, square, beta=b, alpha=c), x, beta=a)
    x = x.mT if tall else x
    return [x] if alone else list(x)


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
        self._muon = BatchedMuon(
            leaves, lr=config.learning_rate, weight_decay=config.weight_decay, momentum=config.muon_momentum
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

"""When a fast path may read a linear layer's weight instead of calling the layer.

A call of a layer is more than its weight wherever something hooks, wraps, replaces or repacks it: adapters (PEFT),
quantised layers, forward hooks, offloading, tensor parallelism, parametrisations. `plain_linear` is the one test for
that; whatever computes with `layer.weight` asks it first and otherwise calls the layer.
"""

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.modules import module as torch_module

from cocomix.kernels.matmul import few_rows, linear

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def plain_linear(layer: nn.Module, *, shards: bool = False) -> bool:
    """Whether `layer` is exactly an `nn.Linear` whose call computes weight x + bias and nothing else.

    Hooks on all modules at once (`register_module_forward_hook`) do not count: profilers and FLOP counters set them,
    and would otherwise measure another computation than the one that runs without them.

    Args:
        shards: whether the parameters may be shards now, because FSDP2 has gathered them when they are read.
    """
    if type(layer) is not nn.Linear or is_wrapped(layer):
        return False
    return all(_is_dense(tensor) or (shards and type(tensor) is DTensor) for tensor in layer._parameters.values())


def is_wrapped(module: nn.Module) -> bool:
    """Whether hooks, or a replaced `forward` (Accelerate's offloading), add to the module's own forward pass.

    A hook that says it `adds_arguments` changes nothing but the arguments, whose outputs are the module's own.
    """
    before = [hook for hook in module._forward_pre_hooks.values() if not getattr(hook, "adds_arguments", False)]
    return "forward" in module.__dict__ or bool(
        module._forward_hooks or before or module._backward_hooks or module._backward_pre_hooks
    )


def _is_dense(tensor: torch.Tensor | None) -> bool:
    """Whether it is absent, or a floating tensor of no special kind: not quantised, sharded or sparse."""
    if tensor is None:
        return True
    return type(tensor) in (nn.Parameter, torch.Tensor) and tensor.dtype in _DTYPES and tensor.layout is torch.strided


def apply_linear(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`layer(x)`, faster where `x` has a few rows only and the layer is plain."""
    if few_rows(x) and plain_linear(layer) and not _observed():
        assert isinstance(layer, nn.Linear)
        return linear(x, layer.weight, layer.bias)
    return layer(x)


def _observed() -> bool:
    return bool(torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)


def some_outputs(layer: nn.Module, x: torch.Tensor, outputs: slice) -> torch.Tensor:
    """`layer(x)[..., outputs]`; a plain layer computes no others."""
    if not plain_linear(layer):
        return layer(x)[..., outputs]
    assert isinstance(layer, nn.Linear)
    return linear(x, layer.weight[outputs], None if layer.bias is None else layer.bias[outputs])

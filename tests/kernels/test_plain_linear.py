"""A weight is read in place of a call only where the call computes nothing else; else the layer is called."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from cocomix.kernels import apply_linear, plain_linear, some_outputs


class Subclass(nn.Linear):
    """What adapters and quantised layers are."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


class Packed(torch.Tensor):
    """A weight of another kind in an `nn.Linear`, as torchao puts there."""


def forward_hook(layer: nn.Linear) -> nn.Module:
    layer.register_forward_hook(lambda _module, _inputs, output: 3 * output)
    return layer


def forward_pre_hook(layer: nn.Linear) -> nn.Module:
    layer.register_forward_pre_hook(lambda _module, inputs: (2 * inputs[0],))
    return layer


def backward_hook(layer: nn.Linear) -> nn.Module:
    layer.register_full_backward_hook(lambda _module, _inputs, _outputs: None)
    return layer


def backward_pre_hook(layer: nn.Linear) -> nn.Module:
    layer.register_full_backward_pre_hook(lambda _module, _outputs: None)
    return layer


def replaced_forward(layer: nn.Linear) -> nn.Module:
    before = layer.forward
    layer.forward = lambda x: 4 * before(x)
    return layer


def pruned(layer: nn.Linear) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", amount=0.5)


def packed(layer: nn.Linear) -> nn.Module:
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Packed))
    return layer


def subclass(layer: nn.Linear) -> nn.Module:
    other = Subclass(layer.in_features, layer.out_features)
    other.load_state_dict(layer.state_dict())
    return other


CHANGES = [
    forward_hook, forward_pre_hook, backward_hook, backward_pre_hook, replaced_forward, pruned, packed, subclass,
    parametrizations.weight_norm, parametrizations.spectral_norm,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_layer_that_is_more_than_its_weight_is_called(change: Callable[[nn.Linear], nn.Module]) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 8)
    assert plain_linear(layer)
    changed = change(layer).eval()
    assert not plain_linear(changed)
    for rows in (1, 2, 20):
        x = torch.randn(rows, 6)
        assert torch.equal(apply_linear(changed, x), changed(x))
        assert torch.equal(some_outputs(changed, x, slice(3, None)), changed(x)[..., 3:])


def test_it_is_plain_again_without_its_hook() -> None:
    layer = nn.Linear(3, 2)
    handle = layer.register_forward_hook(lambda *_: None)
    assert not plain_linear(layer)
    handle.remove()
    assert plain_linear(layer)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_a_weight_that_needs_another_product_is_not_plain(dtype: torch.dtype) -> None:
    layer = nn.Linear(4, 4, bias=False)
    layer.weight = nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
    assert not plain_linear(layer)
    assert not plain_linear(nn.Embedding(4, 4))


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("bias", [True, False])
def test_some_outputs_of_a_plain_layer(rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 8, bias=bias), torch.randn(2, rows, 6)
    for outputs in (slice(3), slice(3, None), slice(2, 5)):
        torch.testing.assert_close(some_outputs(layer, x, outputs), layer(x)[..., outputs])


def test_an_observer_of_all_modules_sees_the_layer_over_a_few_rows() -> None:
    layer, seen = nn.Linear(6, 5), []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, _inputs, output: seen.append((module, output))
    )
    try:
        output = apply_linear(layer, torch.randn(1, 6))
    finally:
        handle.remove()
    assert len(seen) == 1 and seen[0][0] is layer and seen[0][1] is output

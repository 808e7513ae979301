"""GELU in one operation is GELU spelt out."""

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from cocomix.labels.exact import UNFUSED_GELUS, fused_gelu
from tests.labels.test_families import FAMILIES, made, tokens


@pytest.mark.parametrize("kind", UNFUSED_GELUS)
def test_values_and_gradients_are_those_of_the_class_itself(kind: type[nn.Module]) -> None:
    model = nn.Sequential(kind())
    x = torch.linspace(-9, 9, 201, dtype=torch.float64, requires_grad=True)
    slow = model(x)
    with fused_gelu(model):
        fast = model(x)
    assert "Gelu" in type(fast.grad_fn).__name__ and "Gelu" not in type(slow.grad_fn).__name__
    # One of the classes writes sqrt(2 / pi) with ten digits.
    assert (fast - slow).abs().max() < 1e-9
    ours, theirs = (torch.autograd.grad(one.sum(), x)[0] for one in (fast, slow))
    assert theirs.abs().max() > 1 and (ours - theirs).abs().max() < 1e-9
    assert type(model(x).grad_fn) is type(slow.grad_fn)


def test_other_activations_and_wrapped_ones_stay() -> None:
    model = nn.Sequential(ACT2FN["quick_gelu"], ACT2FN["silu"], UNFUSED_GELUS[0]())
    wrapped = model[2].forward = lambda x: x
    with fused_gelu(model):
        assert "forward" not in model[0].__dict__ and "forward" not in model[1].__dict__
        assert model[2].forward is wrapped
    assert model[2].forward is wrapped


def test_gpt2_runs_with_it() -> None:
    model, ids = made(FAMILIES["gpt2"]).double(), tokens()
    slow = model(ids).logits
    with fused_gelu(model):
        assert all("forward" in block.mlp.act.__dict__ for block in model.transformer.h)
        fast = model(ids).logits
    assert (fast - slow).abs().max() < 1e-9

"""The divergence in chunks equals the plain one, with its gradient, whatever the chunk."""

import pytest
import torch
import torch.nn.functional as F

from cocomix.kernels import linear_divergence


def made(bias, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x, target = (torch.randn(7, 4, generator=generator, dtype=dtype).requires_grad_() for _ in range(2))
    weight = torch.randn(30, 4, generator=generator, dtype=dtype).requires_grad_()
    offset = torch.randn(30, generator=generator, dtype=dtype).requires_grad_() if bias else None
    return x, target, weight, offset


def by_its_definition(x, target, weight, bias):
    total = x.new_zeros(())
    for row in range(len(x)):
        p, q = (F.linear(one[row], weight, bias).softmax(-1) for one in (target, x))
        total = total + sum(p[v] * (p[v].log() - q[v].log()) for v in range(len(weight)))
    return total


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_it_equals_the_definition(bias, rows, monkeypatch):
    monkeypatch.setattr("cocomix.kernels.divergence.CHUNK_BYTES", 8 * 30 * rows)
    inputs = made(bias)
    found, slow = linear_divergence(*inputs), by_its_definition(*inputs)
    torch.testing.assert_close(found, slow)
    (3 * found).backward()
    x, *others = inputs
    torch.testing.assert_close(x.grad, torch.autograd.grad(3 * slow, x)[0])
    assert all(one is None or one.grad is None for one in others)  # the layer and the target stay as they are


def test_no_divergence_from_itself():
    x, _, weight, _ = made(False)
    found = linear_divergence(x, x.detach(), weight)
    assert found == 0 and not torch.autograd.grad(found, x)[0].any()


def test_autocast_agrees_within_its_precision():
    inputs = made(True, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear_divergence(*inputs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, by_its_definition(*inputs), rtol=0.05, atol=0.05)

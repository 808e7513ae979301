"""A linear layer over a few rows is a linear layer, with every gradient."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cocomix.kernels import apply_linear
from cocomix.kernels.matmul import MOST_ROWS, linear


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(0, 4), min_size=0, max_size=2),
    d=st.integers(1, 40),
    out=st.integers(1, 40),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    strided=st.booleans(),
    seed=st.integers(0, 99),
)
def test_it_equals_f_linear(shape, d, out, bias, dtype, strided, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, 2 * d if strided else d, generator=generator).to(dtype)
    x = (x[..., ::2] if strided else x).requires_grad_()
    weight = torch.randn(out, d, generator=generator).to(dtype).requires_grad_()
    offset = torch.randn(out, generator=generator).to(dtype).requires_grad_() if bias else None
    mine, theirs = linear(x, weight, offset), F.linear(x, weight, offset)
    assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
    torch.testing.assert_close(mine, theirs)
    wanted = [one for one in (x, weight, offset) if one is not None]
    into = torch.randn(mine.shape, generator=generator).to(dtype)
    for a, b in zip(torch.autograd.grad(mine, wanted, into), torch.autograd.grad(theirs, wanted, into), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("rows", [1, 2, MOST_ROWS, MOST_ROWS + 1])
def test_a_layer_is_applied_as_if_it_were_called(rows):
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 5), torch.randn(rows, 6)
    torch.testing.assert_close(apply_linear(layer, x), layer(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(apply_linear(layer, x), layer(x)) and apply_linear(layer, x).dtype == torch.bfloat16

"""Sums over K rows equal the dense product with K non-zeros in C, with every gradient."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cocomix.kernels import row_products, weighted_rows
from cocomix.kernels.sparse import rows_gradient


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 8),
    c=st.integers(1, 20),
    d=st.integers(1, 5),
    k=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_it_equals_the_dense_product(n, c, d, k, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(1, n, k, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(c, d, generator=generator, dtype=torch.float64).requires_grad_()
    ids = torch.randint(0, c, (1, n, k), generator=generator)  # also one row several times
    dense = torch.zeros(1, n, c, dtype=torch.float64).scatter_add(-1, ids, values)
    mine, theirs = weighted_rows(values, ids, weight), dense @ weight
    torch.testing.assert_close(mine, theirs)
    into = torch.randn(mine.shape, generator=generator, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad(mine, (values, weight), into),
        torch.autograd.grad(theirs, (values, weight), into),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    products = (into @ weight.detach().T).gather(-1, ids)
    torch.testing.assert_close(row_products(into, ids, weight.detach()), products)
    by_loop = torch.zeros(c, d, dtype=torch.float64)
    for position in range(n):
        for place in range(k):
            by_loop[ids[0, position, place]] += values[0, position, place].detach() * into[0, position]
    torch.testing.assert_close(rows_gradient(values[0].detach(), ids[0], into[0], c), by_loop)


def test_finite_differences_agree():
    values = torch.randn(3, 2, dtype=torch.float64).requires_grad_()
    weight = torch.randn(5, 4, dtype=torch.float64).requires_grad_()
    ids = torch.tensor([[0, 4], [1, 1], [2, 0]])
    assert torch.autograd.gradcheck(lambda v, w: weighted_rows(v, ids, w), (values, weight))


def test_rows_nobody_names_get_no_gradient():
    weight = torch.randn(6, 3).requires_grad_()
    weighted_rows(torch.ones(2, 2), torch.tensor([[1, 2], [2, 5]]), weight).sum().backward()
    assert weight.grad is not None
    assert [bool(row.any()) for row in weight.grad] == [False, True, True, False, False, True]


def test_no_positions():
    weight = torch.randn(6, 3).requires_grad_()
    out = weighted_rows(torch.ones(0, 2), torch.ones(0, 2, dtype=torch.int64), weight)
    assert out.shape == (0, 3)
    out.sum().backward()
    assert weight.grad is not None and not weight.grad.any()

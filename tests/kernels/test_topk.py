"""Grouped TopK is TopK."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cocomix.kernels import largest
from cocomix.kernels.sparse import _group_size


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 3000),
    k=st.integers(1, 12),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    ties=st.booleans(),
)
def test_values_equal_torchs_and_ids_point_at_them(rows, columns, k, seed, dtype, ties):
    k = min(k, columns)
    scores = torch.randn(2, rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)
    if ties:
        scores = scores.round()
    values, ids = largest(scores, k)
    assert torch.equal(values, scores.topk(k).values)
    assert torch.equal(scores.gather(-1, ids), values)
    assert all(len(set(row)) == k for row in ids.flatten(0, 1).tolist())


def test_the_groups_are_used_at_the_paper_s_width():
    assert _group_size(32768, 32) == 16


def test_the_gradient_goes_to_the_chosen():
    scores = torch.randn(3, 700, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: largest(s, 5)[0], scores)


def test_infinities_and_nan_come_first_as_in_torch():
    scores = torch.randn(1, 400)
    scores[0, [3, 77]] = float("inf")
    scores[0, 9] = float("nan")
    values, ids = largest(scores, 3)
    theirs = scores.topk(3)
    assert torch.equal(values.nan_to_num(nan=-1), theirs.values.nan_to_num(nan=-1))
    assert torch.equal(ids, theirs.indices) or set(ids[0, 1:].tolist()) == {3, 77}

"""Losses in chunks equal the plain ones, with every gradient, whatever the chunk."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cocomix.kernels import linear_cross_entropy as losses
from cocomix.kernels import linear_losses


def plain(x, weight, bias, targets, top_k):
    """Sum of J cross entropies per position, one at a time, and torch's own TopK."""
    scores = F.linear(x, weight, bias)
    total = x.new_zeros(())
    for column in targets.T:
        total = total + F.cross_entropy(scores, column, ignore_index=-100, reduction="sum")
    values, ids = scores.topk(top_k, dim=-1)
    return total, values, ids


def made(n, v, d, j, bias, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(v, d, generator=generator, dtype=dtype).requires_grad_()
    offset = torch.randn(v, generator=generator, dtype=dtype).requires_grad_() if bias else None
    targets = torch.randint(0, v, (n, j), generator=generator)
    targets[torch.rand(n, j, generator=generator) < 0.3] = -100
    return x, weight, offset, targets


def gradients(total, values, given, seed=1):
    """Gradients of 0.7 total + <r, values>."""
    out = 0.7 * total
    if values is not None and values.numel():
        out = out + (values * torch.randn(values.shape, generator=torch.Generator().manual_seed(seed)).to(values)).sum()
    wanted = [one for one in given if one is not None]
    return torch.autograd.grad(out, wanted, allow_unused=True)


@pytest.mark.parametrize(("chunk", "part"), [(1, 1), (3, 2), (1000, 4), (1000, 1000)])
@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 9),
    v=st.integers(2, 70),
    d=st.integers(1, 6),
    j=st.integers(1, 4),
    bias=st.booleans(),
    k=st.integers(0, 5),
    seed=st.integers(0, 1000),
)
def test_it_equals_plain_cross_entropies_and_topk(chunk, part, n, v, d, j, bias, k, seed):
    k = min(k, v)
    inputs = made(n, v, d, j, bias, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cocomix.kernels.linear_cross_entropy.CHUNK_BYTES", 4 * v * chunk)
        patch.setattr("cocomix.kernels.linear_cross_entropy.PART_BYTES", 4 * v * part)
        found = linear_losses(*inputs, top_k=k)
        got = gradients(found.total, found.values, inputs[:3])
    total, values, ids = plain(*inputs, k)
    torch.testing.assert_close(found.total, total)
    assert int(found.count) == int((inputs[3] != -100).sum())
    if k:
        assert torch.equal(found.values, values) or torch.allclose(found.values, values, rtol=1e-12)
        assert torch.equal(found.ids, ids)
    else:
        assert found.values is None and found.ids is None
    for mine, theirs in zip(got, gradients(total, values if k else None, inputs[:3]), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("bias", [False, True])
def test_weighted_targets_equal_weighted_cross_entropies(bias, monkeypatch):
    x, weight, offset, targets = made(7, 30, 5, 3, bias)
    weights = torch.rand(7, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weights[2], weights[4, 1] = 0, 0
    monkeypatch.setattr("cocomix.kernels.linear_cross_entropy.CHUNK_BYTES", 4 * 30 * 3)
    found = linear_losses(x, weight, offset, targets, weights=weights)
    scores, slow = F.linear(x, weight, offset), x.new_zeros(())
    for row in range(7):
        for place in range(3):
            if targets[row, place] != -100:
                slow = slow - weights[row, place] * scores[row].log_softmax(-1)[targets[row, place]]
    torch.testing.assert_close(found.total, slow)
    given = (x, weight, offset)
    for mine, theirs in zip(gradients(found.total, None, given), gradients(slow, None, given), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_finite_differences_agree():
    x, weight, bias, targets = made(3, 7, 4, 2, True)
    scale = torch.randn(3, 2, dtype=torch.float64)

    def f(x, weight, bias):
        found = linear_losses(x, weight, bias, targets, top_k=2)
        return found.total + (found.values * scale).sum()

    assert torch.autograd.gradcheck(f, (x, weight, bias))


def test_a_second_backward_pass_gives_the_same_gradients():
    inputs = made(4, 9, 3, 2, True)
    found = linear_losses(*inputs, top_k=2)
    out = 3 * found.total + found.values.sum()
    first = torch.autograd.grad(out, inputs[:3], retain_graph=True)
    for one, two in zip(first, torch.autograd.grad(out, inputs[:3]), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("asked", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_only_the_gradients_asked_for_are_made(asked):
    inputs = made(5, 11, 3, 2, True)
    expected = gradients(*plain(*inputs, 2)[:2], inputs[:3])
    given = [one.detach().requires_grad_(place in asked) for place, one in enumerate(inputs[:3])]
    found = linear_losses(*given, inputs[3], top_k=2)
    got = gradients(found.total, found.values, [given[place] for place in asked])
    for place, gradient in zip(asked, got, strict=True):
        torch.testing.assert_close(gradient, expected[place])


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("cap", "z"), [(2.5, 0.0), (None, 0.3), (2.5, 0.3)])
def test_cap_and_z_loss_equal_the_formulas_with_every_gradient(cap, z, bias, chunk, monkeypatch):
    x, weight, offset, targets = made(7, 30, 5, 3, bias)
    weights = torch.rand(7, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weights[2] = 0
    monkeypatch.setattr("cocomix.kernels.linear_cross_entropy.CHUNK_BYTES", 4 * 30 * chunk)
    monkeypatch.setattr("cocomix.kernels.linear_cross_entropy.PART_BYTES", 4 * 30 * 2)
    found = linear_losses(x, weight, offset, targets, weights=weights, cap=cap, z_weight=z)
    scores, slow = F.linear(x, weight, offset), x.new_zeros(())
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    for row in range(7):
        for place in range(3):
            if targets[row, place] != -100:
                log_z = scores[row].exp().sum().log()
                slow = slow + weights[row, place] * (log_z - scores[row, targets[row, place]] + z * log_z**2)
    torch.testing.assert_close(found.total, slow)
    given = (x, weight, offset)
    for mine, theirs in zip(gradients(found.total, None, given), gradients(slow, None, given), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_cap_and_z_loss_stay_close_in_bfloat16():
    x, weight, offset, targets = made(40, 30, 5, 1, True, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_losses(x, weight, offset, targets, cap=3.0, z_weight=0.1)
    exact = linear_losses(x, weight, offset, targets, cap=3.0, z_weight=0.1)
    torch.testing.assert_close(found.total, exact.total, rtol=1e-2, atol=0)
    for mine, theirs in zip(torch.autograd.grad(found.total, x), torch.autograd.grad(exact.total, x), strict=True):
        assert (mine - theirs).norm() < 0.02 * theirs.norm()


def test_nothing_labelled_is_no_loss_and_no_gradient():
    x, weight, bias, targets = made(4, 6, 3, 2, True)
    found = linear_losses(x, weight, bias, torch.full_like(targets, -100))
    assert float(found.total.detach()) == 0 and int(found.count) == 0
    assert all(not g.any() for g in torch.autograd.grad(found.total, (x, weight, bias)))


def test_very_unlikely_targets_keep_a_finite_loss():
    x, weight = torch.tensor([[1.0]]), torch.tensor([[400.0], [0.0], [-400.0]])
    found = linear_losses(x, weight, None, torch.tensor([[2]]))
    assert float(found.total) == 800


def test_without_gradients_the_same_loss():
    inputs = made(6, 30, 5, 3, True)
    with torch.no_grad():
        quiet = linear_losses(*inputs, top_k=3)
    loud = linear_losses(*inputs, top_k=3)
    assert torch.equal(quiet.total, loud.total) and torch.equal(quiet.values, loud.values)
    assert not quiet.total.requires_grad


@pytest.mark.parametrize("part", [7, 1000])
def test_autocast_agrees_with_the_plain_autocast_within_its_precision(part, monkeypatch):
    monkeypatch.setattr("cocomix.kernels.linear_cross_entropy.PART_BYTES", 4 * 500 * part)
    inputs = made(64, 500, 32, 4, True, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear_losses(*inputs, top_k=8)
        scores = F.linear(*inputs[:3]).float()
    total = sum(F.cross_entropy(scores, c, ignore_index=-100, reduction="sum") for c in inputs[3].T)
    torch.testing.assert_close(found.total, total, rtol=1e-5, atol=1e-3)
    assert torch.equal(found.values, scores.topk(8).values)
    for mine, theirs in zip(
        gradients(found.total, found.values, inputs[:3]),
        gradients(total, scores.gather(-1, found.ids), inputs[:3]),
        strict=True,
    ):
        assert mine.dtype == torch.float32
        assert (mine - theirs).norm() < 0.01 * theirs.norm()


def test_memory_held_is_a_chunk(monkeypatch):
    """No tensor as large as all scores is ever allocated."""
    n, v, d = 256, 2048, 8
    monkeypatch.setattr("cocomix.kernels.linear_cross_entropy.CHUNK_BYTES", 4 * v * 16)
    inputs = made(n, v, d, 2, True, dtype=torch.float32)
    with torch.profiler.profile(profile_memory=True) as profile:
        found = linear_losses(*inputs, top_k=4)
        (found.total + found.values.sum()).backward()
    largest = max((event.cpu_memory_usage for event in profile.events()), default=0)
    assert 0 < largest < 4 * n * v / 4


@pytest.mark.parametrize("most", [1, 63, 64, 333, 5000])
def test_chunks_are_about_equal_and_no_larger_than_allowed(most: int) -> None:
    for n in (0, 1, 63, 64, 65, 1000, 1024, 2048, 4100):
        size = losses.chunk_size(n, most)
        number = -(-n // max(1, size))
        assert 1 <= size <= most
        assert number <= max(1, 2 * -(-n // most))  # rounding down costs no more than one in two
        assert most < 64 or n < 64 or size % 64 == 0


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_what_is_held_is_what_is_said(dtype, width, monkeypatch):
    monkeypatch.setattr("cocomix.kernels.linear_cross_entropy.CHUNK_BYTES", 4 * 500 * 64)
    monkeypatch.setattr("cocomix.kernels.linear_cross_entropy.PART_BYTES", 4 * 500 * 16)
    work = losses._Chunks(torch.randn(1000, 8), torch.randn(500, 8), None, dtype, torch.float32, [False] * 3)
    held = [work.buffer, *([] if work.wide_part is None else [work.wide_part])]
    assert losses.held_bytes(1000, 500, width) == sum(one.nbytes for one in held)

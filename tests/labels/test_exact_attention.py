"""Attention with an own key and value at each position: by the loop, by the definition, and without scores."""

import pytest
import torch

from cocomix.labels.exact import can_fuse, exact_attention, fused_exact_attention

BATCH, HEADS, SEQ, WIDTH = 2, 3, 37, 16


def inputs(dtype: torch.dtype, seq: int = SEQ) -> list[torch.Tensor]:
    """Query, own key, own value, others' keys and others' values; the first three take gradients."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(BATCH, seq, HEADS, WIDTH, generator=generator).to(dtype).transpose(1, 2) for _ in range(5)]
    return [one.requires_grad_(place < 3) for place, one in enumerate(made)]


def loop(query, key, value, others, scale, mask=None, softcap=None):
    """The definition, a position at a time."""
    rows = []
    for t in range(query.shape[-2]):
        keys = torch.cat([others[0][:, :, :t], key[:, :, t : t + 1]], 2)
        values = torch.cat([others[1][:, :, :t], value[:, :, t : t + 1]], 2)
        scores = (query[:, :, t : t + 1] @ keys.transpose(-1, -2)) * scale
        if softcap is not None:
            scores = softcap * (scores / softcap).tanh()
        if mask is not None:
            scores = scores.masked_fill(~mask[:, :, t : t + 1, : t + 1], -torch.inf)
        rows.append(scores.softmax(-1) @ values)
    return torch.cat(rows, 2)


def with_gradients(attention, made, **options):
    """Output, and gradients of a weighted sum of it."""
    query, key, value, *others = made
    out = attention(query, key, value, tuple(others), 0.3, **options)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out.dtype)
    return out, *torch.autograd.grad((out * weights).sum(), (query, key, value))


@pytest.mark.parametrize("seq", [2, 3, SEQ, 600])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_fused_equals_the_loop_and_the_definition(dtype: torch.dtype, tolerance: float, seq: int) -> None:
    made = inputs(dtype, seq)
    assert can_fuse(made[0], made[2])
    fast = with_gradients(fused_exact_attention, made)
    slows = [with_gradients(exact_attention, made)] + ([with_gradients(loop, made)] if seq <= SEQ else [])
    for slow in slows:
        for ours, theirs in zip(fast, slow, strict=True):
            assert theirs.abs().max() > 0.1 and ours.dtype == dtype
            assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def test_fused_in_bfloat16_is_as_close_to_the_truth_as_the_definition_in_bfloat16() -> None:
    made = inputs(torch.bfloat16, 300)
    exact = [one.detach().double().requires_grad_(one.requires_grad) for one in made]
    truth = with_gradients(exact_attention, exact)
    fast, slow = with_gradients(fused_exact_attention, made), with_gradients(exact_attention, made)
    for ours, theirs, true in zip(fast, slow, truth, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours - true).norm() <= 1.1 * (theirs - true).norm() + 1e-3 * true.norm()


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_definition_equals_the_loop_under_masks(softcap: float | None) -> None:
    made = inputs(torch.float64)
    mask = torch.ones(BATCH, 1, SEQ, SEQ, dtype=torch.bool).tril()
    mask = mask & ~mask.tril(-9)  # a window
    mask[0, :, :, :4] = False  # left padding
    mask[0, :, :4] = torch.eye(SEQ, dtype=torch.bool)[:4]  # else the loop has nothing to look at
    fast, slow = (with_gradients(one, made, mask=mask, softcap=softcap) for one in (exact_attention, loop))
    for ours, theirs in zip(fast, slow, strict=True):
        assert theirs.abs().max() > 0.1
        assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max()


def test_a_position_that_sees_nothing_stays_finite() -> None:
    made = inputs(torch.float32, 5)
    mask = torch.zeros(BATCH, 1, 5, 5, dtype=torch.bool)
    assert all(one.isfinite().all() for one in with_gradients(exact_attention, made, mask=mask))


def test_what_cannot_be_fused_is_told() -> None:
    query, _, value, *_ = inputs(torch.float32, 1)
    assert not can_fuse(query, value)  # nothing before it
    query, _, value, *_ = inputs(torch.float32)
    assert not can_fuse(query, value[..., :-1])
    assert not can_fuse(query.to("meta"), value.to("meta"))

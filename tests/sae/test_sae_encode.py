"""Encoding in chunks, with sparse gradients, against the dense product and its autograd."""

import pytest
import torch

from cocomix.kernels import largest
from cocomix.sae import TopKSAE
from cocomix.sae import sae as sae_encode
from cocomix.sae.sae import ACTIVATIONS, encode_chosen, equal_chunks


def choose(pre: torch.Tensor, k: int) -> torch.Tensor:
    return largest(pre, k)[1]


def dense(x, pre_bias, weight, bias, k):
    """All pre-activations, then TopK."""
    pre = (x if pre_bias is None else x - pre_bias) @ weight.T + bias
    top = pre.topk(k, dim=-1)
    return top.values, top.indices


@pytest.mark.parametrize("rows", [1, 4, 7, 1000])
@pytest.mark.parametrize("centred", [True, False])
def test_values_and_every_gradient_equal_the_dense_ones(
    rows: int, centred: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, pre_bias, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((25, 8), (8,), (40, 8), (40,))
    )
    monkeypatch.setattr(sae_encode, "CHUNK_BYTES", rows * 40 * 8)
    given = x, pre_bias if centred else None, weight, bias
    values, ids = encode_chosen(*given, 5, choose)
    slow, slow_ids = dense(*given, 5)
    assert torch.equal(ids, slow_ids) and (values - slow).abs().max() < 1e-12
    into = torch.randn(25, 5, generator=generator, dtype=torch.float64)
    wanted = [one for one in given if one is not None]
    ours, theirs = (torch.autograd.grad((one * into).sum(), wanted) for one in (values, slow))
    for a, b in zip(ours, theirs, strict=True):
        assert b.abs().max() > 0.1 and (a - b).abs().max() <= 1e-12 * b.abs().max()


def test_inputs_that_take_no_gradient_cost_none() -> None:
    x, weight, bias = torch.randn(6, 4), torch.randn(9, 4), torch.randn(9)
    pre_bias = torch.randn(4, requires_grad=True)
    values, _ = encode_chosen(x, pre_bias, weight, bias, 2, choose)
    (slow,) = torch.autograd.grad(dense(x, pre_bias, weight, bias, 2)[0].sum(), pre_bias)
    (fast,) = torch.autograd.grad(values.sum(), pre_bias)
    assert (fast - slow).abs().max() < 1e-5
    values, ids = encode_chosen(x[:0], pre_bias, weight, bias, 2, choose)
    assert values.shape == ids.shape == (0, 2)


@pytest.mark.parametrize("spread", [1.0, 0.05])
def test_screening_in_bfloat16_finds_what_full_precision_finds(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 64, generator=generator)
    # Rows near one of a few directions, as an autoencoder's families of latents are, are hard to tell apart.
    directions = torch.randn(64, 64, generator=generator).repeat(64, 1)
    rows = directions + spread * torch.randn(4096, 64, generator=generator)
    weight, bias = torch.nn.functional.normalize(rows, dim=-1).requires_grad_(), torch.zeros(4096)
    values, ids = encode_chosen(x, None, weight, bias, 32, choose, torch.bfloat16)
    slow, slow_ids = dense(x, None, weight, bias, 32)
    assert values.dtype == torch.float32
    missed = (ids.sort(-1).values != slow_ids.sort(-1).values).any(-1)
    assert missed.double().mean() <= (0.0 if spread == 1.0 else 0.1)
    assert (values - slow).abs().max() <= 2**-7 * slow.abs().max()  # those missed were as good as those found
    assert (values[~missed] - slow[~missed]).abs().max() < 1e-5
    ours, theirs = (torch.autograd.grad(one[~missed].sum(), weight)[0] for one in (values, slow))
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    monkeypatch.setattr(sae_encode, "_CANDIDATES", 1)  # the closer look is what does it
    _, ids = encode_chosen(x, None, weight, bias, 32, choose, torch.bfloat16)
    assert (ids.sort(-1).values != slow_ids.sort(-1).values).any(-1).double().mean() > 0.1


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_autocast_screens_where_order_is_kept(kind: str) -> None:
    torch.manual_seed(0)
    activation = ACTIVATIONS[kind](40, **({"groups": 8} if kind == "groupmax" else {}))
    sae, x = TopKSAE(16, 40, 6, activation=activation), torch.randn(30, 16)
    plain = sae.encode(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        screened = sae.encode(x)
    assert screened.values.dtype == torch.float32
    if activation.keeps_order:
        assert torch.equal(screened.ids, plain.ids) and (screened.values - plain.values).abs().max() < 1e-5
    else:
        assert all(torch.equal(a, b) for a, b in zip(screened, plain, strict=True))


@pytest.mark.parametrize("n", [0, 1, 5, 24, 25, 97])
@pytest.mark.parametrize("most", [0, 1, 3, 24, 1000])
def test_chunks_have_one_length_and_cover_everything(n: int, most: int) -> None:
    chunks = list(equal_chunks(n, most))
    assert {place for rows in chunks for place in range(n)[rows]} == set(range(n))
    assert len({rows.stop - rows.start for rows in chunks}) <= 1
    assert all(rows.start >= 0 and rows.stop <= n and rows.stop - rows.start <= max(1, most) for rows in chunks)
    assert len(chunks) == -(-n // max(1, most))

"""Products in tiles against plain ones."""

import pytest
import torch

from cocomix.kernels.matmul import _BLOCK, _TILE, add_product, scores_into


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [1, _TILE, 2 * _TILE + 5])
@pytest.mark.parametrize("biased", [True, False])
def test_scores_equal_the_plain_product(biased: bool, columns: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, generator=generator).to(dtype) for shape in ((7, 16), (columns, 16), (columns,))
    )
    given = bias if biased else None
    out = torch.full((7, columns), torch.nan, dtype=dtype)
    assert scores_into(out, x, weight, given) is out
    slow = x.double() @ weight.double().T + (bias.double() if biased else 0)
    assert (out.double() - slow).abs().max() <= 8 * torch.finfo(dtype).eps * slow.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, _BLOCK, 2 * _BLOCK + 5])
def test_added_products_equal_the_plain_sum(rows: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((7, rows), (7, 16)))
    into = torch.randn(rows, 16, generator=generator).to(torch.promote_types(dtype, torch.float32))
    slow = into.double() + left.double().T @ right.double()
    add_product(into, left.T, right)
    assert (into.double() - slow).abs().max() <= 8 * torch.finfo(dtype).eps * slow.abs().max()

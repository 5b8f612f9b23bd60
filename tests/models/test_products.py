"""Products with frozen weights, in every layout and by every library, against torch's own."""

from __future__ import annotations

import pytest
import torch

from mint.models import products
from mint.models.products import WORTH_ONEDNN, Product, can_pack, linear

BOUND = 1e-5


def test_the_private_operators_are_still_there() -> None:
    """Without them everything works, and more slowly: the figures in the documents would be wrong."""
    assert products.ONEDNN_LINEAR is not None
    assert products.ONEDNN_PACK is not None
    assert can_pack(torch.zeros(3, 2))
    assert not can_pack(torch.zeros(3, 2, dtype=torch.bfloat16))


@pytest.mark.parametrize("rows", [1, 7, WORTH_ONEDNN - 1, WORTH_ONEDNN, 300])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_products_equal_torchs(rows: int, bias: bool, transposed: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(24, 40).t() if transposed else torch.randn(40, 24)
    x, b = torch.randn(rows, 24), torch.randn(40) if bias else None
    expected = x.double() @ weight.double().t() + (0 if b is None else b.double())
    for packed in (False, True):
        assert float((Product(weight, b, packed=packed)(x) - expected).abs().max()) < BOUND
    assert float((linear(x, weight, b) - expected).abs().max()) < BOUND


def test_rows_that_lie_apart() -> None:
    torch.manual_seed(0)
    weight, wide = torch.randn(16, 8), torch.randn(200, 20)
    x = wide[:, 3:11]
    for packed in (False, True):
        assert float((Product(weight, packed=packed)(x) - x @ weight.T).abs().max()) < BOUND

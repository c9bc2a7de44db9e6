"""Products over packed weights equal the linear layer's, alone and side by side."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fspad_bench.engine.cpu import linear, native
from fspad_bench.engine.cpu.linear import Matrix, stacked

BOUND = {torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float64: 0}
WIDTHS = {24: "torch's", 64: "the compiled product's"}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", WIDTHS, ids=WIDTHS.get)
@pytest.mark.parametrize("rows", [(1,), (2,), (33,), (3, 7), (1, 1, 5), (native.ROWS + 1,)])
def test_products_equal_the_stock_ones(rows, width, bias, dtype):
    generator = torch.Generator().manual_seed(len(rows))

    def some(*shape):
        return (torch.randn(*shape, generator=generator) / 3).to(dtype)

    weight = some(40, width)
    given = some(40) if bias else None
    x = some(*rows, width)
    matrix = Matrix(weight, given)
    assert (matrix.in_features, matrix.out_features) == (width, 40)
    with torch.inference_mode():
        product = matrix(x)
    assert product.shape == (*rows, 40)
    torch.testing.assert_close(product, F.linear(x, weight, given), rtol=0, atol=BOUND[dtype])


@pytest.mark.skipif(native.native() is None, reason="nothing is compiled here")
def test_weights_are_packed_where_the_compiled_product_serves_them():
    assert Matrix(torch.randn(5, 64)).packed is not None
    assert Matrix(torch.randn(5, 64, dtype=torch.bfloat16)).packed is not None
    assert Matrix(torch.randn(5, 24)).packed is None
    assert Matrix(torch.randn(5, 64, dtype=torch.float64)).packed is None


@pytest.mark.parametrize("is_fast", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_many_rows_are_multiplied_in_float32_where_bfloat16_is_slow(monkeypatch, bias, is_fast):
    monkeypatch.setattr(linear, "multiplies_bfloat16", lambda: is_fast)
    widths = []
    multiplied = F.linear
    monkeypatch.setattr(
        F, "linear", lambda x, *rest: widths.append(x.dtype) or multiplied(x, *rest)
    )
    weight = (torch.randn(40, 64) / 8).bfloat16()
    given = torch.randn(40).bfloat16() if bias else None
    x = torch.randn(native.ROWS + 1, 64).bfloat16()
    with torch.inference_mode():
        product = Matrix(weight, given)(x)
    assert widths == [torch.bfloat16 if is_fast else torch.float32]
    exact = x.double() @ weight.double().t() + (0 if given is None else given.double())
    assert product.dtype == torch.bfloat16
    torch.testing.assert_close(product.double(), exact, rtol=2**-7, atol=2**-9)


@pytest.mark.parametrize("width", [4, 64])
def test_inputs_need_not_be_contiguous(width):
    weight = torch.randn(6, width) / 8
    x = torch.randn(width, 5)
    with torch.inference_mode():
        torch.testing.assert_close(Matrix(weight)(x.t()), x.t() @ weight.t())


@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", WIDTHS, ids=WIDTHS.get)
def test_stacked_products_are_those_of_the_parts_over_the_same_memory(width, bias, dtype):
    parts = [
        nn.Linear(width, outs, bias=bias).to(dtype).requires_grad_(False) for outs in (40, 8, 9)
    ]
    x = torch.randn(3, width).to(dtype)
    expected = torch.cat([part(x) for part in parts], dim=-1)
    with torch.inference_mode():
        matrix = stacked(*parts)
        torch.testing.assert_close(matrix(x), expected, rtol=0, atol=BOUND[dtype])
        torch.testing.assert_close(stacked(parts[1])(x), parts[1](x), rtol=0, atol=BOUND[dtype])
    assert len({part.weight.untyped_storage().data_ptr() for part in parts}) == 1
    assert matrix.weight.shape == (57, width)
    assert torch.equal(torch.cat([part(x) for part in parts], dim=-1), expected)

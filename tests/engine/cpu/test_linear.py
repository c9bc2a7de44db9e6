"""The packed product is the linear layer's own."""

import pytest
import torch
from torch import nn

from fspad_bench.engine.cpu import linear
from fspad_bench.engine.cpu.linear import Matrix, stacked

BOUND = {torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float64: 0}


@pytest.fixture(autouse=True)
def fresh():
    linear._available.cache_clear()
    yield
    linear._available.cache_clear()


@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(1,), (2,), (33,), (3, 7), (1, 1, 5)])
def test_products_equal_the_stock_ones(rows, bias, dtype):
    generator = torch.Generator().manual_seed(len(rows))
    weight, given = (
        torch.randn(40, 24, generator=generator),
        torch.randn(40, generator=generator) if bias else None,
    )
    x = torch.randn(*rows, 24, generator=generator).to(dtype)
    weight, given = weight.to(dtype), given if given is None else given.to(dtype)
    with torch.inference_mode():
        found = Matrix(weight, given)(x)
    assert found.shape == (*rows, 40)
    torch.testing.assert_close(
        found, torch.nn.functional.linear(x, weight, given), rtol=0, atol=BOUND[dtype]
    )


def test_inputs_need_not_be_contiguous():
    weight, x = torch.randn(6, 4), torch.randn(4, 5)
    with torch.inference_mode():
        torch.testing.assert_close(Matrix(weight)(x.t()), x.t() @ weight.t())


@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_stacked_products_are_those_of_the_parts_over_the_same_memory(bias, dtype):
    parts = [
        nn.Linear(24, width, bias=bias).to(dtype).requires_grad_(False) for width in (40, 8, 9)
    ]
    x = torch.randn(3, 24).to(dtype)
    expected = torch.cat([part(x) for part in parts], dim=-1)
    with torch.inference_mode():
        found = stacked(*parts)
        torch.testing.assert_close(found(x), expected, rtol=0, atol=BOUND[dtype])
        torch.testing.assert_close(stacked(parts[1])(x), parts[1](x), rtol=0, atol=BOUND[dtype])
    assert len({part.weight.untyped_storage().data_ptr() for part in parts}) == 1
    assert found.weight.shape == (57, 24)
    assert torch.equal(torch.cat([part(x) for part in parts], dim=-1), expected)


@pytest.mark.parametrize("fault", ["missing", "wrong"])
def test_a_torch_without_it_runs_the_stock_product(monkeypatch, fault):
    def absent(*_):
        raise NotImplementedError("no such operation")

    real = linear._pack
    monkeypatch.setattr(
        linear, "_pack", absent if fault == "missing" else lambda weight: real(weight + 1)
    )
    weight, x = torch.randn(6, 4), torch.randn(2, 4)
    assert not linear.suits(weight)
    assert torch.equal(Matrix(weight)(x), torch.nn.functional.linear(x, weight))

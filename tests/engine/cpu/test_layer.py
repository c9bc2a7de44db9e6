"""A draft's layer in one call has the bits of its parts, and is used only where it has."""

import pytest
import torch

from fspad_bench.engine.attention import HeadShape
from fspad_bench.engine.cpu import native
from fspad_bench.engine.cpu.layer import CompiledLayer, by_parts, has_bits_of_parts
from fspad_bench.engine.cpu.linear import Matrix

functions = native.native()
pytestmark = pytest.mark.skipif(functions is None, reason="nothing is compiled here")
START = 120


def layer_of(stored, dtype, *, bias, kv_heads):
    stream = torch.Generator().manual_seed(kv_heads)

    def some(*shape):
        return (torch.randn(*shape, generator=stream) / 8).to(stored).to(dtype)

    def matrix(outs, width, bias=False):
        return Matrix(some(outs, width), some(outs) if bias else None)

    products = [
        matrix(256, 192, bias),
        matrix(128 * kv_heads, 192, bias),
        matrix(96, 256),
        matrix(320, 96),
        matrix(192, 160),
    ]
    return products, some(96), HeadShape(4, kv_heads, 64, 0.125), 1e-5


def inputs(dtype, rows, written, kv_heads):
    stream = torch.Generator().manual_seed(rows)
    shapes = [(written, 192), (rows, 96), (2, written, 64), *[(kv_heads, 160, 64)] * 2]
    return [torch.randn(*shape, generator=stream).to(dtype) for shape in shapes]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "written"), [(1, 1), (1, 9), (4, 4), (7, 20)])
@pytest.mark.parametrize("types", native.PRODUCTS, ids=str)
@torch.inference_mode()
def test_a_layer_in_one_call_has_the_bits_of_its_parts(types, rows, written, bias, kv_heads):
    dtype, stored = types
    parts = layer_of(stored, dtype, bias=bias, kv_heads=kv_heads)
    assert parts[0][0].packed.dtype == stored
    visible = torch.ones(rows, written).tril(written - rows).bool() if rows > 1 else None
    ours = inputs(dtype, rows, written, kv_heads)
    reference = inputs(dtype, rows, written, kv_heads)
    update = CompiledLayer(functions, *parts)(*ours, START, visible)
    expected = by_parts(functions, *parts, *reference, START, visible)
    assert torch.equal(update, expected)
    assert not torch.equal(update[0], torch.zeros(192, dtype=dtype))
    for overwritten, other in zip(ours, reference, strict=True):
        assert torch.equal(overwritten, other)


@torch.inference_mode()
def test_it_refuses_to_write_past_the_last_slot():
    layer = CompiledLayer(functions, *layer_of(torch.float32, torch.float32, bias=0, kv_heads=1))
    given = inputs(torch.float32, 1, 9, 1)
    with pytest.raises(RuntimeError, match="entries 152 to 161 of a cache of 160"):
        layer(*given, 152, None)


def test_it_is_not_used_where_the_compiler_gave_it_other_bits(monkeypatch):
    real = CompiledLayer.__call__
    products = layer_of(torch.float32, torch.float32, bias=False, kv_heads=1)[0]
    assert CompiledLayer.serves(functions, products)
    monkeypatch.setattr(
        CompiledLayer, "__call__", lambda self, *given: real(self, *given) * (1 + 1e-6)
    )
    other = native.Native(functions.functions)
    assert not has_bits_of_parts(other)
    assert not CompiledLayer.serves(other, products)


def test_products_that_are_stored_otherwise_are_left_to_calls_of_their_own():
    products = layer_of(torch.float32, torch.float32, bias=False, kv_heads=1)[0]
    halved = Matrix(torch.ones(96, 256))
    assert halved.packed.dtype == torch.bfloat16
    assert not CompiledLayer.serves(functions, [*products[:2], halved, *products[3:]])
    unpacked = Matrix(torch.ones(96, 40))
    assert not CompiledLayer.serves(functions, [*products[:2], unpacked, *products[3:]])

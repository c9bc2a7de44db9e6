"""Tree attention: Triton's kernel and the reference against float64, over many shapes."""

from random import Random

import pytest
import torch

from fspad_bench.engine.gpu import attention, reference
from fspad_bench.engine.gpu.tensors import Nodes

BOUND = {torch.float64: 1e-9, torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
NODES = (1, 2, 8, 31, 64, 65, 128)
DIMS = (64, 96, 128)
GROUPS = (1, 2, 3, 4, 8)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PREFIXES = (0, 1, 63, 64, 65, 200, 256, 511)
LONG = (1, 100, 1023, 4096, 32768)
# Every value of every axis, in cases that the interpreter can do: few programs and few tiles each.
SMALL = [
    (0, 1, 128, 8, torch.bfloat16),
    (0, 128, 64, 1, torch.float32),
    (1, 65, 96, 2, torch.float16),
    (63, 8, 64, 8, torch.float32),
    (64, 31, 128, 3, torch.bfloat16),
    (65, 64, 64, 1, torch.float16),
    (200, 2, 96, 4, torch.float32),
    (256, 1, 64, 3, torch.float16),
    (511, 2, 128, 4, torch.bfloat16),
]


def sampled(count, prefixes):
    """Draw `count` random cases in which every value of every axis occurs."""
    dice = Random(6)
    columns = []
    for axis in (prefixes, NODES, DIMS, GROUPS, DTYPES):
        column = [axis[i % len(axis)] for i in range(count)]
        dice.shuffle(column)
        columns.append(column)
    return list(zip(*columns, strict=True))


def problem(prefix, nodes, dim, group, dtype, device, tree, kv_heads=2):
    generator = torch.Generator(device).manual_seed(prefix + nodes)
    shapes = [(kv_heads * group, nodes, dim), *[(kv_heads, prefix + nodes + 9, dim)] * 2]
    query, keys, values = (
        torch.randn(s, generator=generator, device=device).to(dtype) for s in shapes
    )
    keys[:, prefix + nodes :] = torch.nan  # must not be read
    values[:, prefix + nodes :] = torch.nan
    length = torch.tensor([prefix], dtype=torch.int32, device=device)
    return query, keys, values, Nodes.of(tree, device).bits, length, dim**-0.5


def exact(query, keys, values, bits, length, scale):
    """Return the reference in float64, without the entries after the tree."""
    end = int(length) + query.shape[1]
    return reference.attend(
        query.double(), keys[:, :end].double(), values[:, :end].double(), bits, length, scale
    )


def depths_of(tree, device):
    return torch.tensor(tree.depths, dtype=torch.int32, device=device)


def check(prefix, nodes, dim, group, dtype, device, grown):
    inputs = problem(prefix, nodes, dim, group, dtype, device, grown(nodes))
    output = attention.attend(*inputs)
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), exact(*inputs), rtol=0, atol=BOUND[dtype])


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_it_equals_attention_in_float64(case, device, grown):
    check(*case, device, grown)


def test_small_cases_have_every_value_of_every_axis():
    axes = (PREFIXES, NODES, DIMS, GROUPS, DTYPES)
    assert [set(values) for values in zip(*SMALL, strict=True)] == [set(axis) for axis in axes]


@pytest.mark.nightly
@pytest.mark.parametrize("case", sampled(20, PREFIXES), ids=str)
def test_it_does_with_many_rows(case, device, grown):
    check(*case, device, grown)


@pytest.mark.gpu
@pytest.mark.parametrize("case", [*sampled(20, PREFIXES), *sampled(90, LONG)], ids=str)
def test_it_does_after_long_prefixes(case, device, grown):
    check(*case, device, grown)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_large_scores_stay_finite(dtype, device, grown):
    query, keys, values, bits, length, scale = problem(
        70, 6, 128, 2, torch.float32, device, grown(6)
    )
    inputs = ((30 * query).to(dtype), (20 * keys).to(dtype), values.to(dtype), bits, length, scale)
    for kernel in (attention, reference):
        end = 76 if kernel is reference else None  # it multiplies masked entries by 0
        output = kernel.attend(inputs[0], inputs[1][:, :end], inputs[2][:, :end], *inputs[3:])
        torch.testing.assert_close(output.double(), exact(*inputs), rtol=0, atol=4 * BOUND[dtype])


def test_in_float64_too(device, grown):
    check(130, 24, 64, 3, torch.float64, device, grown)


@pytest.mark.parametrize("window", [None, 1, 2, 7, 100])
@pytest.mark.parametrize("prefix", [0, 5, 64, 90])
def test_the_reference_is_soft_max_over_what_a_node_sees(prefix, window, device, grown):
    tree = grown(9)
    query, keys, values, bits, length, scale = problem(
        prefix, 9, 16, 2, torch.float64, device, tree
    )
    of_tree = (keys[:, : prefix + 9], values[:, : prefix + 9], bits, length, scale)
    output = reference.attend(query, *of_tree, window, depths_of(tree, device))
    for node in range(9):
        line = []
        ancestor = node
        while ancestor >= 0:
            line.insert(0, prefix + ancestor)
            ancestor = tree.parents[ancestor]
        entries = [*range(prefix), *line][-(window or 0) :]
        for head in range(4):
            weights = (keys[head // 2, entries] @ query[head, node] * scale).softmax(0)
            torch.testing.assert_close(output[head, node], weights @ values[head // 2, entries])


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("prefix", "window", "splits"),
    [(0, 3, 1), (5, 4, 1), (130, 40, 4), (300, 33, 1), (300, 200, 8)],
)
def test_through_a_window_it_equals_the_reference(
    prefix, window, splits, device, grown, monkeypatch
):
    tree = grown(31)
    monkeypatch.setattr(attention, "_splits", lambda *_: splits)
    query, keys, values, *rest = problem(prefix, 31, 64, 3, torch.float64, device, tree)
    unread = max(0, prefix - window + 1) // 64 * 64  # whole tiles before the root's window
    keys[:, :unread] = torch.nan
    depths = depths_of(tree, device)
    output = attention.attend(query, keys, values, *rest, window, depths)
    held = [x[:, : prefix + 31].nan_to_num(0.0) for x in (keys, values)]
    expected = reference.attend(query, *held, *rest, window, depths)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-9)


def test_padding_nodes_change_nothing(device, grown):
    tree = grown(20)
    query, keys, values, bits, length, scale = problem(77, 20, 64, 3, torch.float32, device, tree)
    more = torch.randn(6, 32, 64, device=device)
    more[:, :20] = query
    cache = torch.zeros(2, 2, 120, 64, device=device)
    cache[0, :, :106] = keys.nan_to_num(1.0)
    cache[1, :, :106] = values.nan_to_num(1.0)
    output = attention.attend(more, *cache, Nodes.of(tree, device, 32).bits, length, scale)
    torch.testing.assert_close(
        output[:, :20], attention.attend(query, keys, values, bits, length, scale)
    )
    assert output.isfinite().all()


def test_many_splits_are_joined(device, grown, monkeypatch):
    inputs = problem(300, 12, 64, 4, torch.float32, device, grown(12))
    monkeypatch.setattr(attention, "_splits", lambda *_: 16)
    torch.testing.assert_close(
        attention.attend(*inputs).double(), exact(*inputs), rtol=0, atol=3e-6
    )


def test_splits_are_a_power_of_two_and_no_more_than_the_cache_is_worth():
    cpu = torch.device("cpu")
    assert [attention._splits(n, 4, cpu) for n in (1, 511, 512, 3000, 10**6)] == [1, 1, 2, 16, 64]

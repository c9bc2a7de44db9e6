"""Kernels whose rows keep their bits: right values, the same bits in any company, and launches that
do not depend on the number of nodes.
"""

import pytest
import torch
from torch.nn import functional as F
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from fspad_bench.engine import gpu
from fspad_bench.engine.gpu import attention, invariant, reference
from fspad_bench.engine.gpu.tensors import Nodes, interpreted
from fspad_bench.lossless.invariance.ours import own_subjects
from fspad_bench.lossless.invariance.probe import BRANCH, Company
from fspad_bench.lossless.invariance.problem import problem_for
from fspad_bench.lossless.invariance.trace import Operation, first_difference
from fspad_bench.models.random_weights import random_target

SIZES = (1, 2, 3, 5, 8, 16, 31, 64, 127, 128)


@pytest.fixture(autouse=True)
def ordered(monkeypatch):
    """Let the interpreter's products sum in order, as a tensor core does for every row alike: a
    library's rounds a row by its place among others.
    """
    if not interpreted():
        return

    def create_dot(builder, a, b, d, *_):
        out = d.data.copy()
        for k in range(a.data.shape[1]):
            out += (a.data[:, k : k + 1] * b.data[k : k + 1]).astype(out.dtype)
        return TensorHandle(out, d.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


class Rows:
    """Nodes of a tree behind a prefix: random queries and entries."""

    def __init__(self, tree, prefix, group, dtype, device, dim=16):
        generator = torch.Generator(device).manual_seed(prefix)

        def some(*shape):
            return torch.randn(shape, generator=generator, device=device).to(dtype)

        self.tree = tree
        self.prefix = prefix
        kv_heads = 1 if prefix else 2
        self.query = some(kv_heads * group, len(tree), dim)
        self.entries = some(2, kv_heads, prefix + len(tree) + 9, dim)
        self.entries[:, :, prefix + len(tree) :] = torch.nan  # must not be read
        self.device = device
        self.scale = dim**-0.5

    def depths(self):
        return torch.tensor(self.tree.depths, dtype=torch.int32, device=self.device)

    def asked(self, attend, nodes, window, entries):
        """Return what the first nodes see, `[H, N, D]`."""
        bits = Nodes.of(self.tree, self.device).bits[:nodes]
        length = torch.tensor([self.prefix], dtype=torch.int32, device=self.device)
        depths = self.depths()[:nodes]
        keys, values = entries
        query = self.query[:, :nodes]
        return attend(query, keys, values, bits, length, self.scale, window, depths)

    def together(self, nodes, window=None):
        return self.asked(invariant.attend, nodes, window, self.entries)

    def exact(self, window):
        count = len(self.tree)
        entries = self.entries[:, :, : self.prefix + count].double()
        return self.asked(reference.attend, count, window, entries)

    def alone(self, node, window=None, attend=invariant.attend):
        """Return what a node sees as the only one, its ancestors committed, `[H, D]`."""
        path = [node]
        while self.tree.parents[path[0]] >= 0:
            path.insert(0, self.tree.parents[path[0]])
        slots = [*range(self.prefix), *(self.prefix + other for other in path)]
        keys, values = self.entries[:, :, [*slots, *[slots[0]] * 7]]
        length = torch.tensor([len(slots) - 1], dtype=torch.int32, device=self.device)
        one = torch.ones(1, 1, dtype=torch.int64, device=self.device)
        depth = torch.zeros(1, dtype=torch.int32, device=self.device)
        query = self.query[:, node : node + 1]
        return attend(query, keys, values, one, length, self.scale, window, depth)[:, 0]


CASES = [
    (0, 9, 1, torch.float32, None),
    (60, 9, 3, torch.bfloat16, None),  # its tree crosses the end of a tile
    (250, 9, 2, torch.float32, None),  # and of a split
    (70, 9, 3, torch.float64, 4),
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_node_gets_the_value_and_the_bits_of_its_path(case, device, grown):
    prefix, nodes, group, dtype, window = case
    rows = Rows(grown(nodes), prefix, group, dtype, device)
    seen = rows.together(nodes, window)
    bound = {torch.float64: 1e-9, torch.float32: 3e-6, torch.bfloat16: 2e-2}[dtype]
    gap = (seen.double() - rows.exact(window)).abs().max()
    assert gap <= bound
    deepest = max(range(nodes), key=lambda node: rows.tree.depths[node])
    for node in {1, deepest, nodes - 1}:
        assert torch.equal(seen[:, node], rows.alone(node, window))


def test_the_ordinary_kernel_sums_a_node_otherwise_than_its_path(device, grown):
    """What the kernel at hand is for, and that the tests would see it."""
    rows = Rows(grown(20), 60, 3, torch.float32, device)
    seen = rows.asked(attention.attend, 20, None, rows.entries)
    alone = [rows.alone(node, attend=attention.attend) for node in (17, 18, 19)]
    assert not all(
        torch.equal(seen[:, node], x) for node, x in zip((17, 18, 19), alone, strict=True)
    )


def test_fewer_nodes_change_no_bit_of_those_that_stay(device, grown):
    rows = Rows(grown(9), 12, 3, torch.float32, device)
    whole = rows.together(9)
    for nodes in (1, 6):
        assert torch.equal(rows.together(nodes), whole[:, :nodes])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_product_has_right_values_and_rows_that_keep_their_bits(dtype, has_bias, device):
    x = torch.randn(19, 70, device=device).to(dtype)
    weight = torch.randn(45, 70, device=device).to(dtype)
    bias = torch.randn(45, device=device).to(dtype) if has_bias else None
    whole = invariant.product(x, weight, bias)
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    half = 2**-7 if interpreted() else 2**-8  # the interpreter cuts bits off
    rounding = {torch.float64: 2**-53, torch.float32: 2**-24, torch.bfloat16: half}[dtype]
    summing = 1e-12 if dtype == torch.float64 else 1e-4  # over 70 inputs
    torch.testing.assert_close(whole.double(), exact, rtol=rounding, atol=summing)
    for rows in (1, 2, 16, 17):
        assert torch.equal(invariant.product(x[:rows], weight, bias), whole[:rows])
    assert torch.equal(invariant.product(x[18:], weight, bias), whole[18:])


def test_a_product_keeps_the_shape_of_its_rows(device):
    weight = torch.eye(32, device=device)[:5]
    x = torch.arange(2 * 3 * 32, dtype=torch.float32, device=device).view(2, 3, 32)
    assert torch.equal(invariant.product(x, weight), x[..., :5])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_number_of_nodes_decides_nothing_but_how_many_tiles_there_are(dtype):
    launches = [invariant.attention_launch(2048, n, 9, 3, 64, dtype) for n in SIZES]
    assert all(launch.constants == launches[0].constants for launch in launches)
    assert all(launch.grid[1:] == (3, 8) for launch in launches)
    assert [launch.grid[0] for launch in launches] == [-(-3 * n // 16) for n in SIZES]
    products = [invariant.product_launch(n, 960, 576, dtype) for n in SIZES]
    assert all(launch.constants == products[0].constants for launch in products)
    assert [launch.grid for launch in products] == [(-(-n // 16), 30) for n in SIZES]


def test_a_longer_cache_adds_splits_and_changes_no_tile():
    short, long = (invariant.attention_launch(n, 5, 9, 3, 64, torch.bfloat16) for n in (300, 9000))
    assert short.constants == long.constants
    assert (short.grid, long.grid) == ((1, 3, 2), (1, 3, 64))


@torch.inference_mode()
def test_a_target_on_these_kernels_keeps_its_bits(monkeypatch):
    """This shape is not compiled on a CPU, so all of its products are the kernels'."""
    monkeypatch.setenv(gpu.VARIABLE, gpu.INVARIANT)
    target = random_target("random:tiny:1", device="auto", dtype="float32")
    assert target.forward_name.endswith("invariant kernels")
    assert all(matrix.multiply is invariant.product for matrix in target.fused.matrices)
    parts = own_subjects(target, problem_for(target, 9, (3,)))[-1]
    branch = parts.together(Company(BRANCH, 3))
    assert first_difference(parts.path(3), branch) is None
    assert Operation("attention", 0) in branch

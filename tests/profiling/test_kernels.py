"""Every kernel is timed against its peers, and the bound is the least that the device needs."""

import pytest
import torch

from fspad_bench.cli.main import main
from fspad_bench.engine.gpu import reference
from fspad_bench.models.random_weights import shape
from fspad_bench.profiling import kernels, timing
from fspad_bench.profiling.kernels import (
    KernelProfile,
    KernelTiming,
    drafted_tree,
    profile_kernels,
    render,
)
from fspad_bench.profiling.peers import flex, flex_options, masked

TIMING = KernelTiming(
    "attention",
    "4 + 1",
    {"triton": 0.5, "sdpa, mask": 2.0, "flex": None},
    bytes_moved=10**9,
    operations=10**12,
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(timing, "CPU_COPY", 1 << 20)
    monkeypatch.setattr(timing, "CPU_TURNS", 1)


def test_every_kernel_is_timed_at_every_size(device):
    config = shape("random:smollm2-135m:1")
    config.vocab_size = 97
    profile = profile_kernels(config, device, torch.float32, (40, 80), (1, 3))
    assert [timing.kernel for timing in profile.timings] == ["attention"] * 4 + ["verify"] * 8 + [
        "compact"
    ] * 2
    assert all(
        seconds > 0
        for kernel_timing in profile.timings
        for seconds in kernel_timing.seconds.values()
        if seconds is not None
    )
    text = render(profile)
    assert "80 + 3" in text
    assert "top-k 50, top-p 0.9" in text
    assert profile.timings[3].bytes_moved == 4 * 64 * (2 * 3 * 83 + 2 * 9 * 3)
    assert profile.timings[3].operations == 4 * 9 * 3 * 83 * 64


def test_the_bound_is_the_larger_of_bytes_and_operations():
    assert KernelProfile([TIMING], copy_rate=1e10, product_rate=1e14).bound(
        TIMING
    ) == pytest.approx(0.1)
    assert KernelProfile([TIMING], copy_rate=1e10, product_rate=4e12).bound(
        TIMING
    ) == pytest.approx(0.25)
    assert "50%" in render(KernelProfile([TIMING], copy_rate=1e10, product_rate=4e12))


def test_the_peer_computes_the_same(grown):
    tree = grown(9)
    query, keys, values = torch.randn(6, 9, 16), torch.randn(2, 29, 16), torch.randn(2, 29, 16)
    mask = torch.ones(9, 29, dtype=torch.bool)
    mask[:, 20:] = tree.visible()
    expected = reference.attend(
        query, keys, values, tree.bits, torch.tensor([20], dtype=torch.int32), 0.25
    )
    torch.testing.assert_close(masked(query, keys, values, mask), expected)


@pytest.mark.parametrize(("nodes", "group"), [(8, 4), (64, 2), (128, 1)])
def test_flex_attention_chooses_its_kernel_where_a_group_fits_a_block(nodes, group):
    assert flex_options(nodes, group) == {}


def test_more_queries_than_a_block_leave_one_kernel():
    assert flex_options(64, 4) == {"FORCE_USE_FLEX_ATTENTION": True}


@pytest.mark.parametrize(("nodes", "group"), [(65, 4), (100, 4), (129, 1)])
def test_more_nodes_than_a_tile_have_tiles_that_fit_a_gpu(nodes, group):
    options = {"FORCE_USE_FLEX_ATTENTION": True, "BLOCK_M": 64, "BLOCK_N": 64}
    assert flex_options(nodes, group) == options


def test_drafted_trees_have_three_children_a_node():
    tree = drafted_tree(8)
    assert tree.offspring[:3] == [[1, 2, 3], [4, 5, 6], [7]]
    assert len(drafted_tree(1)) == 1


def test_the_verb_prints_and_draws(tmp_path, capsys, monkeypatch, device):
    monkeypatch.setattr(kernels, "SAMPLERS", {"greedy": kernels.SAMPLERS["greedy"]})
    words = "--target random:tiny:1 --dtype float32 --prefixes 40 --nodes 1,3".split()
    picture = tmp_path / "kernels.png"
    place = ["--device", device.type, "--picture", str(picture)]
    assert main(["profile", "--kernels", *words, *place]) == 0
    assert "a matrix product does" in capsys.readouterr().out
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_without_a_gpu_there_are_no_kernels_to_time(capsys, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert main(["profile", "--kernels", "--device", "cpu"]) == 2
    assert "need a GPU" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("nodes", [8, 64, 100])
def test_flex_attention_computes_the_same(nodes, grown):
    device = torch.device("cuda")
    tree = grown(nodes)
    query = torch.randn(32, nodes, 128, device=device, dtype=torch.bfloat16)
    keys, values = torch.randn(2, 8, 1024 + nodes, 128, device=device, dtype=torch.bfloat16)
    length = torch.tensor([1024], dtype=torch.int32, device=device)
    run = flex(query, keys, values, tree.bits.to(device), length)
    expected = reference.attend(query, keys, values, tree.bits.to(device), length, 128**-0.5)
    torch.testing.assert_close(run()[0], expected, rtol=0, atol=2e-2)

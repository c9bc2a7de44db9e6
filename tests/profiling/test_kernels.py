"""Every kernel is timed beside its peers, and the bound is what the device cannot do without."""

import pytest
import torch

from fspad_bench.cli import main as cli
from fspad_bench.engine.gpu import reference
from fspad_bench.models.random_weights import shape
from fspad_bench.profiling import kernels as kernel_profile
from fspad_bench.profiling import steps as profiling
from fspad_bench.profiling.kernels import KernelProfile, Line, masked, profile_kernels, render

LINE = Line(
    "attention",
    "4 + 1",
    {"triton": 0.5, "sdpa, mask": 2.0, "flex": None},
    moved=10**9,
    operations=10**12,
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(profiling, "COPIED", 1 << 20)


def test_every_kernel_is_timed_at_every_size(device):
    config = shape("random:smollm2-135m:1")
    config.vocab_size = 300
    found = profile_kernels(config, device, torch.float32, (40, 80), (1, 8))
    assert [line.kernel for line in found.lines] == ["attention"] * 4 + ["verify"] * 8 + [
        "compact"
    ] * 2
    assert all(
        seconds > 0
        for line in found.lines
        for seconds in line.seconds.values()
        if seconds is not None
    )
    text = render(found)
    assert "80 + 8" in text
    assert "top-k 50, top-p 0.9" in text
    assert found.lines[3].moved == 4 * 64 * (2 * 3 * 88 + 2 * 9 * 8)
    assert found.lines[3].operations == 4 * 9 * 8 * 88 * 64


def test_the_bound_is_the_larger_of_bytes_and_operations():
    assert KernelProfile([LINE], copied=1e10, multiplied=1e14).bound(LINE) == pytest.approx(0.1)
    assert KernelProfile([LINE], copied=1e10, multiplied=4e12).bound(LINE) == pytest.approx(0.25)
    assert "50%" in render(KernelProfile([LINE], copied=1e10, multiplied=4e12))


def test_the_peer_computes_the_same(grown):
    tree = grown(9)
    query, keys, values = torch.randn(6, 9, 16), torch.randn(2, 29, 16), torch.randn(2, 29, 16)
    mask = torch.ones(9, 29, dtype=torch.bool)
    mask[:, 20:] = tree.visible()
    wanted = reference.attend(
        query, keys, values, tree.bits, torch.tensor([20], dtype=torch.int32), 0.25
    )
    torch.testing.assert_close(masked(query, keys, values, mask), wanted)


def test_drafted_trees_have_three_children_a_node():
    tree = kernel_profile.drafted(8)
    assert tree.offspring[:3] == [[1, 2, 3], [4, 5, 6], [7]]
    assert len(kernel_profile.drafted(1)) == 1


def test_the_verb_prints_and_draws(tmp_path, capsys, monkeypatch, device):
    monkeypatch.setattr(kernel_profile, "LAWS", dict(list(kernel_profile.LAWS.items())[:1]))
    words = "profile --kernels --target random:smollm2-135m:1 --dtype float32 --prefixes 40 --nodes 1,8".split()
    assert (
        cli.main([*words, "--device", device.type, "--picture", str(tmp_path / "kernels.png")]) == 0
    )
    assert "a matrix product does" in capsys.readouterr().out
    assert (tmp_path / "kernels.png").read_bytes()[:4] == b"\x89PNG"


def test_without_kernels_there_is_nothing_to_time(capsys, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert cli.main(["profile", "--kernels"]) == 2
    assert "need a GPU" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("nodes", [8, 64, 100])
def test_flex_attention_computes_the_same(nodes, grown):
    """On the device; compiled."""
    device, tree = torch.device("cuda"), grown(nodes)
    query = torch.randn(32, nodes, 128, device=device, dtype=torch.bfloat16)
    keys, values = torch.randn(2, 8, 1024 + nodes, 128, device=device, dtype=torch.bfloat16)
    length = torch.tensor([1024], dtype=torch.int32, device=device)
    run = kernel_profile.flex(query, keys, values, tree.bits.to(device), length)
    wanted = reference.attend(query, keys, values, tree.bits.to(device), length, 128**-0.5)
    torch.testing.assert_close(run()[0], wanted, rtol=0, atol=2e-2)

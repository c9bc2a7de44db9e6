"""The fused step computes what its network computes, for every architecture and head grouping."""

from dataclasses import replace

import pytest
import torch

from fspad_bench.drafts.fused import FusedNetwork
from fspad_bench.drafts.network import architecture, architectures
from fspad_bench.drafts.shape import Shape

BOUND = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 0.1}
SHAPE = Shape(d=12, m=20, heads=4, kv_heads=2, head_dim=6, rope_theta=10000.0, eps=1e-5)
ROWS = 7
ELSEWHERE = ("chimera", "draft_model", "medusa")  # their tests are beside their decoders'
OF_ONE_TOKEN = [name for name in architectures() if name not in ELSEWHERE]


def random_network(name, dtype=torch.float64, **changes):
    torch.manual_seed(3)
    network = architecture(name)(replace(SHAPE, **changes))
    for norm in (m for m in network.modules() if isinstance(m, torch.nn.RMSNorm)):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    return network.to(dtype).eval().requires_grad_(False)


def last_row(fused, e, states):
    """Cache all rows but the last at once, then run the last by itself, as a drafter does."""
    f = fused.read(states)
    rope = fused.rope(torch.arange(ROWS)).to(e.dtype)
    x = fused.fuse(e, f)
    first = fused.keys_values(x[:-1], rope[:, :-1])
    last = fused.keys_values(x[-1:], rope[:, -1:])
    keys, values = (torch.cat(parts, dim=1) for parts in zip(first, last, strict=True))
    seen = fused.attend(fused.query(x[-1:], rope[:, -1:]), keys, values, None)
    return fused.output(fused.residual(x, f)[-1:], seen)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "changes",
    [{}, {"kv_heads": 4}, {"kv_heads": 1}, {"head_dim": 4}, {"capture": (0, 1, 2)}],
    ids=str,
)
@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.parametrize("name", OF_ONE_TOKEN)
@torch.inference_mode()
def test_a_step_equals_the_last_row_of_the_whole_forward(name, dtype, changes):
    network = random_network(name, dtype, **changes)
    e = torch.randn(ROWS, 12, dtype=torch.float64).to(dtype)
    states = 3 if "capture" in changes else 1
    f = torch.randn(ROWS, states * 12, dtype=torch.float64).to(dtype)
    last = torch.zeros(1, ROWS, dtype=torch.bool)
    last[0, -1] = True
    expected = network(e[None], f[None], last)
    actual = last_row(FusedNetwork(network), e, f)
    for fused, whole in zip(actual, expected, strict=True):
        torch.testing.assert_close(fused, whole, rtol=0, atol=BOUND[dtype])
    one_output = name not in ("fspad", "partial-alignment", "eagle3", "fspad3")
    assert (actual.h_logit is actual.h_feature) == one_output


@pytest.mark.parametrize("name", OF_ONE_TOKEN)
@torch.inference_mode()
def test_the_fused_fusion_equals_the_module_and_keeps_its_inputs(name):
    network = random_network(name)
    e, f = torch.randn(2, ROWS, 12, dtype=torch.float64)
    before = e.clone(), f.clone()
    fused = FusedNetwork(network).fuse(e, f)
    torch.testing.assert_close(fused, network.fuse(e, f), rtol=0, atol=1e-12)
    assert torch.equal(e, before[0])
    assert torch.equal(f, before[1])


@torch.inference_mode()
def test_fusing_leaves_the_network_as_it_was():
    """Its weights become views of the stacked ones, also when it is fused twice."""
    network = random_network("fspad")
    e, f = torch.randn(2, 1, ROWS, 12, dtype=torch.float64)
    rows = torch.ones(1, ROWS, dtype=torch.bool)
    before = network(e, f, rows)
    FusedNetwork(network)
    FusedNetwork(network)
    after = network(e, f, rows)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@torch.inference_mode()
def test_a_mask_hides_entries_from_every_group():
    fused = FusedNetwork(random_network("eagle"))
    x = torch.randn(ROWS, 12, dtype=torch.float64)
    rope = fused.rope(torch.arange(ROWS)).double()
    query = fused.query(x, rope)
    keys, values = fused.keys_values(x, rope)
    mask = torch.zeros(2, ROWS, ROWS, dtype=torch.float64)
    mask[..., 4:] = -torch.inf
    masked = fused.attend(query, keys, values, mask.flatten(0, 1))
    shorter = fused.attend(query, keys[:, :4], values[:, :4], None)
    torch.testing.assert_close(masked, shorter, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 4])
def test_drafting_on_a_cpu_uses_the_fused_attention(rows):
    fused = FusedNetwork(random_network("fspad", torch.float32))
    keys, values = torch.randn(2, 2, 9, 6)
    with torch.inference_mode(), torch.profiler.profile() as profile:
        fused.attend(torch.randn(4, rows, 6), keys, values, torch.zeros(2 * rows, 9))
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in {
        event.key for event in profile.key_averages()
    }

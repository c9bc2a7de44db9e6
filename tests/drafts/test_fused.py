"""The lean step is the network's own arithmetic, for every arm and grouping of heads."""

from dataclasses import replace

import pytest
import torch

from fspad_bench.drafts.fused import LeanNetwork
from fspad_bench.drafts.network import ARMS, DraftNetwork, Shape

BOUND = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 0.1}
SHAPE = Shape(d=12, m=20, heads=4, kv_heads=2, head_dim=6, rope_theta=10000.0, eps=1e-5)
ROWS = 7


def network(arm, dtype=torch.float64, **changes):
    torch.manual_seed(3)
    made = DraftNetwork(replace(SHAPE, **ARMS[arm]._asdict(), **changes))
    for norm in (m for m in made.modules() if isinstance(m, torch.nn.RMSNorm)):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    return made.to(dtype).eval().requires_grad_(False)


def stepped(lean, e, f):
    """All rows but the last cached at once, then the last by itself, as a drafter goes."""
    rope = lean.rope(torch.arange(ROWS)).to(e.dtype)
    x = lean.fuse(e, f)
    keys, values = (torch.cat(parts, dim=1) for parts in zip(
        lean.keys_values(x[:-1], rope[:, :-1]), lean.keys_values(x[-1:], rope[:, -1:]), strict=True))  # fmt: skip
    return lean.output(x[-1:], lean.attend(lean.query(x[-1:], rope[:, -1:]), keys, values, None))


@pytest.mark.parametrize(
    "changes", [{}, {"kv_heads": 4}, {"kv_heads": 1}, {"head_dim": 4}], ids=str
)
@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.parametrize("arm", ARMS)
@torch.inference_mode()
def test_a_step_is_the_last_row_of_the_whole_forward(arm, dtype, changes):
    whole = network(arm, dtype, **changes)
    e, f = torch.randn(2, ROWS, 12, dtype=torch.float64).to(dtype)
    last = torch.zeros(1, ROWS, dtype=torch.bool)
    last[0, -1] = True
    expected = whole(e[None], f[None], last)
    found = stepped(LeanNetwork(whole), e, f)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=BOUND[dtype])
    assert (found.h_logit is found.h_feature) == (arm not in ("fspad", "partial-alignment"))


@torch.inference_mode()
def test_the_network_itself_says_what_it_said():
    """Its weights are views now of those that are stacked."""
    whole = network("fspad")
    e, f = torch.randn(2, 1, ROWS, 12, dtype=torch.float64)
    every = torch.ones(1, ROWS, dtype=torch.bool)
    before = whole(e, f, every)
    LeanNetwork(whole), LeanNetwork(whole)
    assert all(torch.equal(a, b) for a, b in zip(whole(e, f, every), before, strict=True))


@torch.inference_mode()
def test_a_mask_hides_rows_of_every_group():
    lean = LeanNetwork(network("eagle"))
    x = torch.randn(ROWS, 12, dtype=torch.float64)
    rope = lean.rope(torch.arange(ROWS)).double()
    query, (keys, values) = lean.query(x, rope), lean.keys_values(x, rope)
    mask = torch.zeros(2, ROWS, ROWS, dtype=torch.float64)
    mask[..., 4:] = -torch.inf
    found = lean.attend(query, keys, values, mask.flatten(0, 1))
    torch.testing.assert_close(
        found, lean.attend(query, keys[:, :4], values[:, :4], None), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("rows", [1, 4])
def test_drafting_on_a_cpu_takes_the_fused_attention(rows):
    lean = LeanNetwork(network("fspad", torch.float32))
    keys, values = torch.randn(2, 2, 9, 6)
    with torch.inference_mode(), torch.profiler.profile() as profile:
        lean.attend(torch.randn(4, rows, 6), keys, values, torch.zeros(2 * rows, 9))
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in {
        event.key for event in profile.key_averages()
    }

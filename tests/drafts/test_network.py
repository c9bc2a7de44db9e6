"""The draft networks against a plain transcription of the formulas, in float64."""

import pytest
import torch

from fspad_bench.drafts.network import ARMS, DraftNetwork, Shape

D, M, HEADS, KV_HEADS, DIM, THETA, EPS = 24, 40, 4, 2, 6, 1000.0, 1e-5


def network(decoder):
    torch.manual_seed(0)
    shape = Shape(D, M, HEADS, KV_HEADS, DIM, THETA, EPS, *ARMS[decoder])
    net = DraftNetwork(shape).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return net


def rms(x, scale):
    return x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * scale


def silu(x):
    return x / (1 + torch.exp(-x))


def turned(x, position):
    """x [D] rotated to a position, pair by pair."""
    out = x.clone()
    for i in range(DIM // 2):
        angle = torch.tensor(position * THETA ** (-2 * i / DIM), dtype=torch.float64)
        a, b = x[i], x[i + DIM // 2]
        out[i] = a * angle.cos() - b * angle.sin()
        out[i + DIM // 2] = b * angle.cos() + a * angle.sin()
    return out


def transcription(w, e, f, arm):
    """One sequence e, f [L, d], row by row and head by head."""
    z = torch.cat([e, f], -1) @ w["fuse.fc.weight"].T + w["fuse.fc.bias"]
    x = z
    if arm.feature_sampling:
        gated = silu(e @ w["fuse.gate.weight"].T) * (
            rms(z, w["fuse.norm.weight"]) @ w["fuse.up.weight"].T
        )
        x = z + gated @ w["fuse.down.weight"].T
    q, k, v = (x @ w[f"attention.{name}.weight"].T for name in "qkv")
    attended = torch.zeros(len(x), HEADS * DIM, dtype=torch.float64)
    for head in range(HEADS):
        own, shared = slice(head * DIM, head * DIM + DIM), head // (HEADS // KV_HEADS)
        theirs = slice(shared * DIM, shared * DIM + DIM)
        for i in range(len(x)):
            scores = [
                turned(q[i, own], i) @ turned(k[j, theirs], j) / DIM**0.5 for j in range(i + 1)
            ]
            weights = torch.stack(scores).softmax(0)
            attended[i, own] = weights @ v[: i + 1, theirs]
    a = x + attended @ w["attention.o.weight"].T
    n = rms(a, w["output.norm.weight"])
    u = silu(n @ w["output.gate.weight"].T) * (n @ w["output.up.weight"].T)
    out = u @ w["output.down.weight"].T
    return (a + out[:, :D], a + out[:, D:]) if arm.split_output else (a + out, a + out)


@pytest.mark.parametrize("decoder", ARMS)
def test_outputs_equal_the_transcribed_formulas(decoder):
    net = network(decoder)
    e, f = torch.randn(2, 7, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    out = net(e[None], f[None], torch.ones(1, 7, dtype=torch.bool))
    h_logit, h_feature = transcription(net.state_dict(), e, f, ARMS[decoder])
    torch.testing.assert_close(out.h_logit, h_logit, rtol=0, atol=1e-10)
    torch.testing.assert_close(out.h_feature, h_feature, rtol=0, atol=1e-10)


def test_each_loss_reaches_its_own_half_of_the_split_output_only():
    net = network("fspad")
    e, f = torch.randn(2, 1, 5, D, dtype=torch.float64)
    out = net(e, f, torch.ones(1, 5, dtype=torch.bool))
    logit, feature = (
        torch.autograd.grad(h.sum(), net.output.down.weight, retain_graph=True)[0] for h in out
    )
    assert logit[:D].abs().min() > 0
    assert logit[D:].abs().max() == 0
    assert feature[:D].abs().max() == 0
    assert feature[D:].abs().min() > 0


def test_the_gate_sees_the_raw_embedding_alone():
    net = network("fspad")
    seen = {}
    net.fuse.gate.register_forward_hook(lambda module, inputs, output: seen.update(gate=inputs[0]))
    e, f = torch.randn(2, 1, 5, D, dtype=torch.float64)
    net(e, f, torch.ones(1, 5, dtype=torch.bool))
    assert torch.equal(seen["gate"], e)


def test_parameter_counts_of_vicuna_7b():
    """0.24B and 0.416B, as published for d = 4096, m = 11008, no grouped heads; the control has FSPAD's count."""
    for decoder, millions in {"eagle": 235.9, "fspad": 416.3, "wide": 416.3}.items():
        with torch.device("meta"):
            net = DraftNetwork(Shape(4096, 11008, 32, 32, 128, 1e4, 1e-6, *ARMS[decoder]))
        assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize("arm", ["eagle", "fspad"])
def test_unrolled_rows_are_what_a_draft_of_that_depth_says(arm):
    """Row i of level j, against a sequence whose last j features were drafted one by one from row i - j on."""
    net = network(arm)
    e, f = torch.randn(2, 9, D, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    levels = net.unrolled(e[None], f[None], 4)
    for j, out in enumerate(levels):
        for i in range(j, 9):
            known = f[: i - j + 1]
            for row in range(i - j, i + 1):
                drafted = net(
                    e[None, : row + 1], known[None], torch.ones(1, row + 1, dtype=torch.bool)
                )
                known = torch.cat([known, drafted.h_feature[-1:]])
            torch.testing.assert_close(out.h_logit[0, i], drafted.h_logit[-1], rtol=0, atol=1e-9)


def test_later_levels_send_no_gradient_back_through_what_was_drafted():
    net = network("fspad")
    e, f = torch.randn(2, 1, 6, D, dtype=torch.float64)
    first, second = net.unrolled(e, f, 2)
    assert torch.autograd.grad(second.h_logit.sum(), first.h_feature, allow_unused=True) == (None,)

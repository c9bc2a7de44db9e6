"""The draft networks against a plain transcription of their formulas, in float64."""

from dataclasses import replace

import pytest
import torch

from fspad_bench.drafts.network import architecture, architectures
from fspad_bench.drafts.shape import Shape, low_mid_high
from fspad_bench.util.errors import BenchError

D = 24
M = 40
HEADS = 4
KV_HEADS = 2
HEAD_DIM = 6
THETA = 1000.0
EPS = 1e-5
SHAPE = Shape(D, M, HEADS, KV_HEADS, HEAD_DIM, THETA, EPS)
SAMPLES_FEATURES = ("fspad", "feature-sampling", "fspad3")
SPLITS_OUTPUT = ("fspad", "partial-alignment", "fspad3")
NORMS_OUTPUT = ("eagle3", "fspad3")
READS_STATES = ("eagle3", "fspad3")
ELSEWHERE = ("chimera", "draft_model", "medusa")  # their tests are beside their decoders'
OF_ONE_TOKEN = [name for name in architectures() if name not in ELSEWHERE]


def random_network(name):
    torch.manual_seed(0)
    shape = replace(SHAPE, capture=(0, 1, 2)) if name in READS_STATES else SHAPE
    network = architecture(name)(shape).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return network


def rms(x, scale):
    return x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * scale


def silu(x):
    return x / (1 + torch.exp(-x))


def rotated(x, position):
    """Rotate x `[D]` to a position, pair by pair."""
    out = x.clone()
    for i in range(HEAD_DIM // 2):
        angle = torch.tensor(position * THETA ** (-2 * i / HEAD_DIM), dtype=torch.float64)
        a = x[i]
        b = x[i + HEAD_DIM // 2]
        out[i] = a * angle.cos() - b * angle.sin()
        out[i + HEAD_DIM // 2] = b * angle.cos() + a * angle.sin()
    return out


def random_inputs(name, length, seed):
    """Return e `[L, d]`, and f `[L, d]` or three hidden states `[L, 3 d]`."""
    generator = torch.Generator().manual_seed(seed)
    e, *states = torch.randn(4, length, D, dtype=torch.float64, generator=generator)
    return e, torch.cat(states if name in READS_STATES else states[:1], -1)


def transcription(weights, e, f, name):
    """Compute (h_logit, h_feature) of one sequence e, f `[L, d]`, row by row and head by head."""
    if name in READS_STATES:
        f = f @ weights["join.weight"].T
    if name == "eagle3":
        normed = [rms(e, weights["fuse.norm_e.weight"]), rms(f, weights["fuse.norm_f.weight"])]
        x = torch.cat(normed, -1)
        return outputs(weights, f + attended(weights, x) @ weights["attention.o.weight"].T, name)
    if name == "fspad3":
        f = rms(f, weights["fuse.norm_f.weight"])
    z = torch.cat([e, f], -1) @ weights["fuse.fc.weight"].T + weights["fuse.fc.bias"]
    x = z
    if name in SAMPLES_FEATURES:
        gate = silu(e @ weights["fuse.gate.weight"].T)
        up = rms(z, weights["fuse.norm.weight"]) @ weights["fuse.up.weight"].T
        x = z + (gate * up) @ weights["fuse.down.weight"].T
    return outputs(weights, x + attended(weights, x) @ weights["attention.o.weight"].T, name)


def outputs(weights, a, name):
    n = rms(a, weights["output.norm.weight"])
    u = silu(n @ weights["output.gate.weight"].T) * (n @ weights["output.up.weight"].T)
    out = u @ weights["output.down.weight"].T
    parts = (out[:, :D], out[:, D:]) if name in SPLITS_OUTPUT else (out, out)
    h_logit, h_feature = (a + part for part in parts)
    if name in NORMS_OUTPUT:
        h_logit = rms(h_logit, weights["output.final.weight"])
    return h_logit, h_feature


def attended(weights, x):
    """Attend causally, one head and one row at a time: `[L, d]` -> `[L, H D]`."""
    q = x @ weights["attention.q.weight"].T
    k = x @ weights["attention.k.weight"].T
    v = x @ weights["attention.v.weight"].T
    out = torch.zeros(len(x), HEADS * HEAD_DIM, dtype=torch.float64)
    for head in range(HEADS):
        own = slice(head * HEAD_DIM, head * HEAD_DIM + HEAD_DIM)
        group = head // (HEADS // KV_HEADS)
        shared = slice(group * HEAD_DIM, group * HEAD_DIM + HEAD_DIM)
        for i in range(len(x)):
            query = rotated(q[i, own], i)
            scores = [query @ rotated(k[j, shared], j) / HEAD_DIM**0.5 for j in range(i + 1)]
            out[i, own] = torch.stack(scores).softmax(0) @ v[: i + 1, shared]
    return out


@pytest.mark.parametrize("name", READS_STATES)
def test_what_reads_inner_states_does_not_see_how_large_they_are(name):
    fuse = random_network(name).fuse
    e, f = torch.randn(2, 5, D, dtype=torch.float64)
    torch.testing.assert_close(fuse(e, 1e5 * f), fuse(e, 1e2 * f))


@pytest.mark.parametrize("name", OF_ONE_TOKEN)
def test_outputs_equal_the_transcribed_formulas(name):
    network = random_network(name)
    e, f = random_inputs(name, 7, seed=2)
    out = network(e[None], f[None], torch.ones(1, 7, dtype=torch.bool))
    h_logit, h_feature = transcription(network.state_dict(), e, f, name)
    torch.testing.assert_close(out.h_logit, h_logit, rtol=0, atol=1e-10)
    torch.testing.assert_close(out.h_feature, h_feature, rtol=0, atol=1e-10)


def test_each_class_carries_the_name_it_is_registered_by():
    """The name is stored in a head's file, where it must lead back to the class."""
    classes = architectures()
    assert {"eagle", "fspad", "feature-sampling", "partial-alignment", "wide"} <= classes.keys()
    for name, network_class in classes.items():
        assert network_class.architecture == name
        assert architecture(name) is network_class


def test_an_unknown_architecture_gets_the_near_match():
    with pytest.raises(BenchError) as raised:
        architecture("fsapd")
    assert raised.value.message == "unknown draft network 'fsapd'"
    assert raised.value.hint.startswith("did you mean 'fspad'?")


def test_each_loss_reaches_only_its_own_half_of_the_split_output():
    network = random_network("fspad")
    e, f = torch.randn(2, 1, 5, D, dtype=torch.float64)
    out = network(e, f, torch.ones(1, 5, dtype=torch.bool))
    weight = network.output.down.weight
    logit, feature = (torch.autograd.grad(h.sum(), weight, retain_graph=True)[0] for h in out)
    assert logit[:D].abs().min() > 0
    assert logit[D:].abs().max() == 0
    assert feature[:D].abs().max() == 0
    assert feature[D:].abs().min() > 0


def test_the_gate_reads_the_raw_embedding_alone():
    network = random_network("fspad")
    inputs = {}
    network.fuse.gate.register_forward_hook(
        lambda module, arguments, output: inputs.update(gate=arguments[0])
    )
    e, f = torch.randn(2, 1, 5, D, dtype=torch.float64)
    network(e, f, torch.ones(1, 5, dtype=torch.bool))
    assert torch.equal(inputs["gate"], e)


@pytest.mark.parametrize(
    ("name", "millions"), [("eagle", 235.9), ("fspad", 416.3), ("wide", 416.3)]
)
def test_parameter_counts_of_vicuna_7b(name, millions):
    """0.24B and 0.416B as published (d = 4096, m = 11008, no grouped heads); `wide` has FSPAD's."""
    with torch.device("meta"):
        network = architecture(name)(Shape(4096, 11008, 32, 32, 128, 1e4, 1e-6))
    parameters = sum(p.numel() for p in network.parameters())
    assert parameters / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize("name", ["eagle", "fspad", "eagle3", "fspad3"])
def test_unrolled_rows_equal_a_draft_of_that_depth(name):
    """Row i of level j equals a sequence whose last j features were drafted one by one."""
    network = random_network(name)
    e, states = random_inputs(name, 9, seed=3)
    levels = network.unrolled(e[None], states[None], 4)
    f = network.read(states)
    network.read = lambda features: features  # what follows is given f itself
    for j, out in enumerate(levels):
        for i in range(j, 9):
            features = f[: i - j + 1]
            for row in range(i - j, i + 1):
                rows = torch.ones(1, row + 1, dtype=torch.bool)
                drafted = network(e[None, : row + 1], features[None], rows)
                features = torch.cat([features, drafted.h_feature[-1:]])
            torch.testing.assert_close(out.h_logit[0, i], drafted.h_logit[-1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", OF_ONE_TOKEN)
def test_which_levels_send_a_gradient_back_through_drafted_features(name):
    """EAGLE-3's do, whose features learn from nothing else; HASS's do not."""
    network = random_network(name)
    e, f = random_inputs(name, 6, seed=4)
    first, second = network.unrolled(e[None], f[None], 2)
    gradients = torch.autograd.grad(second.h_logit.sum(), first.h_feature, allow_unused=True)
    if name in READS_STATES:
        assert gradients[0][0, :5].abs().min() > 0
    else:
        assert gradients == (None,)


@pytest.mark.parametrize(
    ("layers", "states"),
    [(1, (0, 0, 1)), (2, (0, 1, 2)), (6, (1, 3, 6)), (7, (2, 3, 4)), (32, (2, 16, 29))],
)
def test_the_states_that_are_fused(layers, states):
    """From seven layers on those of the published code: what layers 2, L / 2 and L - 3 read."""
    assert low_mid_high(layers) == states

"""Chimera's network against its formulas, its drafts against the network, its output against
vanilla's.
"""

import pytest
import torch
from recording import vanilla_tokens

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Context, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.chimera import Chimera, ChimeraNetwork
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.drafts.cache import extend_visibility
from fspad_bench.drafts.draft import CachedDraft
from fspad_bench.drafts.head import Head, export_head, load_head
from fspad_bench.engine import gpu as kernels
from fspad_bench.models.load import load_target
from fspad_bench.util.errors import BenchError

PROMPT = [40, 41, 42] * 5
ROWS = 6


def random_head(tiny):
    """Return a head with random weights, of every token."""
    torch.manual_seed(2)
    network = ChimeraNetwork(ChimeraNetwork.shape_for(tiny.config)).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    network.requires_grad_(False)
    return Head(network, torch.arange(97), tiny.name, tiny.identity)


def rms(x, scale, eps):
    return x / (x.pow(2).mean() + eps).sqrt() * scale


def silu(x):
    return x / (1 + torch.exp(-x))


def rotated(x, position, theta):
    """Rotate x `[D]` to a position, as a product of complex numbers."""
    half = len(x) // 2
    angles = position * theta ** (-torch.arange(half, dtype=torch.float64) / half)
    turned = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones(half).double(), angles)
    return torch.cat([turned.real, turned.imag])


def transcription(network, e, f, level):
    """Return (h_logit, F) of the last row of e, f `[L, d]`, by hand."""
    w = network.state_dict()
    shape = network.shape
    last = len(e) - 1
    entries = [(p, rms(f[p], w["norm.weight"], shape.eps)) for p in range(last - level + 1)]
    for p in range(len(e)):
        x = torch.cat([e[max(p - 2, 0)], e[max(p - 1, 0)], e[p]])
        t = w["fuse.out.weight"] @ (x + silu(w["fuse.block.weight"] @ x + w["fuse.block.bias"]))
        entries.append((p + 1, rms(t, w["norm.weight"], shape.eps)))
    seen = []
    for head in range(shape.heads):
        own = slice(head * shape.head_dim, (head + 1) * shape.head_dim)
        group = head * shape.kv_heads // shape.heads
        shared = slice(group * shape.head_dim, (group + 1) * shape.head_dim)
        q = rotated(w["attention.q.weight"][own] @ entries[-1][1], last + 1, shape.rope_theta)
        keys = [
            rotated(w["attention.k.weight"][shared] @ n, p, shape.rope_theta) for p, n in entries
        ]
        values = torch.stack([w["attention.v.weight"][shared] @ n for _, n in entries])
        scores = torch.stack([q @ k for k in keys]) / shape.head_dim**0.5
        seen.append(scores.softmax(0) @ values)
    a = t + w["attention.o.weight"] @ torch.cat(seen)
    n = rms(a, w["output.norm.weight"], shape.eps)
    gated = silu(w["output.gate.weight"] @ n) * (w["output.up.weight"] @ n)
    hidden = a + w["output.down.weight"] @ gated
    return w["head.weight"] @ torch.cat([f[last - level], hidden]), hidden


def test_outputs_equal_the_transcribed_formulas(tiny):
    network = random_head(tiny).network
    e, f = torch.randn(2, ROWS, 64, dtype=torch.float64)
    for level, out in enumerate(network.unrolled(e[None], f[None], 3)):
        for row in range(level, ROWS):
            h_logit, hidden = transcription(network, e[: row + 1], f[: row + 1], level)
            torch.testing.assert_close(out.h_logit[0, row], h_logit, rtol=0, atol=1e-9)
            torch.testing.assert_close(out.h_feature[0, row], hidden, rtol=0, atol=1e-9)
    rows = torch.tensor([[True, False, False, True, False, True]])
    first = network(e[None], f[None], rows)
    whole = network.unrolled(e[None], f[None], 1)[0]
    assert torch.equal(first.h_logit, whole.h_logit[rows])


@pytest.mark.parametrize("compiled", [True, False])
@torch.inference_mode()
def test_a_draft_computes_what_the_network_does(tiny, compiled):
    """In a tree of two siblings and a child, and again after more tokens were committed."""
    head = random_head(tiny)
    draft = CachedDraft(tiny, head)
    if not compiled:
        draft.network.compiled_attention = None
    text = [*PROMPT, 7, 20, 33]
    with tiny.session(64) as session:
        features = session.prefill(text).features
    start = len(PROMPT)
    for end in (start, start + 2):  # the rows that are known
        if end == start:
            with tiny.session(64) as session:
                scores = session.prefill(PROMPT)
            draft.begin(Context(text[: start + 1], start, Sampler()), scores)
        else:
            draft.features = features[start:end]
            draft.tokens = text[start + 1 : end + 1]
        outs = [draft.absorb()]
        siblings = extend_visibility(None, torch.tensor([0, 0]))
        outs.append(draft.expand(torch.tensor([5, 9]), torch.tensor([0, 0]), siblings, 0))
        child = extend_visibility(siblings, torch.tensor([1]))
        outs.append(draft.expand(torch.tensor([3]), torch.tensor([1]), child, 1))
        e = tiny.embedding(torch.tensor([*text[1 : end + 1], 9, 3]))
        f = torch.cat([features[:end], torch.randn(2, 64, dtype=torch.float64)])
        levels = head.network.unrolled(e[None], f[None], 3)
        for level, out in enumerate(outs):
            expected = levels[level].h_logit[0, end - 1 + level]
            torch.testing.assert_close(out.h_logit[-1], expected, rtol=0, atol=1e-9)
            assert torch.equal(out.h_feature[-1], draft.last.h_feature[-1])
            torch.testing.assert_close(out.h_feature[-1], features[end - 1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(
    "options",
    [{"tree": "auto"}, {"nodes": 26, "depth": 5, "top_k": 8}, {"drafting": "ranked"}],
    ids=str,
)
def test_its_output_is_vanillas(tiny, temperature, options):
    sampler = Sampler(temperature, seed=8)
    drafted = generate(tiny, Chimera(tiny, **options), sampler, PROMPT, Limit(40))
    assert drafted.tokens == vanilla_tokens(tiny, sampler, PROMPT, Limit(40))
    accepted = sum(drafted.committed) - drafted.forwards
    assert 0 < accepted < sum(drafted.drafted)


def test_the_host_runs_its_steps_on_a_device_too(heads, monkeypatch):
    monkeypatch.setenv(kernels.VARIABLE, "reference")
    target = load_target("tiny")
    drafter = Chimera(target, head=str(heads["chimera"]))
    assert not drafter.options.captured
    assert drafter.device_drafter() is None
    sampler = Sampler(1.0, seed=2)
    drafted = generate(target, drafter, sampler, PROMPT, Limit(12))
    assert drafted.tokens == generate(target, Vanilla(target), sampler, PROMPT, Limit(12)).tokens


def test_heads_of_others_are_refused_and_its_own_is_not_exported(tiny, heads, tmp_path):
    with pytest.raises(BenchError, match="holds the head of 'eagle', not of 'chimera'"):
        Chimera(tiny, head=str(heads["eagle"]))
    with pytest.raises(BenchError, match=r"no name for .* of a head of 'chimera'"):
        export_head(load_head(heads["chimera"], tiny), tiny, tmp_path / "exported")


def test_it_starts_from_the_lm_head_twice_and_a_block_that_adds_nothing(tiny):
    network = ChimeraNetwork(ChimeraNetwork.shape_for(tiny.config))
    f, hidden = torch.randn(2, 64)
    torch.testing.assert_close(network.head(torch.cat([f, hidden])), f + hidden)
    assert not network.fuse.block(torch.randn(3 * 64)).any()

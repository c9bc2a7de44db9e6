"""Medusa's heads against their formula, its trees against the product of its candidates."""

import json
from itertools import product

import pytest
import torch
from recording import vanilla_tokens

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Context, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.medusa import Medusa, MedusaNetwork
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.drafts.head import Head, export_head, load_head
from fspad_bench.engine import gpu as kernels
from fspad_bench.models.load import load_target
from fspad_bench.util.errors import BenchError

PROMPT = [40, 41, 42] * 5


def random_head(tiny, vocabulary):
    torch.manual_seed(2)
    network = MedusaNetwork(MedusaNetwork.shape_for(tiny.config)).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return Head(network.requires_grad_(False), vocabulary, tiny.name, tiny.identity)


def test_each_head_equals_its_formula(tiny):
    """Row i of level k reads the state k rows before it."""
    network = random_head(tiny, torch.arange(97)).network
    e, f = torch.randn(2, 1, 7, 64, dtype=torch.float64)
    for k, out in enumerate(network.unrolled(e, f, 4)):
        for row in range(k, 7):
            state = f[0, row - k]
            wx = network.state_dict()[f"blocks.{k}.weight"] @ state
            expected = state + wx / (1 + torch.exp(-wx))
            torch.testing.assert_close(out.h_logit[0, row], expected, rtol=0, atol=1e-12)
    rows = torch.tensor([[True, False, False, True, False, True, False]])
    first = network.unrolled(e, f, 1)[0]
    torch.testing.assert_close(network(e, f, rows).h_logit, first.h_logit[rows])


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@torch.inference_mode()
def test_the_tree_holds_the_likeliest_paths_of_the_product(tiny, temperature):
    """With the noise of its own position on each head; the text's tokens may be drafted."""
    head = random_head(tiny, torch.tensor([i for i in range(97) if i % 3]))
    sampler = Sampler(temperature, seed=3)
    context = Context([*PROMPT, 7], len(PROMPT), sampler)
    drafter = Medusa(tiny, head=head, nodes=9, depth=3, top_k=6)
    with tiny.session(64) as session:
        scores = session.prefill(PROMPT)
    drafter.begin(context, scores)
    tree = drafter.propose(context, 5)
    ids = torch.tensor(sorted({i for i in range(97) if i % 3} | set(context.tokens)))
    chances = {}
    levels = []
    for k in range(3):
        h = head.network.level(scores.features[-1], k)
        logits = tiny.lm_head(h)[ids]
        logits += temperature * sampler.noise(context.position + k, ids)
        best = logits.softmax(-1).topk(6)
        levels.append(list(zip(ids[best.indices].tolist(), best.values.tolist(), strict=True)))
        for path in product(*levels):
            chance = torch.tensor([p for _, p in path], dtype=torch.float64).prod()
            chances[tuple(token for token, _ in path)] = float(chance)
    expected = sorted(chances, key=chances.__getitem__, reverse=True)[:8]
    paths = [()]
    for node in range(1, len(tree)):
        paths.append((*paths[tree.parents[node]], tree.tokens[node]))
    assert set(paths[1:]) == set(expected)
    for path, chance in zip(paths[1:], drafter.last.chances, strict=True):
        assert chance == pytest.approx(chances[path], rel=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(
    "options", [{"tree": "auto"}, {"nodes": 20, "depth": 4}, {"drafting": "ranked"}], ids=str
)
def test_its_output_is_vanillas(tiny, temperature, options):
    sampler = Sampler(temperature, seed=8)
    drafted = generate(tiny, Medusa(tiny, **options), sampler, PROMPT, Limit(40))
    assert drafted.tokens == vanilla_tokens(tiny, sampler, PROMPT, Limit(40))
    accepted = sum(drafted.committed) - drafted.forwards
    assert 0 < accepted < sum(drafted.drafted)


def test_it_drafts_as_deep_as_it_has_heads(tiny, heads):
    drafter = Medusa(tiny, head=str(heads["medusa"]), tree="auto")
    assert drafter.options.depth == 4
    with pytest.raises(BenchError, match=r"depth=5 is out of range: .* predicts 4 tokens at once"):
        Medusa(tiny, head=str(heads["medusa"]), depth=5)


def test_the_host_runs_its_steps_on_a_device_too(heads, monkeypatch):
    monkeypatch.setenv(kernels.VARIABLE, "reference")
    target = load_target("tiny")
    drafter = Medusa(target, head=str(heads["medusa"]))
    assert not drafter.options.captured
    assert drafter.device_drafter() is None
    sampler = Sampler(1.0, seed=2)
    drafted = generate(target, drafter, sampler, PROMPT, Limit(12))
    assert drafted.tokens == generate(target, Vanilla(target), sampler, PROMPT, Limit(12)).tokens


def test_heads_of_others_are_refused_and_its_own_is_not_exported(tiny, heads, tmp_path):
    with pytest.raises(BenchError, match="holds the head of 'eagle', not of 'medusa'"):
        Medusa(tiny, head=str(heads["eagle"]))
    with pytest.raises(BenchError, match="no place for a head of 'medusa'"):
        export_head(load_head(heads["medusa"], tiny), tiny, tmp_path / "exported")


def test_a_head_without_levels_is_refused(tiny, heads, tmp_path):
    about = json.loads((heads["medusa"] / "head.json").read_text())
    del about["shape"]["levels"]
    (tmp_path / "head.json").write_text(json.dumps(about))
    (tmp_path / "head.safetensors").write_bytes((heads["medusa"] / "head.safetensors").read_bytes())
    with pytest.raises(BenchError, match="not a usable draft head: its shape states 0 levels"):
        Medusa(tiny, head=str(tmp_path))

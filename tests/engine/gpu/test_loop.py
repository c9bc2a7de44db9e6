"""Every registered decoder gives the same tokens through the kernels and the host, at any T."""

import pytest
import torch

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.build import build_decoder
from fspad_bench.engine import gpu as kernels
from fspad_bench.models.load import load_target
from fspad_bench.util.registry import DECODERS, names

PROMPT = [40, 41, 42, 43, 44, 45] * 2
FIXED = {  # adaptive trees have one shape on a device and many on the host
    "eagle": {"tree": "fixed"},
    "eagle3": {"tree": "fixed"},
    "fspad": {"tree": "fixed"},
    "hybrid": {"of": "fspad@fixed,suffix"},
}
SAMPLERS = [Sampler(), Sampler(1.0, seed=4), Sampler(0.8, top_k=30, top_p=0.9, seed=5)]


@pytest.fixture
def target(monkeypatch, device):
    """`target(name)`: the tiny target with these kernels."""

    def target(name):
        monkeypatch.setenv(kernels.VARIABLE, name)
        return load_target("tiny", device=device.type)

    return target


def generations(target, decoder, tokens):
    drafter = build_decoder(decoder, target, {decoder: FIXED.get(decoder, {})}).drafter
    limit = Limit(tokens, target.stop_ids)
    return [generate(target, drafter, sampler, PROMPT, limit) for sampler in SAMPLERS]


INTERPRETED = ("fspad", "prompt_lookup", "vanilla")  # steps of each kind; the others by night
EVERY = [
    pytest.param(
        kind,
        decoder,
        marks=[pytest.mark.nightly] if kind == "triton" and decoder not in INTERPRETED else [],
    )
    for kind in ("reference", "triton")
    for decoder in names(DECODERS)
]


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("name", "decoder"), EVERY)
def test_kernels_and_host_give_the_same_tokens(target, decoder, name, device):
    tokens = 5 if name == "triton" and device.type == "cpu" else 14  # its interpreter is slow
    results = generations(target(name), decoder, tokens)
    expected = generations(target("host"), decoder, tokens)
    assert [x.tokens for x in results] == [x.tokens for x in expected]
    assert [x.committed for x in results] == [x.committed for x in expected]


@pytest.mark.parametrize("name", ["reference", "triton"])
def test_a_tree_of_many_nodes_has_the_logits_of_the_host(target, grown, name):
    """In parts by the kernels, at once by the host."""
    tree = grown(66)
    with target("host").session(24) as session:
        session.prefill(list(range(20)))
        whole = session.score(tree).logits
    with target(name).session(24) as session:
        session.prefill(list(range(20)))
        parts = [
            session.extend(tree.tokens[start:end], tree.parents[start:end]).logits
            for start, end in ((0, 1), (1, 30), (30, 66))
        ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-9)


def test_the_record_names_the_kernels(target):
    assert target("reference").forward_name.endswith(", reference kernels")
    assert "kernels" not in target("host").forward_name


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["reference", "triton"])
def test_certification_holds_through_the_kernels(monkeypatch, name, capsys):
    from fspad_bench.cli import main as cli

    monkeypatch.setenv(kernels.VARIABLE, name)
    assert cli.main(["certify", "--decoder", "vanilla,fspad", "--quick"]) == 0, (
        capsys.readouterr().out
    )

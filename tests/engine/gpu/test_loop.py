"""Every registered decoder says the same through the kernels as through the host, greedy and sampled."""

import pytest
import torch

from fspad_bench.core.loop import Limit, generate
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.build import build
from fspad_bench.decoders.registry import DECODERS, names
from fspad_bench.engine import gpu as kernels
from fspad_bench.models.load import load_target

PROMPT = [40, 41, 42, 43, 44, 45] * 2
LAWS = [Sampler(), Sampler(1.0, seed=4), Sampler(0.8, top_k=30, top_p=0.9, seed=5)]


@pytest.fixture
def target(monkeypatch, device):
    """`target(name)`: the tiny target with these kernels."""

    def target(name):
        monkeypatch.setenv(kernels.VARIABLE, name)
        return load_target("tiny", device=device.type)

    return target


def texts(target, decoder):
    options = (
        {decoder: {"tree": "fixed"}} if decoder in ("eagle", "fspad") else {}
    )  # sized, a device has one shape
    drafter = build(decoder, target, options).decoder
    return [generate(target, drafter, law, PROMPT, Limit(14, target.stop_ids)) for law in LAWS]


@pytest.mark.parametrize("decoder", names(DECODERS))
@pytest.mark.parametrize("name", ["reference", "triton"])
def test_kernels_and_host_say_the_same(target, decoder, name):
    found, wanted = texts(target(name), decoder), texts(target("host"), decoder)
    assert [made.tokens for made in found] == [made.tokens for made in wanted]
    assert [made.committed for made in found] == [made.committed for made in wanted]


@pytest.mark.parametrize("name", ["reference", "triton"])
def test_a_tree_of_many_nodes_scores_as_the_host_scores_it(target, grown, name):
    tree, prompt = grown(70), list(range(50))
    scores = []
    for kind in (name, "host"):
        made = target(kind)
        made.prefill(prompt, 4)
        scores.append(made.score(tree).logits)
    torch.testing.assert_close(*scores, rtol=0, atol=1e-9)


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

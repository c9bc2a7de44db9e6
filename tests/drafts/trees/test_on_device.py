"""Trees built on the device: one shape for all steps, equal to the tree of the host."""

from dataclasses import asdict

import pytest

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.build import build_decoder
from fspad_bench.decoders.fspad import Fspad
from fspad_bench.drafts.sizing import costs
from fspad_bench.drafts.sizing.costs import SIZES, TINY, Costs
from fspad_bench.drafts.sizing.policy import FixedTree
from fspad_bench.drafts.trees.on_device import DeviceTreeBuilder
from fspad_bench.engine import gpu
from fspad_bench.models.load import load_target

PROMPT = list(range(30, 52))
LIMIT = Limit(24)
DEAR = Costs(tuple(1.0 + 0.4 * n for n in SIZES), 0.1, 0.6)


@pytest.fixture
def target(monkeypatch):
    """Return the tiny target on the reference kernels, whose steps are captured."""
    monkeypatch.setenv(gpu.VARIABLE, "reference")
    return load_target("tiny")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("decoder", ["eagle", "fspad"])
@pytest.mark.parametrize("tree", ["auto", "fixed"])
def test_device_and_host_draft_the_same(target, decoder, temperature, tree):
    built = build_decoder(decoder, target, {decoder: {"tree": tree}})
    assert built.loop is not None
    sampler = Sampler(temperature, seed=3)
    on_device = built.generate(target, sampler, PROMPT, LIMIT)
    on_host = generate(target, built.drafter, sampler, PROMPT, LIMIT)
    assert on_device.tokens == on_host.tokens
    assert on_device.committed == on_host.committed


def test_settings_hold_the_captured_shape(target):
    drafter = Fspad(target, tree="auto")
    measurements = drafter.prepare(target)
    assert measurements == {"captured": asdict(TINY)}
    settings = drafter.settings()
    assert settings["captured"] is True
    assert settings["vocabulary"] == "head"
    shape = FixedTree(settings["captured_nodes"], settings["captured_depth"])
    assert drafter.policies == {True: shape, False: shape}
    builder = drafter.device_drafter()
    assert (builder.nodes, builder.depth) == (shape.nodes, shape.depth)


def test_a_resumed_run_keeps_its_shape(target, monkeypatch):
    """It is part of the row's key, and a captured step cannot change it."""
    first = Fspad(target, tree="auto")
    first.prepare(target)
    monkeypatch.setattr(costs, "measure", pytest.fail)
    resumed = Fspad(target, tree="auto")
    assert resumed.prepare(target, {"captured": asdict(TINY)}) == {"captured": asdict(TINY)}
    assert resumed.settings() == first.settings()
    dear = Fspad(target, tree="auto")
    dear.prepare(target, {"captured": asdict(DEAR)})
    assert dear.settings()["captured_nodes"] < first.settings()["captured_nodes"]


def test_steps_of_other_rules_and_drawn_trees_are_not_captured(target):
    for options in ({"verify": "rejection"}, {"drafting": "sampled"}):
        drafter = Fspad(target, **options)
        assert drafter.settings()["captured"] is False
        assert drafter.device_drafter() is None


def test_a_tree_too_deep_for_its_bits_is_drafted_by_the_host(target):
    deepest = DeviceTreeBuilder.deepest(10)
    assert Fspad(target, depth=deepest, top_k=10).device_drafter() is not None
    assert Fspad(target, depth=deepest + 1, top_k=10).device_drafter() is None

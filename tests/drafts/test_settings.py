"""A drafter's settings hold what runs; preparing it measures, building it does not."""

import json
from dataclasses import asdict, replace

import pytest

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.verification import RULES
from fspad_bench.decoders.build import build_decoder
from fspad_bench.decoders.eagle import Eagle
from fspad_bench.decoders.fspad import Fspad
from fspad_bench.drafts import measure
from fspad_bench.drafts.drafter import FIXED_DEPTH, FIXED_NODES, MOST_DEPTH
from fspad_bench.drafts.sizing import costs
from fspad_bench.drafts.sizing.costs import SIZES, TINY, Costs
from fspad_bench.drafts.sizing.policy import MOST_NODES, AdaptiveTree, FixedTree
from fspad_bench.drafts.trees.on_device import DeviceTreeBuilder
from fspad_bench.engine import gpu as kernels
from fspad_bench.models.load import load_target
from fspad_bench.util.errors import BenchError

PROMPT = list(range(30, 52))
KNOWN = Costs(tuple(3.0 + 0.5 * n for n in SIZES), 0.7, 0.2)


@pytest.fixture
def no_measuring(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("something was measured")

    monkeypatch.setattr(costs, "measure", refuse)


OPTIONS = [
    {},
    {"tree": "auto"},
    {"tree": "fixed"},
    {"nodes": 16},
    {"depth": 3, "top_k": 2},
    {"verify": "rejection"},
    {"verify": "traversal", "drafting": "ranked", "tree": "auto"},
    {"drafting": "sampled", "vocabulary": "head"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("decoder", [Eagle, Fspad])
def test_settings_are_resolved(tiny, decoder, options):
    """No option is left empty or 0, and every option that was given holds."""
    drafter = decoder(tiny, **options)
    settings = drafter.settings()
    captured = settings.pop("captured")
    assert captured is False
    assert all(settings.values()), settings
    assert settings["tree"] in ("auto", "fixed")
    assert settings["head_sha256"] == drafter.head.sha256
    sampled = settings["drafting"] == "sampled"
    kept = {k: v for k, v in options.items() if not (k == "tree" and sampled)}
    assert settings.items() >= kept.items()
    assert RULES[settings["verify"]] is drafter.rule


def test_sizes_that_are_not_given_are_settled_by_the_kind_of_tree(tiny):
    fixed = Fspad(tiny, tree="fixed").settings()
    assert (fixed["nodes"], fixed["depth"]) == (FIXED_NODES, FIXED_DEPTH)
    adaptive = Fspad(tiny, tree="auto").settings()
    assert (adaptive["nodes"], adaptive["depth"]) == (MOST_NODES, MOST_DEPTH)


@pytest.mark.parametrize(("nodes", "depth"), [(4, 2), (16, 2), (32, 3), (64, 5), (128, 8)])
def test_more_nodes_of_a_fixed_tree_have_more_levels(tiny, nodes, depth):
    """32 and 64 are those that the documents name."""
    settings = Fspad(tiny, nodes=nodes).settings()
    assert (settings["tree"], settings["depth"]) == ("fixed", depth)


def test_a_vocabulary_smaller_than_top_k_bounds_it(tiny):
    head = Fspad(tiny).head
    small = replace(head, vocabulary=head.vocabulary[:3])
    drafter = Fspad(tiny, small, tree="fixed", top_k=10)
    assert drafter.settings()["top_k"] == 3
    drafted = generate(tiny, drafter, Sampler(), PROMPT, Limit(16))
    assert sum(drafted.drafted) > 0


def test_settings_do_not_change_with_preparation_or_use(tiny):
    drafter = Fspad(tiny, tree="auto")
    before = drafter.settings()
    drafter.prepare(tiny)
    generate(tiny, drafter, Sampler(), PROMPT, Limit(8))
    assert drafter.settings() == before


def test_building_measures_nothing_and_preparing_does(tiny, no_measuring):
    decoder = build_decoder("fspad", tiny, {"fspad": {"tree": "auto"}})
    assert decoder.measurements is None
    assert decoder.options["tree"] == "auto"
    with pytest.raises(BenchError, match="something was measured"):
        decoder.prepare()


def test_fixed_trees_need_no_measuring(tiny, no_measuring):
    decoder = build_decoder("fspad", tiny, {"fspad": {"tree": "fixed"}})
    decoder.prepare()
    assert decoder.measurements is None
    decoder.generate(tiny, Sampler(), PROMPT, Limit(8))


def test_known_measurements_are_taken_over(tiny, no_measuring):
    known = {"greedy": asdict(KNOWN), "sampled": asdict(replace(KNOWN, overhead=2.0))}
    decoder = build_decoder("fspad", tiny, {"fspad": {"tree": "auto"}})
    decoder.prepare(known)
    assert decoder.measurements == json.loads(json.dumps(known))  # as a record holds them
    policies = decoder.drafter.policies
    assert policies[True].costs == KNOWN
    assert policies[False].costs.overhead == 2.0


def test_a_measurement_that_is_not_known_is_made(tiny):
    drafter = Fspad(tiny, tree="auto")
    measurements = drafter.prepare(tiny, {"greedy": asdict(KNOWN)})
    assert measurements == {"greedy": asdict(KNOWN), "sampled": asdict(TINY)}


def test_preparing_again_measures_again(tiny, monkeypatch):
    """So does a generation that was not prepared for, once."""
    measured = []
    monkeypatch.setattr(costs, "measure", lambda *args, **options: measured.append(1) or TINY)
    drafter = Fspad(tiny, tree="auto")
    for _ in range(2):
        generate(tiny, drafter, Sampler(), PROMPT, Limit(4))
    assert len(measured) == 2  # greedy and sampled steps
    assert all(isinstance(policy, AdaptiveTree) for policy in drafter.policies.values())
    drafter.prepare(tiny)
    assert len(measured) == 4


def test_a_captured_shape_is_chosen_by_known_measurements(tiny, no_measuring):
    """A resumed run keeps its shape, which is part of its key."""
    drafter = Fspad(tiny, tree="auto")
    known = {"captured": asdict(KNOWN)}
    shape, measurements = measure.captured_shape(
        tiny, drafter.draft, drafter.head, drafter.options, known
    )
    assert isinstance(shape, FixedTree)
    assert measurements == known


@pytest.mark.parametrize(
    "sizes",
    [{"nodes": 129}, {"nodes": 10**9}, {"depth": 128}, {"depth": 10**6}, {"top_k": 128}],
    ids=str,
)
def test_sizes_beyond_the_largest_tree_are_refused(tiny, sizes):
    with pytest.raises(BenchError, match="is out of range") as caught:
        Fspad(tiny, **sizes)
    assert "128" in caught.value.hint


def test_sizes_of_the_largest_tree_are_taken(tiny):
    settings = Fspad(tiny, nodes=128, depth=127, top_k=97).settings()
    assert (settings["nodes"], settings["depth"]) == (128, 127)


@pytest.mark.parametrize(
    "head", ["~nosuchuser/head", "~/nowhere/head", "/dev/null", "\0", "x" * 300]
)
def test_a_head_that_is_not_there_is_refused(tiny, head):
    with pytest.raises(BenchError, match="head"):
        Fspad(tiny, head)


def test_a_context_without_room_for_timed_steps_has_no_adaptive_trees(tiny, monkeypatch):
    monkeypatch.setattr(costs, "is_tiny", lambda target: False)
    monkeypatch.setattr(type(tiny), "max_length", costs.NEAR, raising=False)
    assert Fspad(tiny).settings()["tree"] == "fixed"
    with pytest.raises(BenchError, match="tree=auto times steps behind 256 tokens") as caught:
        Fspad(tiny, tree="auto")
    assert caught.value.hint == "use tree=fixed"


def test_a_tree_too_deep_for_a_graph_is_not_called_captured(monkeypatch, device):
    monkeypatch.setenv(kernels.VARIABLE, "reference")
    target = load_target("tiny", device=device.type)
    deepest = DeviceTreeBuilder.deepest(4)
    for depth in (deepest, deepest + 1):
        drafter = Fspad(target, depth=depth, nodes=64)
        assert drafter.settings()["captured"] == (depth == deepest)
        assert (drafter.device_drafter() is not None) == (depth == deepest)

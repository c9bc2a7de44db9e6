"""Trees sized by what a step costs and by what its nodes are likely to yield."""

from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.fspad import Fspad, FspadNetwork
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.drafts import measure
from fspad_bench.drafts.draft import CachedDraft, Draft
from fspad_bench.drafts.drafter import FIXED_DEPTH, FIXED_NODES, HeadDrafter, find_head
from fspad_bench.drafts.sizing.calibration import Calibration, Curve
from fspad_bench.drafts.sizing.costs import NEAR, SIZES, Costs
from fspad_bench.drafts.sizing.policy import (
    FADING,
    PRIOR,
    AdaptiveTree,
    FixedTree,
    Trust,
    best_shape,
)
from fspad_bench.engine.session import Session
from fspad_bench.engine.target import LARGEST_TREE

CHEAP = Costs(tuple(1 + 0.001 * n for n in SIZES), 0.1, 0.1)
DEAR = Costs(tuple(1 + 0.3 * n for n in SIZES), 0.1, 0.1)
CURVE = Curve(0.0, 1.0, 0.8, 0.95)
CONFIDENT = Calibration((CURVE,), (CURVE,))
PROMPT = list(range(30, 52))


def adaptive(costs, **bounds):
    sizes = {"nodes": 64, "depth": 8, "top_k": 4} | bounds
    return AdaptiveTree(**sizes, costs=costs, calibration=CONFIDENT, greedy=True)


def head_of(tiny, calibration=None):
    """Return the shipped FSPAD head with this calibration, or with none."""
    head = find_head("", FspadNetwork, tiny)
    facts = {name: value for name, value in head.facts.items() if name != "calibration"}
    if calibration:
        facts["calibration"] = calibration.facts()
    return replace(head, facts=facts)


@pytest.mark.parametrize(
    ("costs", "chances"), product([CHEAP, DEAR], [[0.9, 0.5, 0.1, 0.01], [0.02, 0.01]])
)
def test_the_number_of_nodes_with_the_highest_rate_is_kept(costs, chances):
    def rate(nodes):
        return (1 + sum(chances[:nodes])) / (0.2 + costs.forward_seconds(1 + nodes))

    assert adaptive(costs).keep(chances, 2) == max(range(len(chances) + 1), key=rate)


@pytest.mark.parametrize(
    ("costs", "nodes", "depth"),
    [(CHEAP, 16, 4), (DEAR, 3, 2), (Costs(CHEAP.forward, 0.1, 0.6), 3, 1)],
)
def test_the_shape_of_a_captured_step_is_the_best_on_average(costs, nodes, depth):
    """By brute force over all shapes; a node's chance is that of its path of average children."""
    calibration = Calibration(
        (Curve(first=0.7, any=0.9), Curve(first=0.5, any=0.8)), CONFIDENT.sampled
    )

    def rate(shape, curves):
        paths = []
        frontier = [1.0]
        for level in range(shape.depth):
            curve = curves[min(level, len(curves) - 1)]
            shares = (curve.first, curve.any - curve.first)
            children = [chance * share for chance in frontier for share in shares]
            paths += children
            frontier = sorted(children)[-2:]
        tokens = 1 + sum(sorted(paths, reverse=True)[: shape.nodes - 1])
        seconds = costs.overhead_seconds(shape.depth) + costs.forward_seconds(shape.nodes)
        return tokens / seconds

    shapes = [FixedTree(n, d) for n in SIZES if 2 <= n <= 24 for d in range(1, 6)]
    rates = {
        shape: rate(shape, calibration.greedy) * rate(shape, calibration.sampled)
        for shape in shapes
    }
    chosen = best_shape(costs, calibration, nodes=24, depth=5, top_k=2)
    assert rates[chosen] == pytest.approx(max(rates.values()))
    assert (chosen.nodes, chosen.depth) == (nodes, depth)


def test_nothing_is_kept_where_nothing_is_worth_its_cost():
    assert adaptive(DEAR).keep([0.01, 0.005], 1) == 0
    assert adaptive(CHEAP).keep([0.01, 0.005], 1) == 2


def test_levels_are_added_while_another_one_pays_and_within_bounds():
    likely = [0.95, 0.02, 0.01, 0.01]
    unlikely = [0.05, 0.04, 0.03, 0.02]
    costs = Costs(CHEAP.forward, 0.1, 0.3)
    assert adaptive(costs).deepen(likely, likely, 1)
    assert not adaptive(costs).deepen(unlikely, unlikely, 1)
    assert not adaptive(costs, depth=1).deepen(likely, likely, 1)
    assert not adaptive(Costs(CHEAP.forward, 0.1, 5.0)).deepen(likely, likely, 1)


def test_bounds_hold():
    assert adaptive(CHEAP, nodes=3).keep([0.9, 0.8, 0.7, 0.6], 1) == 2
    fixed = FixedTree(5, 2)
    assert fixed.keep([0.9, 0.1], 1) == 2
    assert fixed.keep([0.5] * 9, 1) == 4
    assert fixed.deepen([], [0.9, 0.01], 1) == 2
    assert fixed.deepen([], [0.9, 0.01], 2) == 0


def test_a_level_is_drafted_only_from_paths_whose_children_may_be_kept():
    """A child is no likelier than its path, and the tree ends at its last node's chance."""
    frontier = [0.9, 0.3, 0.06, 0.01]
    counts = []
    for slope in (0.001, 0.03, 0.4):
        costs = Costs(tuple(1 + slope * n for n in SIZES), 0.0, 0.1)
        counts.append(adaptive(costs).deepen(frontier, frontier, 1))
    assert counts == [4, 2, 1]


def test_forwards_between_the_measured_sizes_are_interpolated():
    costs = Costs(tuple(float(n) ** 1.5 for n in SIZES), 0.5, 0.25)
    assert [costs.forward_seconds(n) for n in SIZES] == list(costs.forward)
    sloped = replace(costs, forward_per_token=tuple(1e-3 * n for n in SIZES))
    for prefix in (5, NEAR, 3 * NEAR):
        expected = [sloped.forward_seconds(n, prefix) for n in range(LARGEST_TREE + 1)]
        assert sloped.all_forwards(prefix) == expected
    assert costs.forward[4] < costs.forward_seconds(7) < costs.forward[5]
    assert all(costs.forward_seconds(n) < costs.forward_seconds(n + 1) for n in range(1, 127))
    assert [costs.overhead_seconds(levels) for levels in (1, 2, 3)] == [0.5, 0.75, 1.0]


def test_a_longer_prefix_makes_levels_dearer_and_trees_less_deep():
    costs = Costs(tuple(1 + 0.01 * n for n in SIZES), 0.1, 0.1, draft_per_token=(1e-4, 2e-4))
    near = costs.overhead_seconds(3)
    assert costs.overhead_seconds(3, NEAR) == costs.overhead_seconds(3, 5) == near
    assert costs.overhead_seconds(3, NEAR + 1000) == pytest.approx(0.3 + 0.1 + 2 * 0.2)
    frontier = [0.9]
    chances = [0.9, 0.05]
    deepened = [
        adaptive(costs).at(prefix, 1.0).deepen(chances, frontier, 1) for prefix in (NEAR, 20 * NEAR)
    ]
    assert deepened == [1, 0]


def test_a_longer_prefix_makes_forwards_dearer_and_trees_smaller():
    costs = Costs(tuple(1 + 0.1 * n for n in SIZES), 0.1, 0.1, tuple(1e-4 * n for n in SIZES))
    near = costs.forward_seconds(8)
    assert costs.forward_seconds(8, NEAR) == costs.forward_seconds(8, 5) == near
    assert costs.forward_seconds(8, NEAR + 500) == pytest.approx(near + 500 * 8e-4)
    chances = [0.9**n for n in range(1, 30)]
    kept = [
        adaptive(costs).at(prefix, 1.0).keep(chances, 1)
        for prefix in (10, NEAR, NEAR + 500, 8 * NEAR)
    ]
    assert kept[0] == kept[1] > kept[2] > kept[3] > 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_adaptive_trees_are_lossless_and_differ_from_step_to_step(tiny, temperature):
    sampler = Sampler(temperature, seed=2)
    limit = Limit(48)
    shapes = []

    class Recorder(Fspad):
        def propose(self, context, budget):
            tree = super().propose(context, budget)
            shapes.append((len(tree), max(tree.depths)))
            assert max(tree.depths) <= budget
            return tree

    drafted = generate(tiny, Recorder(tiny, tree="auto"), sampler, PROMPT, limit)
    assert drafted.tokens == generate(tiny, Vanilla(tiny), sampler, PROMPT, limit).tokens
    assert len(set(shapes)) > 2
    shapes.clear()
    small = Recorder(tiny, tree="auto", nodes=3, depth=1)
    bounded = generate(tiny, small, sampler, PROMPT, limit)
    assert bounded.tokens == drafted.tokens
    assert bounded.forwards >= drafted.forwards
    assert max(shapes) <= (3, 1)


@pytest.mark.parametrize(
    ("options", "is_adaptive"),
    [
        ({}, True),
        ({"tree": "fixed"}, False),
        ({"nodes": 16}, False),
        ({"depth": 3}, False),
        ({"tree": "auto", "nodes": 16}, True),
        ({"drafting": "ranked"}, False),
        ({"drafting": "ranked", "tree": "auto"}, True),
        ({"verify": "rejection"}, False),
        ({"verify": "rejection", "tree": "auto"}, False),
    ],
)
def test_trees_of_a_calibrated_head_are_adaptive_unless_a_size_is_given(tiny, options, is_adaptive):
    drafter = HeadDrafter(tiny, head_of(tiny, CONFIDENT), **options)
    drafter.prepare(tiny)
    assert isinstance(drafter.policies[True], AdaptiveTree if is_adaptive else FixedTree)
    assert drafter.settings()["tree"] == ("auto" if is_adaptive else "fixed")


def test_what_another_packages_network_costs_is_measured_in_each_run(tiny, monkeypatch):
    known = []
    monkeypatch.setattr(
        measure.costs, "measure", lambda target, about, *_: known.append(about) or CHEAP
    )
    head = head_of(tiny, CONFIDENT)
    HeadDrafter(tiny, head).prepare(tiny)
    head.network.__class__ = type("Own", (type(head.network),), {"__module__": __name__})
    HeadDrafter(tiny, head).prepare(tiny)
    greedy, sampled, *of_another = known
    assert (greedy["head"], greedy["greedy"], sampled["greedy"]) == (head.sha256, True, False)
    assert of_another == [None, None]


def test_a_context_too_short_to_measure_in_has_fixed_trees(tiny, monkeypatch):
    head = head_of(tiny, CONFIDENT)
    monkeypatch.setattr(tiny.config, "max_position_embeddings", NEAR)
    assert isinstance(HeadDrafter(tiny, head).policies[True], FixedTree)


def test_the_tree_of_a_head_without_calibration_is_fixed(tiny):
    fixed = FixedTree(FIXED_NODES, FIXED_DEPTH)
    assert HeadDrafter(tiny, head_of(tiny)).policies == {True: fixed, False: fixed}


def test_policies_are_asked_at_each_prefix_length(tiny, monkeypatch):
    prefixes = []
    at = AdaptiveTree.at

    def recording_at(self, prefix, trust, batch):
        prefixes.append(prefix)
        return at(self, prefix, trust, batch)

    monkeypatch.setattr(AdaptiveTree, "at", recording_at)
    generate(tiny, Fspad(tiny, tree="auto"), Sampler(), PROMPT, Limit(24))
    assert prefixes[0] == len(PROMPT) + 1
    assert prefixes == sorted(set(prefixes))


@pytest.mark.parametrize("share", [0.3, 1.0, 1.6])
def test_trust_converges_to_the_share_that_a_text_accepts(share):
    generator = torch.Generator().manual_seed(3)
    trust = Trust()
    assert trust.share == 1.0
    for expected in (4 * torch.rand(400, generator=generator)).tolist():
        jitter = 0.8 * float(torch.rand((), generator=generator)) - 0.4
        trust = trust.after(expected, round(share * expected + jitter))
    assert trust.share == pytest.approx(share, abs=0.12)
    for _ in range(200):
        trust = trust.after(1.0, 1)
    assert trust.share == pytest.approx(1.0, abs=0.05)


def test_a_step_that_expected_nothing_teaches_nothing():
    low = Trust().after(10.0, 2)
    assert Trust().after(0.0, 0).share == 1.0
    assert low.share < low.after(0.0, 0).share < 1.0


def test_less_trust_makes_smaller_trees_and_fewer_levels():
    chances = [0.9**n for n in range(1, 30)]
    costs = Costs(tuple(1 + 0.1 * n for n in SIZES), 0.1, 0.1)
    kept = [adaptive(costs).at(NEAR, trust).keep(chances, 1) for trust in (1.0, 0.5, 0.1, 0.0)]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == len(kept)
    assert kept[-1] == 0
    likely = [0.9, 0.05]
    policy = adaptive(Costs(CHEAP.forward, 0.1, 0.3))
    assert policy.at(NEAR, 1.0).deepen(likely, likely, 1)
    assert not policy.at(NEAR, 0.2).deepen(likely, likely, 1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_each_step_trusts_what_the_steps_before_it_accepted(tiny, temperature, monkeypatch):
    """The expectation is the sum of the kept paths' calibrated chances, at whatever trust."""
    expectations = []
    acceptances = []
    trusts = []
    keep = AdaptiveTree.keep
    at = AdaptiveTree.at

    def recording_keep(self, chances, levels):
        count = keep(self, chances, levels)
        expectations.append(sum(chances[:count]))
        return count

    def recording_at(self, prefix, trust, batch):
        trusts.append(trust)
        return at(self, prefix, trust, batch)

    class Recorder(Fspad):
        def observe(self, step):
            super().observe(step)
            acceptances.append(len(step.accepted.path) - 1)

    monkeypatch.setattr(AdaptiveTree, "keep", recording_keep)
    monkeypatch.setattr(AdaptiveTree, "at", recording_at)
    drafter = Recorder(tiny, tree="auto")
    for _ in range(2):  # what one generation taught is not the next one's
        for record in (expectations, acceptances, trusts):
            record.clear()
        generate(tiny, drafter, Sampler(temperature, seed=2), PROMPT, Limit(48))
        assert sum(acceptances) > 4
        expected = accepted = 0.0
        for trust, expectation, count in zip(trusts, expectations, acceptances, strict=False):
            assert trust == pytest.approx((PRIOR + accepted) / (PRIOR + expected), rel=1e-5)
            expected = FADING * expected + expectation
            accepted = FADING * accepted + count


def test_sampled_drafts_that_are_ranked_are_not_calibrated(tiny):
    """The sampled curves were fitted to probabilities with the noise."""
    head = head_of(tiny, CONFIDENT)
    for drafting, sampled in (("coupled", CONFIDENT), ("ranked", Calibration())):
        drafter = HeadDrafter(tiny, head, tree="auto", drafting=drafting)
        drafter.prepare(tiny)
        assert drafter.policies[True].calibration == CONFIDENT
        assert drafter.policies[False].calibration == sampled


@pytest.mark.parametrize("size", [{"tree": "auto"}, {"nodes": 24, "depth": 4}])
def test_a_draft_that_yields_nan_costs_only_speed(tiny, size, monkeypatch):
    logits = Draft.logits

    def with_nan(self, out):
        broken = logits(self, out)
        broken[-1, ::2] = torch.nan
        return broken

    monkeypatch.setattr(Draft, "logits", with_nan)
    limit = Limit(32)
    vanilla = generate(tiny, Vanilla(tiny), Sampler(), PROMPT, limit)
    assert generate(tiny, Fspad(tiny, **size), Sampler(), PROMPT, limit).tokens == vanilla.tokens


@pytest.mark.parametrize("options", [{}, {"drafting": "ranked", "verify": "rejection"}])
@pytest.mark.parametrize("greedy", [True, False])
def test_every_timed_turn_starts_from_the_same_state(tiny, greedy, options, monkeypatch):
    """With both caches as long as the prefix, and two tokens for the draft to absorb."""
    drafter = Fspad(tiny, **options)
    states = []
    lengths = []
    absorb = CachedDraft.absorb
    score = Session.score

    def recording_absorb(self):
        states.append((self.cache.length, len(self.tokens)))
        return absorb(self)

    def recording_score(self, tree):
        lengths.append(self.length)
        return score(self, tree)

    monkeypatch.setattr(CachedDraft, "absorb", recording_absorb)
    monkeypatch.setattr(Session, "score", recording_score)
    prefixes = [NEAR, 2 * NEAR]
    seconds = measure._draft_seconds(tiny, drafter.draft, drafter.options, greedy, prefixes)
    assert all(0 <= level < 20 * first < 20 for first, level in seconds)
    turns = [(prefix, 2) for prefix in prefixes for _ in (1, measure.DEEP)]
    assert len(states) > len(turns)
    assert states[1:] == turns * (len(states[1:]) // len(turns))
    assert lengths == [length for length, _ in states[1:]]


def test_every_path_is_less_likely_than_its_parent(tiny):
    drafter = Fspad(tiny, tree="auto")
    drafter.prepare(tiny)
    graded = drafter.policies[True].grade([0.0, -1e-9, -0.5, -20.0], 0)
    assert all(0 < chance < 1 for chance in graded)
    assert all(a >= b for a, b in pairwise(graded))


@pytest.mark.parametrize("size", [{"tree": "auto"}, {"nodes": 24, "depth": 4}])
def test_certain_and_impossible_paths_keep_their_parents(tiny, size, monkeypatch):
    """With draft logits so far apart that all nodes are as likely as their parents."""
    trees = []
    logits = Draft.logits
    monkeypatch.setattr(Draft, "logits", lambda self, out: 1e6 * logits(self, out))

    class Recorder(Fspad):
        def propose(self, context, budget):
            trees.append(super().propose(context, budget))
            return trees[-1]

    limit = Limit(32)
    vanilla = generate(tiny, Vanilla(tiny), Sampler(), PROMPT, limit)
    drafted = generate(tiny, Recorder(tiny, **size), Sampler(), PROMPT, limit)
    assert drafted.tokens == vanilla.tokens
    assert max(max(tree.depths) for tree in trees) > 2

"""Trees sized by what a round costs and what its nodes are likely to bring."""

from dataclasses import replace
from itertools import pairwise, product
from math import inf
from statistics import fmean

import pytest
import torch

from fspad_bench.core.loop import Limit, generate
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.fspad import Fspad
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.drafts.drafter import DEEP, FIXED_DEPTH, FIXED_NODES, HeadDrafter, find_head
from fspad_bench.drafts.sizing.calibration import Calibration, Curve, fit
from fspad_bench.drafts.sizing.costs import NEAR, SIZES, Costs
from fspad_bench.drafts.sizing.policy import FADING, PRIOR, BestSize, FixedSize, Trust, best_shape
from fspad_bench.engine.target import LARGEST_TREE

CHEAP, DEAR = (Costs(tuple(1 + slope * n for n in SIZES), 0.1, 0.1) for slope in (0.001, 0.3))
SURE = Calibration((Curve(0.0, 1.0, 0.8, 0.95),), (Curve(0.0, 1.0, 0.8, 0.95),))
PROMPT = list(range(30, 52))


def best(costs, calibration=SURE, **bounds):
    return BestSize(
        **{"nodes": 64, "depth": 8, "top_k": 4} | bounds,
        costs=costs,
        calibration=calibration,
        greedy=True,
    )


@pytest.mark.parametrize(
    ("costs", "chances"), product([CHEAP, DEAR], [[0.9, 0.5, 0.1, 0.01], [0.02, 0.01]])
)
def test_it_keeps_the_number_of_nodes_with_the_highest_rate(costs, chances):
    def rate(nodes):
        return (1 + sum(chances[:nodes])) / (0.2 + costs.forward(1 + nodes))

    assert best(costs).keep(chances, 2) == max(range(len(chances) + 1), key=rate)


@pytest.mark.parametrize(
    ("costs", "shape"), [(CHEAP, (16, 4)), (DEAR, (3, 2)), (Costs(CHEAP.verify, 0.1, 0.6), (3, 1))]
)
def test_the_shape_of_a_captured_round_is_the_best_on_average(costs, shape):
    """By brute force over all shapes, each node's chance that of its path of usual children."""
    calibration = Calibration((Curve(first=0.7, any=0.9), Curve(first=0.5, any=0.8)), SURE.sampled)

    def rate(shape, curves):
        paths, last = [], [1.0]
        for level in range(shape.depth):
            curve = curves[min(level, len(curves) - 1)]
            last = [p * s for p in last for s in (curve.first, curve.any - curve.first)]
            paths, last = paths + last, sorted(last)[-2:]
        return (1 + sum(sorted(paths)[::-1][: shape.nodes - 1])) / (
            costs.beside(shape.depth) + costs.forward(shape.nodes)
        )

    found = best_shape(costs, calibration, nodes=24, depth=5, top_k=2)
    both = {shape: rate(shape, calibration.greedy) * rate(shape, calibration.sampled)
            for shape in (FixedSize(n, d) for n in SIZES if 2 <= n <= 24 for d in range(1, 6))}  # fmt: skip
    assert both[found] == pytest.approx(max(both.values()))
    assert (found.nodes, found.depth) == shape


def test_nothing_is_kept_where_nothing_is_worth_its_cost():
    assert best(DEAR).keep([0.01, 0.005], 1) == 0
    assert best(CHEAP).keep([0.01, 0.005], 1) == 2


def test_it_grows_while_another_level_pays_and_within_its_bounds():
    sure, unsure = [0.95, 0.02, 0.01, 0.01], [0.05, 0.04, 0.03, 0.02]
    level = Costs(CHEAP.verify, 0.1, 0.3)
    assert best(level).grow(sure, sure, 1)
    assert not best(level).grow(unsure, unsure, 1)
    assert not best(level, depth=1).grow(sure, sure, 1)
    assert not best(Costs(CHEAP.verify, 0.1, 5.0)).grow(sure, sure, 1)


def test_bounds_hold():
    assert best(CHEAP, nodes=3).keep([0.9, 0.8, 0.7, 0.6], 1) == 2
    fixed = FixedSize(5, 2)
    assert fixed.keep([0.9, 0.1], 1) == 2
    assert fixed.keep([0.5] * 9, 1) == 4
    assert (fixed.grow([], [], 1), fixed.grow([], [], 2)) == (True, False)


def test_forwards_between_the_measured_sizes_are_interpolated():
    costs = Costs(tuple(float(n) ** 1.5 for n in SIZES), 0.5, 0.25)
    assert [costs.forward(n) for n in SIZES] == list(costs.verify)
    longer = replace(costs, longer=tuple(1e-3 * n for n in SIZES))
    for tokens in (5, NEAR, 3 * NEAR):
        assert longer.forwards(tokens) == [
            longer.forward(n, tokens) for n in range(LARGEST_TREE + 1)
        ]
    assert costs.verify[4] < costs.forward(7) < costs.verify[5]
    assert all(costs.forward(n) < costs.forward(n + 1) for n in range(1, 127))
    assert [costs.beside(levels) for levels in (1, 2, 3)] == [0.5, 0.75, 1.0]


def test_a_longer_prefix_makes_levels_dearer_and_trees_less_deep():
    costs = Costs(tuple(1 + 0.01 * n for n in SIZES), 0.1, 0.1, draft_longer=(1e-4, 2e-4))
    assert costs.beside(3, NEAR) == costs.beside(3, 5) == costs.beside(3)
    assert costs.beside(3, NEAR + 1000) == pytest.approx(0.3 + 0.1 + 2 * 0.2)
    sure, likely = [0.9], [0.9, 0.05]
    assert [
        best(costs).behind(tokens, 1.0).grow(likely, sure, 1) for tokens in (NEAR, 20 * NEAR)
    ] == [True, False]


def test_a_longer_prefix_makes_forwards_dearer_and_trees_smaller():
    costs = Costs(tuple(1 + 0.1 * n for n in SIZES), 0.1, 0.1, tuple(1e-4 * n for n in SIZES))
    assert costs.forward(8, NEAR) == costs.forward(8, 5) == costs.forward(8)
    assert costs.forward(8, NEAR + 500) == pytest.approx(costs.forward(8) + 500 * 8e-4)
    chances = [0.9**n for n in range(1, 30)]
    kept = [
        best(costs).behind(tokens, 1.0).keep(chances, 1)
        for tokens in (10, NEAR, NEAR + 500, 8 * NEAR)
    ]
    assert kept[0] == kept[1] > kept[2] > kept[3] > 0


@pytest.mark.parametrize(("shift", "slope"), [(0.0, 1.0), (-1.0, 0.6), (0.8, 1.4)])
def test_a_curve_is_recovered_from_what_was_right(shift, slope):
    generator = torch.Generator().manual_seed(1)
    q = torch.rand(20_000, 2, generator=generator) * 0.96 + 0.02
    chance = torch.sigmoid(shift + slope * torch.logit(q))
    right = torch.rand(chance.shape, generator=generator) < chance
    curve = fit(q.numpy(), right.numpy())
    assert curve.shift == pytest.approx(shift, abs=0.06)
    assert curve.slope == pytest.approx(slope, abs=0.06)
    assert curve.first == pytest.approx(float(right[:, 0].float().mean()))
    assert Curve(shift, slope).grade(q.log().flatten().tolist()) == pytest.approx(
        chance.flatten().tolist(), abs=1e-4
    )


@pytest.mark.parametrize("share", [0.1, 0.4, 0.6])
def test_a_draft_far_too_sure_of_itself_gets_a_finite_curve(share):
    generator = torch.Generator().manual_seed(2)
    first = 0.9 + 0.09 * torch.rand(3000, 1, generator=generator)
    q = torch.cat([first, (1 - first) / 2], dim=1)
    right = torch.cat(
        [torch.rand(3000, 1, generator=generator) < share, torch.zeros(3000, 1, dtype=torch.bool)],
        1,
    )
    curve = fit(q.numpy(), right.numpy())
    assert abs(curve.shift) + abs(curve.slope) < 30
    assert fmean(curve.grade(q[:, 0].log().tolist())) == pytest.approx(share, abs=0.05)


def test_a_curve_of_what_is_always_or_never_right_is_finite():
    q = torch.full((50, 2), 0.5).numpy()
    for right in (q > 0, q > 1):
        curve = fit(q, right)
        assert abs(curve.shift) < 20
        assert all(0 < chance < 1 for chance in curve.grade([0.0, -1.0, -90.0, -inf]))


def test_calibrations_survive_their_file():
    made = Calibration((Curve(0.1, 0.9, 0.6, 0.8), Curve(0.2)), (Curve(),))
    assert Calibration.of(made.facts()) == made
    assert Calibration.of(None) == Calibration()
    assert made.curve(7, greedy=True) == made.greedy[-1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_auto_trees_are_lossless_and_differ_from_round_to_round(tiny, temperature):
    sampler, limit, shapes = Sampler(temperature, seed=2), Limit(48), []

    class Seen(Fspad):
        def propose(self, context, budget):
            tree = super().propose(context, budget)
            shapes.append((len(tree), max(tree.depths)))
            assert max(tree.depths) <= budget
            return tree

    made = generate(tiny, Seen(tiny, tree="auto"), sampler, PROMPT, limit)
    assert made.tokens == generate(tiny, Vanilla(tiny), sampler, PROMPT, limit).tokens
    assert len(set(shapes)) > 2
    shapes.clear()
    bounded = generate(tiny, Seen(tiny, tree="auto", nodes=3, depth=1), sampler, PROMPT, limit)
    assert bounded.tokens == made.tokens
    assert bounded.forwards >= made.forwards
    assert max(shapes) <= (3, 1)


@pytest.mark.parametrize(
    ("options", "sized"),
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
def test_a_calibrated_draft_sizes_its_trees_unless_told_their_size(tiny, options, sized):
    head = find_head("", "fspad", tiny)
    calibrated = replace(head, facts=head.facts | {"calibration": SURE.facts()})
    assert isinstance(
        HeadDrafter(tiny, calibrated, **options).sizes[True], BestSize if sized else FixedSize
    )


def test_a_context_too_short_to_measure_has_fixed_trees(tiny, monkeypatch):
    head = find_head("", "fspad", tiny)
    monkeypatch.setattr(tiny.config, "max_position_embeddings", NEAR)
    assert isinstance(HeadDrafter(tiny, head).sizes[True], FixedSize)


def test_trees_know_how_many_tokens_they_stand_behind(tiny, monkeypatch):
    asked = []
    behind = BestSize.behind
    monkeypatch.setattr(
        BestSize,
        "behind",
        lambda self, tokens, trust: asked.append(tokens) or behind(self, tokens, trust),
    )
    generate(tiny, Fspad(tiny, tree="auto"), Sampler(), PROMPT, Limit(24))
    assert asked[0] == len(PROMPT) + 1
    assert asked == sorted(set(asked))


@pytest.mark.parametrize("share", [0.3, 1.0, 1.6])
def test_a_text_earns_the_trust_that_it_repays(share):
    generator, trust = torch.Generator().manual_seed(3), Trust()
    assert trust.share == 1.0
    for promised in (4 * torch.rand(400, generator=generator)).tolist():
        trust = trust.after(
            promised,
            round(share * promised + 0.8 * float(torch.rand((), generator=generator)) - 0.4),
        )
    assert trust.share == pytest.approx(share, abs=0.12)
    for _ in range(200):
        trust = trust.after(1.0, 1)
    assert trust.share == pytest.approx(1.0, abs=0.05)


def test_a_round_that_promised_nothing_teaches_nothing():
    doubted = Trust().after(10.0, 2)
    assert Trust().after(0.0, 0).share == 1.0
    assert doubted.share < doubted.after(0.0, 0).share < 1.0


def test_less_trust_makes_smaller_trees_and_fewer_levels():
    chances, costs = (
        [0.9**n for n in range(1, 30)],
        Costs(tuple(1 + 0.1 * n for n in SIZES), 0.1, 0.1),
    )
    kept = [best(costs).behind(NEAR, trust).keep(chances, 1) for trust in (1.0, 0.5, 0.1, 0.0)]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == len(kept)
    assert kept[-1] == 0
    likely = [0.9, 0.05]
    grown = [
        best(Costs(CHEAP.verify, 0.1, 0.3)).behind(NEAR, trust).grow(likely, likely, 1)
        for trust in (1.0, 0.2)
    ]
    assert grown == [True, False]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_each_round_is_grown_by_what_the_rounds_before_it_kept_of_their_promise(
    tiny, temperature, monkeypatch
):
    """The promise is the sum of the kept paths' calibrated chances, whatever trust they were kept with."""
    promised, chosen, asked, keep, behind = [], [], [], BestSize.keep, BestSize.behind

    def kept(size, chances, levels):
        promised.append(sum(chances[: keep(size, chances, levels)]))
        return keep(size, chances, levels)

    class Seen(Fspad):
        def observe(self, step):
            super().observe(step)
            chosen.append(len(step.accepted.path) - 1)

    monkeypatch.setattr(BestSize, "keep", kept)
    monkeypatch.setattr(BestSize, "behind", lambda *args: asked.append(args[2]) or behind(*args))
    drafter = Seen(tiny, tree="auto")
    for _ in range(2):  # what one generation taught is not the next one's
        for found in (promised, chosen, asked):
            found.clear()
        generate(tiny, drafter, Sampler(temperature, seed=2), PROMPT, Limit(48))
        assert sum(chosen) > 4
        due = owed = 0.0
        for trust, hoped, came in zip(asked, promised, chosen, strict=False):
            assert trust == pytest.approx((PRIOR + owed) / (PRIOR + due), rel=1e-5)
            due, owed = FADING * due + hoped, FADING * owed + came


def test_ranks_of_sampled_drafts_are_taken_at_their_word(tiny):
    """The calibration was fitted to probabilities with the noise."""
    head = find_head("", "fspad", tiny)
    calibrated = replace(head, facts=head.facts | {"calibration": SURE.facts()})
    for drafting, sampled in (("coupled", SURE), ("ranked", Calibration())):
        sizes = HeadDrafter(tiny, calibrated, tree="auto", drafting=drafting).sizes
        assert (sizes[True].calibration, sizes[False].calibration) == (SURE, sampled)


@pytest.mark.parametrize("size", [{"tree": "auto"}, {"nodes": 24, "depth": 4}])
def test_a_draft_that_says_nonsense_costs_speed_alone(tiny, size):
    class Broken(Fspad):
        def logits(self, out):
            found = super().logits(out)
            found[-1, ::2] = torch.nan
            return found

    limit = Limit(32)
    wanted = generate(tiny, Vanilla(tiny), Sampler(), PROMPT, limit)
    assert generate(tiny, Broken(tiny, **size), Sampler(), PROMPT, limit).tokens == wanted.tokens


def test_the_tree_of_a_draft_without_calibration_is_fixed(tiny):
    head = find_head("", "fspad", tiny)
    bare = replace(head, facts={k: v for k, v in head.facts.items() if k != "calibration"})
    assert HeadDrafter(tiny, bare).sizes == dict.fromkeys(
        (True, False), FixedSize(FIXED_NODES, FIXED_DEPTH)
    )


@pytest.mark.parametrize("options", [{}, {"drafting": "ranked", "verify": "rejection"}])
@pytest.mark.parametrize("greedy", [True, False])
def test_every_turn_that_is_timed_begins_alike(tiny, greedy, options):
    drafter, begun = Fspad(tiny, **options), []
    absorb = drafter.absorb
    drafter.absorb = lambda: (
        begun.append((drafter.rows.length, len(drafter.tokens), tiny.length)) or absorb()
    )
    found = drafter._seconds(tiny, greedy, [NEAR, 2 * NEAR])
    assert all(0 <= level < 20 * first < 20 for first, level in found)
    assert begun[1:] == [(n, 2, n) for n in (NEAR, 2 * NEAR) for _ in (1, DEEP)] * (
        len(begun[1:]) // 4
    )


def test_every_path_is_less_likely_than_its_parent(tiny):
    graded = Fspad(tiny, tree="auto").sizes[True].grade([0.0, -1e-9, -0.5, -20.0], 0)
    assert all(0 < chance < 1 for chance in graded)
    assert all(a >= b for a, b in pairwise(graded))


@pytest.mark.parametrize("size", [{"tree": "auto"}, {"nodes": 24, "depth": 4}])
def test_of_certain_and_of_impossible_paths_no_node_is_kept_without_its_parent(tiny, size):
    """Where all are as likely as their parents."""
    trees = []

    class Certain(Fspad):
        def logits(self, out):
            return 1e6 * super().logits(out)

        def propose(self, context, budget):
            trees.append(super().propose(context, budget))
            return trees[-1]

    limit = Limit(32)
    wanted = generate(tiny, Vanilla(tiny), Sampler(), PROMPT, limit)
    assert generate(tiny, Certain(tiny, **size), Sampler(), PROMPT, limit).tokens == wanted.tokens
    assert max(max(tree.depths) for tree in trees) > 2

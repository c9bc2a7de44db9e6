"""Costs that follow the machine."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from fspad_bench.core.loop import Limit, generate
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.fspad import Fspad
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.drafts import drafter
from fspad_bench.drafts.sizing import costs
from fspad_bench.drafts.sizing.calibration import Calibration
from fspad_bench.drafts.sizing.costs import NEAR, SIZES, Costs
from fspad_bench.drafts.sizing.machine_speed import EVERY, KEPT, Paced
from fspad_bench.drafts.sizing.policy import BestSize

COSTS = Costs(tuple(10 + 0.1 * n for n in SIZES), 1.5, 1.0, (1e-3,) * len(SIZES), (1e-4, 1e-4))
PROMPT = list(range(30, 52))


def followed(machine, rounds=400, *, noise=0.03, seed=0, paced=None):
    """Costs after so many rounds; `machine` says by which factor a forward of so many nodes is slower, and of 0 nodes
    how much slower drafting is."""
    draws, paced = np.random.default_rng(seed), paced or Paced(COSTS)
    for _ in range(rounds):
        nodes, levels, tokens = (
            int(draws.choice([2, 3, 5, 8, 12, 14, 16])),
            int(draws.integers(1, 4)),
            700,
        )
        factors = machine(nodes), machine(0)
        forward, beside = np.exp(noise * draws.standard_normal(2)) * factors
        paced.saw(
            nodes,
            levels,
            tokens,
            COSTS.forward(nodes, tokens) * forward,
            COSTS.beside(levels, tokens) * beside,
        )
    return paced


def test_until_it_was_told_enough_it_says_what_was_measured():
    paced = Paced(COSTS)
    for _ in range(EVERY):
        np.testing.assert_array_equal(paced.forwards(900), COSTS.forwards(900))
        assert [paced.beside(n, 900) for n in (1, 3)] == [COSTS.beside(n, 900) for n in (1, 3)]
        paced.saw(8, 2, NEAR, 2 * COSTS.forward(8), 2 * COSTS.beside(2))
    assert paced.forwards(900)[8] > 1.2 * COSTS.forward(8, 900)
    assert paced.beside(3, 900) > 1.05 * COSTS.beside(3, 900)


@pytest.mark.parametrize("seed", [0, 1])
def test_it_learns_that_memory_and_sums_go_each_their_way(seed):
    paced = followed(lambda nodes: 1.3 if nodes == 0 else 0.85 if nodes <= 8 else 1.15, seed=seed)
    found = np.divide(paced.forwards(700), COSTS.forwards(700))
    assert found[[2, 4, 8]] == pytest.approx(0.85, rel=0.06)
    assert found[[12, 14, 16]] == pytest.approx(1.15, rel=0.06)
    assert [paced.beside(n) / COSTS.beside(n) for n in (1, 2, 5)] == pytest.approx(
        [1.3] * 3, rel=0.08
    )


def test_a_slower_machine_is_slower_at_sizes_never_seen():
    paced = Paced(COSTS)
    for _ in range(400):
        paced.saw(4, 1, NEAR, 1.3 * COSTS.forward(4), 1.3 * COSTS.beside(1))
    slower = np.divide(paced.forwards(NEAR), COSTS.forwards(NEAR))
    assert slower[4] == pytest.approx(1.3, rel=0.03)
    assert 1.15 < slower[32] < slower[6] < slower[4]


def test_what_was_long_not_seen_goes_back_to_what_was_measured():
    paced = followed(lambda nodes: 1.2 if nodes > 8 else 1.0)
    gone, factors = 0, []
    while gone < 5 / (1 - KEPT):
        factors.append(paced.forwards(NEAR)[14] / COSTS.forward(14))
        paced.saw(4, 1, NEAR, COSTS.forward(4), COSTS.beside(1))
        gone += 1
    assert factors[0] == pytest.approx(1.2, rel=0.06)
    assert factors[0] > factors[len(factors) // 5] > factors[-1]
    assert factors[-1] == pytest.approx(1.0, abs=0.02)


def test_a_pause_of_the_machine_is_no_new_pace():
    paced = followed(lambda nodes: 1.0)
    paced.saw(8, 2, NEAR, 100 * COSTS.forward(8), 100 * COSTS.beside(2))
    for _ in range(EVERY):
        paced.saw(8, 2, NEAR, COSTS.forward(8), COSTS.beside(2))
    assert paced.forwards(NEAR)[8] == pytest.approx(COSTS.forward(8), rel=0.06)
    assert paced.beside(2) == pytest.approx(COSTS.beside(2), rel=0.1)


@pytest.fixture
def measured(monkeypatch):
    """As on any target but the tiny one, by costs that need no measuring."""
    monkeypatch.setattr(costs, "given", lambda target: False)
    monkeypatch.setattr(drafter.costs, "of", lambda *args: COSTS)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_drafter_tells_it_every_round_it_drafted_for(tiny, measured, monkeypatch, temperature):
    told, trees = [], []
    monkeypatch.setattr(Paced, "saw", lambda self, *round_: told.append((self, *round_)))

    class Seen(Fspad):
        def propose(self, context, budget):
            tree = super().propose(context, budget)
            if budget:
                trees.append((len(tree), len(context.tokens), max(tree.depths)))
            return tree

    decoder, sampler, limit = Seen(tiny, tree="auto"), Sampler(temperature, seed=2), Limit(48)
    made = generate(tiny, decoder, sampler, PROMPT, limit)
    assert made.tokens == generate(tiny, Vanilla(tiny), sampler, PROMPT, limit).tokens
    size = decoder.sizes[not temperature]
    assert {id(who) for who, *_ in told} == {id(size.costs)}
    assert [(nodes, tokens) for _, nodes, _, tokens, *_ in told][:-1] == [
        (n, tokens) for n, tokens, _ in trees
    ][:-1]
    assert all(levels >= deep for (_, _, levels, *_), (_, _, deep) in zip(told, trees, strict=True))
    forwards, besides = (sum(seconds) for seconds in list(zip(*told, strict=True))[-2:])
    assert 0 < forwards <= made.score_seconds
    assert made.draft_seconds / 2 < besides < made.decode_seconds - forwards
    decoder.resize({"greedy": asdict(replace(COSTS, first=3.0))})
    assert isinstance(decoder.sizes[True].costs, Paced)
    assert decoder.sizes[True].costs.beside(1) == 3.0


def test_trees_follow_the_machine():
    """Where sums have become slow, as many nodes are kept as memory serves; drafting that has, fewer levels."""
    chances, likely = [0.88**n for n in range(1, 30)], [0.5, 0.05]

    def size(machine):
        return BestSize(16, 8, 4, followed(machine), Calibration(), greedy=True)

    usual, sums, drafts = map(
        size, [lambda n: 1.0, lambda n: 1.5 if n > 8 else 1.0, lambda n: 1.0 if n else 5.0]
    )
    assert usual.keep(chances, 1) == 15 > 8 >= sums.keep(chances, 1) > 4
    assert usual.grow(likely, likely, 1)
    assert not drafts.grow(likely, likely, 1)


@pytest.mark.parametrize(
    "options", [{"drafting": "ranked", "verify": "rejection", "tree": "auto"}, {"tree": "fixed"}]
)
def test_trees_that_decide_the_output_or_are_fixed_follow_no_clock(tiny, measured, options):
    size = Fspad(tiny, **options).sizes[True]
    assert size.costs is COSTS if isinstance(size, BestSize) else options["tree"] == "fixed"


def test_tests_do_not_depend_on_what_a_machine_is_doing(tiny):
    assert Fspad(tiny, tree="auto").sizes[True].costs is costs.TINY

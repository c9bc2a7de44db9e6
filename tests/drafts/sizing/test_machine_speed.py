"""Costs that follow the machine's current speed."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.fspad import Fspad
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.drafts.sizing import costs
from fspad_bench.drafts.sizing.calibration import Calibration
from fspad_bench.drafts.sizing.costs import NEAR, SIZES, Costs
from fspad_bench.drafts.sizing.machine_speed import EVERY, KEPT, CurrentCosts, StepTime
from fspad_bench.drafts.sizing.policy import AdaptiveTree

COSTS = Costs(tuple(10 + 0.1 * n for n in SIZES), 1.5, 1.0, (1e-3,) * len(SIZES), (1e-4, 1e-4))
PROMPT = list(range(30, 52))


def step_time(nodes, levels, prefix=NEAR, *, forward=1.0, overhead=1.0):
    """Return the time of a step whose parts are slower than measured by these factors."""
    return StepTime(
        nodes,
        levels,
        prefix,
        COSTS.forward_seconds(nodes, prefix) * forward,
        COSTS.overhead_seconds(levels, prefix) * overhead,
    )


def after_steps(machine, steps=400, *, noise=0.03, seed=0):
    """Return costs after so many steps on a machine.

    `machine(n)` is the factor by which a forward of n nodes is slower, `machine(0)` the overhead's.
    """
    generator = np.random.default_rng(seed)
    current = CurrentCosts(COSTS)
    for _ in range(steps):
        nodes = int(generator.choice([2, 3, 5, 8, 12, 14, 16]))
        levels = int(generator.integers(1, 4))
        factors = np.exp(noise * generator.standard_normal(2)) * (machine(nodes), machine(0))
        step = step_time(nodes, levels, 700, forward=factors[0], overhead=factors[1])
        current.observe(step)
    return current


def test_until_enough_steps_were_observed_costs_are_the_measured_ones():
    current = CurrentCosts(COSTS)
    for _ in range(EVERY):
        np.testing.assert_array_equal(current.all_forwards(900), COSTS.all_forwards(900))
        for levels in (1, 3):
            expected = COSTS.overhead_seconds(levels, 900)
            assert current.overhead_seconds(levels, 900) == expected
        current.observe(step_time(8, 2, forward=2.0, overhead=2.0))
    assert current.all_forwards(900)[8] > 1.2 * COSTS.forward_seconds(8, 900)
    assert current.overhead_seconds(3, 900) > 1.05 * COSTS.overhead_seconds(3, 900)


@pytest.mark.parametrize("seed", [0, 1])
def test_memory_and_compute_are_learned_independently(seed):
    current = after_steps(
        lambda nodes: 1.3 if nodes == 0 else 0.85 if nodes <= 8 else 1.15, seed=seed
    )
    factors = np.divide(current.all_forwards(700), COSTS.all_forwards(700))
    assert factors[[2, 4, 8]] == pytest.approx(0.85, rel=0.06)
    assert factors[[12, 14, 16]] == pytest.approx(1.15, rel=0.06)
    overheads = [current.overhead_seconds(n) / COSTS.overhead_seconds(n) for n in (1, 2, 5)]
    assert overheads == pytest.approx([1.3] * 3, rel=0.08)


def test_a_slower_machine_is_slower_at_sizes_never_observed():
    current = CurrentCosts(COSTS)
    for _ in range(400):
        current.observe(step_time(4, 1, forward=1.3, overhead=1.3))
    slower = np.divide(current.all_forwards(NEAR), COSTS.all_forwards(NEAR))
    assert slower[4] == pytest.approx(1.3, rel=0.03)
    assert 1.15 < slower[32] < slower[6] < slower[4]


def test_sizes_not_observed_for_long_return_to_the_measured_costs():
    current = after_steps(lambda nodes: 1.2 if nodes > 8 else 1.0)
    factors = []
    while len(factors) < 5 / (1 - KEPT):
        factors.append(current.all_forwards(NEAR)[14] / COSTS.forward_seconds(14))
        current.observe(step_time(4, 1))
    assert factors[0] == pytest.approx(1.2, rel=0.06)
    assert factors[0] > factors[len(factors) // 5] > factors[-1]
    assert factors[-1] == pytest.approx(1.0, abs=0.02)


def test_one_pause_of_the_machine_changes_little():
    current = after_steps(lambda nodes: 1.0)
    current.observe(step_time(8, 2, forward=100.0, overhead=100.0))
    for _ in range(EVERY):
        current.observe(step_time(8, 2))
    assert current.all_forwards(NEAR)[8] == pytest.approx(COSTS.forward_seconds(8), rel=0.06)
    assert current.overhead_seconds(2) == pytest.approx(COSTS.overhead_seconds(2), rel=0.1)


@pytest.fixture
def measured(monkeypatch):
    """Let `tiny` have costs as on any other target, by figures that need no measuring."""
    monkeypatch.setattr(costs, "is_tiny", lambda target: False)
    monkeypatch.setattr(costs, "measure", lambda *args, **options: COSTS)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_step_that_drafted_is_observed(tiny, measured, monkeypatch, temperature):
    observed = []
    trees = []
    monkeypatch.setattr(CurrentCosts, "observe", lambda self, step: observed.append((self, step)))

    class Recorder(Fspad):
        def propose(self, context, budget):
            tree = super().propose(context, budget)
            if budget:
                trees.append((len(tree), len(context.tokens), max(tree.depths)))
            return tree

    drafter = Recorder(tiny, tree="auto")
    drafter.prepare(tiny)
    sampler = Sampler(temperature, seed=2)
    limit = Limit(48)
    drafted = generate(tiny, drafter, sampler, PROMPT, limit)
    assert drafted.tokens == generate(tiny, Vanilla(tiny), sampler, PROMPT, limit).tokens
    policy = drafter.policies[sampler.greedy]
    assert {id(current) for current, _ in observed} == {id(policy.costs)}
    steps = [step for _, step in observed]
    sizes = [(nodes, prefix) for nodes, prefix, _ in trees]
    assert [(step.nodes, step.prefix) for step in steps][:-1] == sizes[:-1]
    assert len(steps) == len(trees)
    for step, (_, _, depth) in zip(steps, trees, strict=True):
        assert step.levels >= depth
    forward = sum(step.forward for step in steps)
    overhead = sum(step.overhead for step in steps)
    assert 0 < forward <= drafted.score_seconds
    assert drafted.draft_seconds / 2 < overhead < drafted.decode_seconds - forward


def test_known_costs_are_followed_too(tiny, measured):
    drafter = Fspad(tiny, tree="auto")
    drafter.prepare(tiny, {"greedy": asdict(replace(COSTS, overhead=3.0))})
    assert isinstance(drafter.policies[True].costs, CurrentCosts)
    assert drafter.policies[True].costs.overhead_seconds(1) == 3.0


def test_trees_follow_the_machine():
    """Slow compute makes trees smaller; slow drafting makes them less deep."""
    chances = [0.88**n for n in range(1, 30)]
    likely = [0.5, 0.05]

    def policy(machine):
        return AdaptiveTree(16, 8, 4, after_steps(machine), Calibration(), greedy=True)

    usual = policy(lambda n: 1.0)
    slow_compute = policy(lambda n: 1.5 if n > 8 else 1.0)
    slow_drafting = policy(lambda n: 1.0 if n else 5.0)
    assert usual.keep(chances, 1) == 15
    assert 4 < slow_compute.keep(chances, 1) <= 8
    assert usual.deepen(likely, likely, 1)
    assert not slow_drafting.deepen(likely, likely, 1)


def test_trees_that_decide_the_output_follow_no_clock(tiny, measured):
    drafter = Fspad(tiny, drafting="ranked", verify="rejection", tree="auto")
    drafter.prepare(tiny)
    assert all(policy.costs is COSTS for policy in drafter.policies.values())


def test_fixed_trees_follow_no_clock(tiny, measured):
    drafter = Fspad(tiny, tree="fixed")
    assert drafter.prepare(tiny) is None
    assert not any(isinstance(policy, AdaptiveTree) for policy in drafter.policies.values())


def test_tests_do_not_depend_on_the_machines_load(tiny):
    drafter = Fspad(tiny, tree="auto")
    drafter.prepare(tiny)
    assert drafter.policies[True].costs is costs.TINY

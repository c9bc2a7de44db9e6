"""Statistics: values by hand, properties of each estimator, and coverage by simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import norm as normal
from scipy.stats import t as student

from fspad_bench.benchmark.stats import (
    Cost,
    Interval,
    agreement,
    mean_of_groups,
    ratio_interval,
    ratio_of_mean_speeds,
    sign_flip_p,
    speedup,
)

OLD = [Cost(2.0, 10), Cost(6.0, 30), Cost(4.0, 10)]
NEW = [Cost(1.0, 10), Cost(2.0, 20), Cost(1.0, 10)]


def simulated(rng: np.random.Generator, n: int) -> tuple[list[Cost], list[Cost]]:
    """Return pairs that share a length and a state of the machine, with a speedup of 2."""
    tokens = rng.integers(20, 200, n)
    state, first, second = rng.lognormal(0, [[0.4], [0.15], [0.15]], (3, n))
    old = [Cost(0.04 * t * m * e, int(t)) for t, m, e in zip(tokens, state, first, strict=True)]
    new = [Cost(0.02 * t * m * e, int(t)) for t, m, e in zip(tokens, state, second, strict=True)]
    return old, new


def coverage(intervals: list[Interval], truth: float) -> float:
    return float(np.mean([i.low <= truth <= i.high for i in intervals]))


def widened(interval: Interval, n: int, level: float) -> object:
    """Return a percentile interval of n prompts, about as Student's t has it, by ratio."""
    wide, narrow = (own.ppf((1 + level) / 2) for own in (student(n - 1), normal()))
    factor = wide / narrow * (n / (n - 1)) ** 0.5
    value = interval.value
    ends = [value * (end / value) ** factor for end in interval[1:]]
    return pytest.approx(Interval(value, *ends))


@pytest.mark.parametrize("n", [5, 8, 16])
def test_few_prompts_cover_as_often_as_many(n):
    """Unwidened percentiles cover in 83, 88 and 92 of 100."""
    rng = np.random.default_rng(n)
    intervals = [speedup(*simulated(rng, n), draws=400) for _ in range(300)]
    assert 0.90 <= coverage(intervals, 2.0) <= 0.98


def test_speedup_by_hand():
    # (12 s / 50 tokens) / (4 s / 40 tokens)
    assert speedup(OLD, NEW).value == pytest.approx(0.24 / 0.1)


def test_the_ratio_of_mean_speeds_by_hand():
    # mean(10, 10, 10) over mean(5, 5, 2.5)
    assert ratio_of_mean_speeds(OLD, NEW).value == pytest.approx(10 / (12.5 / 3))


def test_the_two_speedups_differ_where_prompts_do():
    old = [Cost(1, 10), Cost(9, 90)]
    new = [Cost(0.1, 10), Cost(9, 90)]
    assert speedup(old, new).value == pytest.approx(10 / 9.1)
    assert ratio_of_mean_speeds(old, new).value == pytest.approx(5.5)


def test_the_interval_of_two_pairs_is_the_distribution_of_four_draws():
    # AA, AB, BA, BB with probability 1/4 each give 2, 3, 3, 4.
    old = [Cost(2, 1), Cost(4, 1)]
    new = [Cost(1, 1), Cost(1, 1)]
    assert speedup(old, new, level=0.9) == widened(Interval(3, 2, 4), n=2, level=0.9)
    assert speedup(old, new, level=0.4) == Interval(3, 3, 3)


def test_identical_costs_give_exactly_one():
    rng = np.random.default_rng(1)
    costs, _ = simulated(rng, 37)
    assert speedup(costs, costs) == Interval(1.0, 1.0, 1.0)
    assert ratio_of_mean_speeds(costs, costs) == Interval(1.0, 1.0, 1.0)


def test_pairs_that_differ_by_one_factor_have_no_width():
    # the reason for pairing: the prompts differ widely, their ratio not at all
    old, _ = simulated(np.random.default_rng(2), 25)
    new = [Cost(c.seconds / 3, c.tokens) for c in old]
    assert speedup(old, new) == pytest.approx((3, 3, 3))
    assert ratio_of_mean_speeds(old, new) == pytest.approx((3, 3, 3))


@pytest.mark.parametrize("factor", [1e-3, 7.0, 3600.0])
def test_the_unit_of_time_does_not_matter(factor):
    old, new = simulated(np.random.default_rng(3), 20)
    scaled = [[Cost(c.seconds * factor, c.tokens) for c in costs] for costs in (old, new)]
    assert speedup(*scaled) == pytest.approx(speedup(old, new))
    assert ratio_of_mean_speeds(*scaled) == pytest.approx(ratio_of_mean_speeds(old, new))


def test_exchanging_the_decoders_inverts_the_speedup():
    old, new = simulated(np.random.default_rng(4), 20)
    there = speedup(old, new)
    back = speedup(new, old)
    assert back.value == pytest.approx(1 / there.value)
    assert (back.low, back.high) == pytest.approx((1 / there.high, 1 / there.low), rel=1e-3)


def test_one_pair_has_a_value_and_no_interval():
    value, low, high = speedup(OLD[:1], NEW[:1])
    assert value == pytest.approx(2)
    assert math.isnan(low) and math.isnan(high)


def test_a_seed_fixes_the_interval_and_the_level_orders_it():
    old, new = simulated(np.random.default_rng(5), 20)
    assert speedup(old, new, seed=1) == speedup(old, new, seed=1) != speedup(old, new, seed=2)
    narrow = speedup(old, new, level=0.5)
    wide = speedup(old, new, level=0.99)
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_the_speedup_interval_covers_the_truth():
    # Drawn unpaired it would cover always; drawn by token it would cover far too seldom.
    rng = np.random.default_rng(6)
    intervals = [speedup(*simulated(rng, 60), draws=400, seed=i) for i in range(300)]
    assert 0.90 <= coverage(intervals, 2.0) <= 0.98
    fifty = [speedup(*simulated(rng, 60), draws=400, seed=i, level=0.5) for i in range(300)]
    assert 0.40 <= coverage(fifty, 2.0) <= 0.60


def means(values):
    """Return parts whose ratio is the mean of `values`."""
    return [(float(value), 1.0) for value in values]


def test_the_interval_of_a_mean_covers_the_truth():
    rng = np.random.default_rng(7)
    intervals = [ratio_interval(means(rng.gamma(4, 3, 60)), draws=400, seed=i) for i in range(300)]
    assert 0.90 <= coverage(intervals, 12.0) <= 0.98


def test_the_interval_of_a_mean_by_hand():
    expected = widened(Interval(2, 1, 3), n=2, level=0.9)
    assert ratio_interval(means([1, 3]), level=0.9) == expected
    assert ratio_interval(means([5.0] * 9)) == Interval(5, 5, 5)
    value, low, high = ratio_interval(means([4]))
    assert value == 4
    assert math.isnan(low)
    assert math.isnan(high)


def test_the_interval_of_a_mean_has_the_width_of_the_normal_distribution():
    values = np.random.default_rng(8).normal(10, 2, 400)
    interval = ratio_interval(means(values), draws=4000)
    half = 1.96 * values.std() / 20
    expected = (values.mean(), values.mean() - half, values.mean() + half)
    assert interval == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("estimate", [speedup, ratio_of_mean_speeds])
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ([], [], "no values"),
        (OLD, NEW[:2], "paired: 3 against 2"),
        (OLD[:2], [NEW[0], Cost(0.1, 0)], r"decoder\[1\] is 0.1 s for 0 tokens"),
        ([Cost(0.1, 0), OLD[1]], NEW[:2], r"reference\[0\] is 0.1 s for 0 tokens"),
        (OLD[:1], [Cost(0.0, 5)], r"decoder\[0\] is 0.0 s"),
        (OLD[:1], [Cost(math.nan, 5)], r"decoder\[0\] is nan s"),
    ],
)
def test_costs_without_a_speed_are_refused(estimate, old, new, message):
    with pytest.raises(ValueError, match=message):
        estimate(old, new)


def brute_force_p(differences: list[int]) -> float:
    """In integers, so that ties are ties."""
    signs = list(itertools.product((1, -1), repeat=len(differences)))
    sums = [sum(s * d for s, d in zip(row, differences, strict=True)) for row in signs]
    return sum(s >= sum(differences) for s in sums) / len(sums)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1], 1 / 2),
        ([-1], 1),
        ([1, 2, 3], 1 / 8),
        ([-1, 2, 3], 2 / 8),
        ([-1, -2, -3], 1),
        ([0, 0, 0], 1),
        ([0, 1], 1 / 2),
        ([1, 1, -1], 4 / 8),
    ],
)
def test_sign_flip_by_hand(differences, p):
    assert sign_flip_p(differences) == p == brute_force_p(differences)


@pytest.mark.parametrize("n", range(2, 11))
def test_sign_flip_by_brute_force_with_ties_that_rounding_could_break(n):
    whole = np.random.default_rng(n).integers(-4, 7, n).tolist()
    assert sign_flip_p([0.1 * d for d in whole]) == brute_force_p(whole)


def test_sign_flip_is_exact_to_14_and_sampled_beyond():
    assert sign_flip_p([1.0] * 14) == 2**-14
    assert sign_flip_p([1.0] * 14, seed=1, draws=1) == 2**-14
    assert sign_flip_p([1.0] * 40, draws=999) == 1 / 1000  # only the observed pattern reaches it
    assert sign_flip_p([-1.0] * 40, draws=999) == 1


def test_sampled_sign_flips_agree_with_the_exact_distribution():
    # 15 differences of 1 and one that is 0: the exact p is a binomial tail.
    differences = [1.0] * 10 + [-1.0] * 5 + [0.0]
    exact = sum(math.comb(15, k) for k in range(6)) / 2**15
    assert sign_flip_p(differences, draws=50_000) == pytest.approx(exact, abs=0.005)
    assert sign_flip_p(differences, seed=3) == sign_flip_p(differences, seed=3)


def test_sign_flip_holds_its_level_and_sees_a_shift():
    rng = np.random.default_rng(9)
    null = [sign_flip_p(rng.normal(0, 1, 20), draws=400, seed=i) for i in range(400)]
    assert 0.02 <= np.mean(np.array(null) <= 0.05) <= 0.08
    assert 0.4 <= np.mean(null) <= 0.6
    assert sign_flip_p(rng.normal(1, 1, 40)) < 1e-3 < 0.99 < sign_flip_p(rng.normal(-1, 1, 40))


@pytest.mark.parametrize(
    ("values", "message"), [([], "no values"), ([1, math.nan], "nan"), ([math.inf] * 20, "inf")]
)
def test_missing_values_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        sign_flip_p(values)
    with pytest.raises(ValueError, match=message):
        ratio_interval(means(values))


@pytest.mark.parametrize(
    ("a", "b", "length"),
    [
        ([], [], 0),
        ([], [1], 0),
        ([1, 2, 3], [1, 2, 3], 3),
        ([1, 2, 3], [1, 2], 2),
        ([1, 2, 3], [1, 9, 3], 1),
        ([5, 2], [1, 2], 0),
        ((0, 0, 0), [0, 0, 1, 0], 2),
    ],
)
def test_agreement(a, b, length):
    assert agreement(a, b) == agreement(b, a) == length


def test_a_ratio_is_of_the_sums_and_its_interval_covers_the_truth():
    rng = np.random.default_rng(4)
    covered = 0
    for trial in range(200):
        steps = rng.integers(20, 80, size=30)
        tokens = rng.binomial(steps, 0.6) + steps
        interval = ratio_interval(
            [*zip(tokens.tolist(), steps.tolist(), strict=True)], draws=300, seed=trial
        )
        assert interval.value == pytest.approx(tokens.sum() / steps.sum())
        covered += interval.low <= 1.6 <= interval.high
    assert 175 <= covered <= 199


@pytest.mark.parametrize("parts", [[], [(1.0, 0.0)], [(float("nan"), 1.0)]])
def test_a_ratio_of_nothing_is_refused(parts):
    with pytest.raises(ValueError, match=r"no values|without a step|not a finite"):
        ratio_interval(parts)


def test_a_mean_of_groups_by_hand():
    values = [("a", 1.0), ("a", 3.0), ("b", 6.0)]
    assert mean_of_groups(values).value == pytest.approx(4)
    # of two prompts a draw has both or one of the groups: 2, 4, 6 with probability 1/4, 1/2, 1/4
    expected = widened(Interval(4, 2, 6), n=2, level=0.9)
    assert mean_of_groups([("a", 2.0), ("b", 6.0)], level=0.9) == expected


def test_the_interval_of_a_mean_of_groups_covers_the_truth():
    rng = np.random.default_rng(11)
    intervals = []
    for seed in range(200):
        groups = rng.integers(4, size=60)
        values = groups + rng.normal(0, 0.5, 60)
        named = [(str(g), v) for g, v in zip(groups, values, strict=True)]
        intervals.append(mean_of_groups(named, draws=300, seed=seed))
    assert 0.91 <= coverage(intervals, 1.5) <= 0.98

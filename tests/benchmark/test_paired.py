"""Paired changes: values by hand, calibration and power by simulation, Holm's correction."""

import math

import numpy as np
import pytest

from fspad_bench.benchmark.paired import Change, change, count_p, holm, pooled

RATIO = (1, -1)


def times(rng, n, factor=1.0):
    """Return [n, 2]: seconds of vanilla and of a decoder, which share a prompt."""
    length = np.random.default_rng(7).lognormal(0, 0.5, n)
    noise = rng.lognormal(0, 0.05, (n, 2))
    return length[:, None] * noise * [1.0, 0.5 * factor]


def test_a_change_by_hand():
    """B's figures are 10/5 and 20/10, A's 10/10 and 20/20: twice as much on every prompt."""
    double = change([(10, 10), (20, 20)], [(10, 5), (20, 10)], RATIO)
    assert double.ratio == pytest.approx(2)
    assert double.error == pytest.approx(0, abs=1e-12)
    assert double.p == 0
    assert double.interval() == pytest.approx((2, 2))


def test_the_error_is_the_jackknifes_by_hand():
    """Without one prompt of two the change is the other's."""
    differing = change([(1, 1), (1, 1)], [(2, 1), (4, 1)], RATIO)
    assert differing.ratio == pytest.approx(3)
    logs = [math.log(4), math.log(2)]
    mean = sum(logs) / 2
    assert differing.error == pytest.approx(math.sqrt(sum((x - mean) ** 2 for x in logs) / 2))


def test_nothing_changed_is_no_test():
    same = change([(3, 2), (5, 4)], [(3, 2), (5, 4)], RATIO)
    assert same.is_none
    assert same.p == 1


@pytest.mark.parametrize("prompts", [5, 16, 60])
def test_unchanged_times_differ_as_often_as_the_level_says(prompts):
    rng = np.random.default_rng(prompts)
    runs = 600
    ps = [change(times(rng, prompts), times(rng, prompts), RATIO).p for _ in range(runs)]
    for level in (0.05, 0.01):
        spread = 3 * math.sqrt(level * (1 - level) / runs)
        assert np.mean(np.array(ps) < level) <= level + spread


def test_the_least_change_is_found_nine_times_in_ten():
    rng = np.random.default_rng(3)
    runs = 600
    tests = 10
    unchanged = [change(times(rng, 16), times(rng, 16), RATIO) for _ in range(100)]
    usual = Change(0.0, math.sqrt(np.mean([c.error**2 for c in unchanged])), 16, 15)
    slower = 1 + usual.least(tests)
    changes = [change(times(rng, 16), times(rng, 16, slower), RATIO) for _ in range(runs)]
    found = np.mean([c.p < 0.05 / tests for c in changes])
    assert found == pytest.approx(0.9, abs=0.06)


def test_noise_of_the_machine_raises_the_least_change():
    quiet = Change(0.0, 0.001, 100, 99)
    assert quiet.least(1) < 0.005
    assert quiet.least(1, floor=0.05) > math.expm1(0.05)


def test_tasks_pool_as_independent_means():
    mean = pooled([Change(0.1, 0.03, 10, 9), Change(0.3, 0.04, 10, 9)])
    assert mean.log_ratio == pytest.approx(0.2)
    assert mean.error == pytest.approx(0.025)
    assert mean.freedom == pytest.approx((9e-4 + 16e-4) ** 2 / ((9e-4**2 + 16e-4**2) / 9))
    assert mean.prompts == 20
    with pytest.raises(ValueError, match="no changes"):
        pooled([])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_shares_are_fishers():
    """Of the 20 ways to choose 3 of 6, two are as extreme as none against all."""
    assert count_p(0, 3, 3, 3) == pytest.approx(0.1)
    assert count_p(3, 10, 3, 10) == 1


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([(1, 1)], [(1, 1)], "1 prompts"),
        ([(1, 0), (1, 1)], [(1, 1), (1, 1)], "not above zero"),
        ([(1, math.nan), (1, 1)], [(1, 1), (1, 1)], "not above zero"),
    ],
)
def test_what_has_no_ratio_is_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        change(a, b, RATIO)

"""Means over tasks: their order, their intervals, what has none."""

import math
from dataclasses import replace

import pytest

from fspad_bench.benchmark.stats import Interval
from fspad_bench.benchmark.titles import names_of
from fspad_bench.publishing.standings import mean, standings

ONE = {"speedup": 2.0, "speedup_low": 1.7, "speedup_high": 2.4}
OTHER = {"speedup": 1.0, "speedup_low": 0.6, "speedup_high": 1.3}


def test_a_mean_combines_independent_intervals():
    found = mean([ONE, OTHER], "speedup")
    assert found == pytest.approx((1.5, 1.5 - math.hypot(0.3, 0.4) / 2, 1.5 + 0.5 / 2))


def test_a_mean_needs_every_task_and_an_interval_every_interval():
    assert mean([ONE, OTHER | {"speedup": None}], "speedup") is None
    assert mean([], "speedup") is None
    found = mean([ONE, OTHER | {"speedup_low": None, "speedup_high": None}], "speedup")
    assert found == Interval(1.5, pytest.approx(math.nan, nan_ok=True), found.high)
    assert math.isnan(found.high)


def test_the_fastest_stands_first_in_each_setting(measured):
    found = standings(measured, names_of(measured))
    assert [(s.sampling, s.tasks) for s in found] == [
        ("greedy", ["gsm8k", "nq"]),
        ("T=1", ["gsm8k", "nq"]),
        ("greedy", ["gsm8k", "nq"]),
    ]
    assert [s.place.rpartition(" · ")[2] for s in found] == ["one", "one", "two"]
    for own in found:
        assert [s.name for s in own.decoders] == ["fast", "vanilla", "slow"]
        means = [s.mean("speedup").value for s in own.decoders]
        assert means == pytest.approx([1.5, 1.0, 0.375])
        assert own.decoders[0].verdicts == "2 exact"


def test_a_decoder_without_a_speedup_stands_last(measured):
    unknown = [row | {"speedup": None} if row["decoder"] == "fast" else row for row in measured]
    own = standings(unknown, names_of(unknown))[0]
    assert [s.name for s in own.decoders] == ["vanilla", "slow", "fast"]


def test_one_task_is_no_mean(measured):
    single = [row for row in measured if row["task"] == "nq"]
    assert standings(single, names_of(single)) == []


def test_rows_that_other_work_disturbed_mark_the_mean(measured):
    own = standings(measured, names_of(measured))[0].decoders[0]
    assert not own.noisy
    assert replace(own, rows=[own.rows[0] | {"noisy": True}, own.rows[1]]).noisy

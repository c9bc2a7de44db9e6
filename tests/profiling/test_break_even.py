"""The batch size at which speculation stops paying off, by hand."""

import math

import numpy as np
import pytest

from fspad_bench.benchmark.stats import Cost
from fspad_bench.profiling.break_even import break_even, crossing, last_useful

SIZES = [1, 2, 4, 8]
VANILLA = [Cost(1.0, 10)] * 3


def at(*speedups):
    """Return vanilla's costs, and those of a decoder with these speedups, a prompt each."""
    return VANILLA[: len(speedups)], [Cost(1.0 / speedup, 10) for speedup in speedups]


@pytest.mark.parametrize(
    ("speedups", "size"),
    [
        ([2.0, 1.5, 1.2, 1.01], math.inf),
        ([2.0, 1.5, 1.0, 1.0], math.inf),
        ([0.9, 1.5, 1.2, 1.1], math.inf),  # slower at the smallest size alone
        ([0.9, 0.8, 0.7, 0.6], 1.0),
        ([2.0, 1.5, 1.2, 1 / 1.2], 4 * 2**0.5),  # as far above as below: half-way
        ([2.0, 0.25, 2.0, 0.25], 4 * 2 ** (1 / 3)),
        ([2.0, 1.0, 0.5, 0.4], 2.0),
    ],
)
def test_speedups_fall_below_one_at_the_interpolated_size(speedups, size):
    assert crossing(SIZES, speedups) == pytest.approx(size)


def test_the_interval_holds_the_break_evens_of_the_draws():
    pairs = {2: at(2.0, 2.0, 1.2), 4: at(1.4, 1.1, 0.9), 8: at(0.9, 0.8, 0.4)}
    interval = break_even(pairs)
    pooled = [3 / sum(1 / s for s in speedups) for speedups in ((2, 2, 1.2), (1.4, 1.1, 0.9))]
    assert min(pooled) > 1
    assert 4 < interval.value < 8
    worst = crossing([2, 4, 8], [1.2, 0.9, 0.4])  # a draw of the third prompt alone: 1 in 27
    best = crossing([2, 4, 8], [2.0, 1.4, 0.9])
    factor = 4.3027 / 1.95996 * (3 / 2) ** 0.5  # Student's t of three prompts
    assert interval.low == pytest.approx(interval.value * (worst / interval.value) ** factor, 1e-4)
    assert interval.high == pytest.approx(interval.value * (best / interval.value) ** factor, 1e-4)


def test_an_interval_may_end_beyond_the_sizes_measured():
    interval = break_even({1: at(2.0, 1.2), 4: at(1.5, 0.8)})
    assert interval.value == math.inf
    assert interval.low == pytest.approx(crossing([1, 4], [1.2, 0.8]))
    assert interval.high == math.inf


def test_one_prompt_has_no_interval():
    interval = break_even({1: at(2.0), 2: at(0.5)})
    assert interval.value == pytest.approx(2**0.5)
    assert np.isnan([interval.low, interval.high]).all()


@pytest.mark.parametrize(
    ("size", "useful"), [(1.0, 0), (1.5, 1), (4.0, 3), (5.66, 5), (8.0, 7), (math.inf, None)]
)
def test_the_last_useful_size_lies_below_the_break_even(size, useful):
    assert last_useful(size, 8) == useful

"""The probability integral transform: its value, its offsets, and what its test refuses."""

import random

import pytest
import torch
from by_hand import KEY

from fspad_bench.benchmark.record import Pit
from fspad_bench.benchmark.uniform import offsets, row_uniformity, transform


class Half:
    def uniform(self):
        return 0.5


@pytest.mark.parametrize(
    ("token", "u"), [(0, 0.75), (1, 0.25), (2, 0.6), (3, 0.85), (4, 0.95), (5, 1.0)]
)
def test_u_counts_what_is_likelier_and_half_of_the_token(token, u):
    """Of equal ones, 0, 3 and 4, the smaller id comes first; what cannot come up is at the end."""
    p = torch.tensor([0.1, 0.5, 0.2, 0.1, 0.1, 0.0], dtype=torch.float64)
    assert transform(p, token, Half()) == pytest.approx(u)


def test_offsets_are_places_in_steps():
    assert offsets([3, 1, 2], 7) == [0, 0, 1, 2, 0, 0, 1]
    assert offsets([], 3) == [0, 0, 0]  # steps that are not known


def pit(u, places):
    return Pit(KEY.hash, "a", 0, "r", u, places)


def test_one_offset_that_is_wrong_is_seen_among_many_that_are_right():
    dice = random.Random(0)
    right = pit([dice.random() for _ in range(4000)], [i % 4 for i in range(4000)])
    wrong = pit([dice.random() / 2 for _ in range(150)], [4] * 150)
    assert row_uniformity([right], "float64").holds
    result = row_uniformity([right, wrong], "float64")
    assert not result.holds
    assert result.place == "4"
    assert result.shift > row_uniformity([right], "float64").shift


def test_the_far_tail_counts_where_rounding_moves_no_token_across_a_cut():
    dice = random.Random(1)
    edge = pit([*(dice.random() for _ in range(1000)), *[1.0] * 20], [0] * 1020)
    assert not row_uniformity([edge], "float32").holds
    assert row_uniformity([edge], "bfloat16").holds


def test_too_few_tokens_are_no_evidence():
    assert row_uniformity([pit([0.5] * 99, [0] * 99)], "float64") is None
    assert row_uniformity([], "float64") is None

"""Where tokens lie in their server's distribution."""

import math
import random

import pytest
from cells import answer

from fspad_bench.serving.certify.observation import Observation
from fspad_bench.serving.certify.pit import is_raw, transform, transformed

LOGS = {7: math.log(0.5), 3: math.log(0.25), 5: math.log(0.25)}


@pytest.mark.parametrize(
    ("token", "u"), [(7, 0.1), (3, 0.55), (5, 0.8)]
)  # of equal probabilities the smaller id comes first
def test_u_is_the_mass_before_a_token_and_a_part_of_its_own(token, u):
    assert transform(LOGS, token, 0.2) == pytest.approx(u)


def test_a_token_outside_of_the_list_lies_above_its_mass():
    assert transform({7: math.log(0.6)}, 3, 0.5) == pytest.approx(0.8)
    assert transform({7: 0.0}, 3, 0.5) == 1.0


def test_u_of_draws_is_uniform():
    dice = random.Random(0)
    drawn = dice.choices([7, 3, 5], [0.5, 0.25, 0.25], k=4000)
    numbers = [transform(LOGS, token, dice.random()) for token in drawn]
    for edge in (0.25, 0.5, 0.75):
        assert sum(u < edge for u in numbers) / 4000 == pytest.approx(edge, abs=0.03)


def test_u_stands_in_place_of_the_alternatives():
    assert transformed(answer([1, 2]), random.Random(0)) == answer([1, 2])
    reply = answer([1, 2], rival=3)
    kept = transformed(reply, random.Random(0))
    numbers = random.Random(0)
    assert kept.top is None
    u = [transform(top, 1 + i, numbers.random()) for i, top in enumerate(reply.top)]
    assert kept.u == pytest.approx(u, abs=1e-4)


def test_log_probabilities_of_two_temperatures_tell_whether_they_are_raw():
    def at(factor):
        return [Observation((1,), "stop", top=({1: 0.0, 2: -3 * factor, 3: -9 * factor},))]

    assert is_raw(at(1), at(1.02))  # rounding, or another batch
    assert is_raw(at(1), at(1.4))
    assert not is_raw(at(1), at(1.6))
    assert not is_raw(at(1), at(1.98))
    assert is_raw([answer([1])], [answer([1])])


def test_prompts_tell_together_whether_log_probabilities_are_raw():
    """One prompt with a near tie is all noise."""
    tie = Observation((1,), "stop", top=({1: -0.7, 2: -0.701},))
    noisy = Observation((1,), "stop", top=({1: -0.7, 2: -0.703},))
    clear = Observation((1,), "stop", top=({1: -0.1, 2: -8.0},))
    assert is_raw([tie, clear], [noisy, clear])

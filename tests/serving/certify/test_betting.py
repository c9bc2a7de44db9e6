"""Tests by betting: their error under any null, their power, and the shift that they state."""

import math
from collections import Counter

import numpy as np
import pytest

from fspad_bench.serving.certify.betting import (
    Chains,
    Group,
    TwoSamples,
    by_context,
    detectable,
    effective_outcomes,
)

ALPHA = 0.05


def draws(rng, p, n):
    return [("c", int(x)) for x in rng.choice(len(p), size=n, p=p)]


def highest(rng, p, q, rounds, each):
    test = TwoSamples()
    for _ in range(rounds):
        test.round(draws(rng, p, each), draws(rng, q, each))
    return test


def test_the_error_is_below_alpha_over_all_looks():
    """Of 80 right pairs 4 may be refused, whatever their distribution."""
    rng = np.random.default_rng(0)
    for p in ([0.5, 0.5], [0.9, 0.05, 0.05]):
        refused = sum(highest(rng, p, p, 12, 4).rejects(ALPHA) for _ in range(40))
        assert refused <= 2


def test_a_lean_is_that_of_the_counts_before():
    test = TwoSamples()
    test.round([("c", "x"), ("c", "x")], [("c", "y"), ("c", "y")])
    assert test.log == 0.0  # nothing was known
    test.round([("c", "x")], [("c", "y")])
    lean = 2 / (2 + 2 * np.array([1.0, 4, 16, 64, 256]))
    assert test.logs == pytest.approx(2 * np.log1p(lean))
    assert test.log == pytest.approx(math.log(np.mean((1 + lean) ** 2)))


def test_a_draw_without_a_partner_is_not_bet_on_but_learned_from():
    test = TwoSamples()
    test.round([("c", "x"), ("c", "x"), ("c", "x")], [("c", "y")])
    assert test.served["c"] == Counter(x=3)
    assert test.pairs["c"] == 0  # nothing was known before
    test.round([("c", "x"), ("c", "x")], [("c", "y")])
    assert test.pairs["c"] == 1


def test_the_highest_wealth_counts():
    test = TwoSamples()
    for _ in range(20):
        test.round([("c", "x")] * 4, [("c", "y")] * 4)
    reached = test.highest
    for _ in range(20):
        test.round([("c", "y")] * 4, [("c", "x")] * 4)
    assert test.log < reached == test.highest
    assert test.rejects(1e-6)


def test_the_stated_shift_is_seen_with_the_stated_power():
    """90% of 30 are 27; the statement is an approximation."""
    rng = np.random.default_rng(1)
    shift = detectable([Group(800, 2)], ALPHA)
    assert 0.05 < shift < 0.25
    p = [0.5 + shift / 2, 0.5 - shift / 2]
    seen = sum(highest(rng, p, p[::-1], 25, 32).rejects(ALPHA) for _ in range(30))
    assert seen >= 24


def test_more_draws_show_smaller_shifts_and_more_contexts_share_them():
    assert detectable([Group(8000, 2)], ALPHA) < detectable([Group(800, 2)], ALPHA) / 2
    assert detectable([Group(100, 2)] * 8, ALPHA) < detectable([Group(100, 2)], ALPHA)
    assert detectable([], ALPHA) == 1.0
    assert detectable([Group(3, 2)], 1e-6) == 1.0


def chain(rng, turn, n):
    """Return tokens that repeat the one before with probability `turn`."""
    tokens = [0]
    for same in rng.random(n) < turn:
        tokens.append(tokens[-1] if same else 1 - tokens[-1])
    return [[(tokens[i], token) for i, token in enumerate(tokens[1:])]]


def test_chains_see_what_single_tokens_do_not():
    """Both sides have as many zeros as ones; one repeats itself more."""
    rng = np.random.default_rng(2)
    test = Chains(1)
    null = Chains(1)
    for _ in range(10):
        test.round(*([chain(rng, t, 12) for _ in range(4)] for t in (0.7, 0.4)))
        null.round(*([chain(rng, t, 12) for _ in range(4)] for t in (0.5, 0.5)))
    assert test.rejects(1e-4)
    assert not null.rejects(ALPHA)
    assert test.group() == [Group(432, pytest.approx(2, abs=0.01))]


def test_a_first_round_is_not_bet_on():
    """However many draws it has, they reveal nothing yet."""
    many = [("c", "x")] * 10_000
    single = TwoSamples()
    single.round(many, many)
    assert single.groups() == []
    whole = Chains(1)
    whole.round([[many]], [[many]])
    assert (whole.group(), whole.most) == ([], 0)


def test_one_answer_never_costs_everything():
    test = Chains(1)
    test.round([[[("c", 1)] * 50]] * 9, [[[("c", 2)] * 50]] * 9)
    test.round([[[("c", 2)] * 50]], [[[("c", 1)] * 50]])
    assert test.log >= 2 * math.log(0.05) - 1e-9


def test_contexts_and_outcomes():
    assert by_context([("a", 1), ("b", 2), ("a", 3)]) == {"a": [1, 3], "b": [2]}
    assert effective_outcomes(Counter(a=5, b=5)) == pytest.approx(2)
    assert effective_outcomes(Counter(a=5)) == 1

"""Bounds of unchanged decoders: exact where nothing rounds otherwise, honest elsewhere."""

import numpy as np
import pytest
from scipy.stats import binom

from fspad_bench.lossless.bounds import (
    bound_of,
    divergence_chance,
    most_diverging,
    unchanged_runs,
)

STEPS = [[1, 2, 3, 2, 1, 3, 2], [2, 2, 2, 2, 2, 2], [3, 3, 1, 1, 3, 1]]
MEASURED = 38 / 19


def outputs(rng, number, tokens, rate=2.3):
    """Return the steps of outputs that differ in how well they are drafted."""
    steps = []
    for _ in range(number):
        chance = np.clip(rng.normal(rate - 1, 0.3) / 4, 0, 1)
        output = []
        while sum(output) < tokens:
            output.append(int(1 + rng.binomial(4, chance)))
        steps.append(output)
    return steps


def test_in_float64_the_bound_is_what_was_measured():
    bound = bound_of(STEPS, "float64")
    assert bound == (pytest.approx(MEASURED), 2.0, 0.001)


def test_as_many_outputs_may_diverge_as_chance_lets():
    outputs = [[2] * 6] * 12
    chance = 1 - (1 - 1 / 5000) ** 12
    most = most_diverging(outputs, "float32")
    assert binom.sf(most, 12, chance) <= 1e-3 < binom.sf(most - 1, 12, chance)
    assert most == 1
    assert most_diverging(outputs, "float64") == 0
    assert most_diverging(outputs, "bfloat16") == 12


def test_chances_follow_the_precision():
    assert divergence_chance("float32") == 1 / 5000
    assert divergence_chance("float64") < 1e-12
    assert divergence_chance("bfloat16") == 1


def test_nothing_changes_where_nothing_diverges():
    assert set(unchanged_runs(STEPS, 0.0, draws=50)) == {MEASURED}


def test_every_output_goes_its_own_way_where_all_diverge():
    runs = unchanged_runs(outputs(np.random.default_rng(0), 30, 200), 1.0, draws=500)
    measured = unchanged_runs(outputs(np.random.default_rng(0), 30, 200), 0.0, draws=1)[0]
    assert np.mean(runs) == pytest.approx(measured, rel=0.03)
    assert 0.01 < np.std(runs) < 0.1


def test_an_unchanged_decoder_rarely_falls_short_and_a_loss_is_found():
    """Runs of the same text, of which each token diverges with the chance of float32."""
    steps = outputs(np.random.default_rng(1), 16, 24)
    bound = bound_of(steps, "float32")
    assert bound.finds < 0.1
    again = unchanged_runs(steps, divergence_chance("float32"), seed=7)
    assert np.mean(again < bound.least) <= 1.5e-3
    assert np.mean(again - bound.finds < bound.least) >= 0.9


def test_trees_that_the_machine_sizes_have_a_wider_bound():
    assert bound_of(STEPS, "float64", is_free=True).least < bound_of(STEPS, "float64").least


def test_a_run_without_steps_has_no_bound():
    with pytest.raises(ValueError, match="no output has a step"):
        bound_of([[]], "float64")

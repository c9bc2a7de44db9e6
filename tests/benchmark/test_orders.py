"""Whether the order of decoders in speed is told from noise."""

from dataclasses import replace

import numpy as np
import pytest
from by_hand import FAST, VANILLA, records, row_of, sample

from fspad_bench.benchmark.orders import prompts_to_tell
from fspad_bench.benchmark.render import render
from fspad_bench.benchmark.rows import rows
from fspad_bench.benchmark.stats import Interval

OTHER = replace(FAST, decoder="other", options={})
KEYS = (VANILLA, FAST, OTHER)


def table(gain, *, noise=0.02, spread=0.3, prompts=30, seed=3):
    """Return the rows of two decoders of about twice vanilla's speed, on prompts that differ
    widely; `fast` is `gain` times as fast as `other` but for noise.
    """
    rng = np.random.default_rng(seed)
    hard = rng.lognormal(0, spread, prompts)
    turns = rng.lognormal(0, noise, (3, prompts))
    seconds = (turns[0], hard / 2 / gain * turns[1], hard / 2 * turns[2])
    samples = [
        sample(key, str(i), 10, float(time))
        for key, times in zip(KEYS, seconds, strict=True)
        for i, time in enumerate(times)
    ]
    return rows(records(*samples, keys=KEYS))


def test_decoders_that_were_never_interleaved_have_no_order():
    """As in the cells of a sweep, each with a vanilla of its own."""
    samples = [
        sample(key, str(i), 10, seconds, round_=f"{cell}{i}")
        for cell, own in (("a", FAST), ("b", OTHER))
        for key, seconds in ((VANILLA, 1.0), (own, 0.5 if cell == "a" else 0.6))
        for i in range(6)
    ]
    made = rows(records(*samples, keys=KEYS))
    assert row_of(made, "fast")["speedup"] > row_of(made, "other")["speedup"]
    assert row_of(made, "fast")["next_slower"] is None
    assert "tell no order" not in render(made, "text")


def order_notes(made):
    return [line for line in render(made, "text").splitlines() if "the order of" in line]


def test_decoders_are_compared_over_the_same_prompts():
    """Their intervals against vanilla overlap widely; prompt by prompt the order is plain."""
    made = table(1.05)
    fast, other = row_of(made, "fast"), row_of(made, "other")
    assert fast["speedup_low"] < other["speedup"] < fast["speedup"] < other["speedup_high"]
    assert fast["next_slower"] == {"decoder": "other", "options": {}}
    assert 1 < fast["speedup_over_next_low"] < fast["speedup_over_next"] < 1.1
    assert fast["prompts_to_tell"] is None
    assert order_notes(made) == []
    for row in (other, row_of(made, "vanilla")):
        assert row["next_slower"] is row["speedup_over_next"] is None


def test_an_order_that_noise_could_make_is_told_in_one_note():
    made = table(1.0, noise=0.05)
    faster = max(made, key=lambda row: row["speedup"])
    slower = faster["next_slower"]["decoder"]
    ratio = [faster[f"speedup_over_next{end}"] for end in ("", "_low", "_high")]
    assert ratio[1] <= 1 < ratio[0] < ratio[2]
    (note,) = order_notes(made)
    assert note == (
        f"the order of {faster['decoder']} and {slower} on gsm8k@bundled, greedy is not told from "
        f"noise: {ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]; about "
        f"{faster['prompts_to_tell']} prompts would tell"
    )


def test_as_many_prompts_as_it_says_do_tell():
    """A gain of 2% at a noise of 4% a turn, of which 20 prompts tell less than half."""
    half = 1.96 * 0.04 * (2 / 20) ** 0.5
    needed = prompts_to_tell(Interval(1.02, 1.02 * np.exp(-half), 1.02 * np.exp(half)), 20)
    assert needed == 64
    made = [table(1.02, noise=0.04, spread=0.0, prompts=needed, seed=seed) for seed in range(10)]
    lows = [row_of(rows, "fast")["speedup_over_next_low"] for rows in made]
    assert 6 <= sum(low is not None and low > 1 for low in lows) <= 10


@pytest.mark.parametrize(
    ("interval", "prompts", "needed"),
    [
        (Interval(1.02, 1.01, 1.03), 40, None),  # told
        (Interval(1.0, 0.9, 1.1), 40, None),  # no number would
        (Interval(1.0001, 0.8, 1.2), 40, None),  # none that could be run
        (Interval(1.02, float("nan"), float("nan")), 4, None),
        # half a width of 0.04 in logarithms is twice the effect of 0.02: 40 * (2 * 2.8 / 1.96)^2
        (Interval(np.exp(0.02), np.exp(-0.02), np.exp(0.06)), 40, 330),
        (Interval(np.exp(0.02), np.exp(-0.001), np.exp(0.041)), 10, 23),
    ],
)
def test_prompts_to_tell_by_hand(interval, prompts, needed):
    assert prompts_to_tell(interval, prompts) == needed


def test_few_prompts_tell_no_order():
    made = table(1.5, prompts=4)
    assert order_notes(made) == []
    note = "fewer than 5 prompts tell no order of decoders in speed"
    assert note in render(made, "text").splitlines()


def test_three_decoders_are_compared_with_their_neighbours():
    third = replace(FAST, options={"depth": 9})
    keys = (VANILLA, FAST, OTHER, third)
    seconds = (1.0, 0.3, 0.5, 0.4)
    samples = [
        sample(key, str(i), 10, time)
        for key, time in zip(keys, seconds, strict=True)
        for i in range(6)
    ]
    made = rows(records(*samples, keys=keys))
    over = [(row["options"], row["next_slower"], row["speedup_over_next"]) for row in made]
    assert over == [
        ({}, None, None),
        ({"depth": 3}, {"decoder": "fast", "options": {"depth": 9}}, pytest.approx(4 / 3)),
        ({}, None, None),
        ({"depth": 9}, {"decoder": "other", "options": {}}, pytest.approx(5 / 4)),
    ]

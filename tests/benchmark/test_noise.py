"""The noise floor, and whether intervals cover the truth in simulated runs."""

from dataclasses import replace

import numpy as np
import pytest
from by_hand import FAST, KEY, VANILLA, records, row_of, sample, written_record

from fspad_bench.benchmark.noise import floor
from fspad_bench.benchmark.record import Records, Sample
from fspad_bench.benchmark.render import render
from fspad_bench.benchmark.rows import rows
from fspad_bench.benchmark.speeds import pairs_of, speedup
from fspad_bench.benchmark.stats import Interval

PROMPTS = 100
DRIFT = 0.02  # of the machine from prompt to prompt: a fifth over a run


def machine(rng, n):
    """Return the slowdown of a machine that drifts, prompt by prompt."""
    return np.exp(np.cumsum(rng.normal(0, DRIFT, n)))


def run(seed, *, gain=1.0, spread=0.0, noise=0.02, n=PROMPTS, interleaved=True):
    """Return simulated generations of vanilla, vanilla's second turn, and a decoder.

    The speedup of each prompt is `gain` times a factor of its own; the turns of a prompt share the
    state of the machine where they are interleaved, and each turn has its own noise.
    """
    rng = np.random.default_rng(seed)
    length = rng.integers(20, 200, n)
    own = rng.lognormal(0, spread, n)
    state = machine(rng, n)
    other_state = state if interleaved else machine(rng, n)
    turns = rng.lognormal(0, noise, (3, n))
    work = 0.01 * (length - 1)
    vanilla = work * state * turns[0]
    again = work * state * turns[1]
    fast = work * other_state * turns[2] * own / gain
    return [
        generations(key, length, times)
        for key, times in ((VANILLA, vanilla), (VANILLA, again), (FAST, fast))
    ]


def generations(key, length, times):
    name = key.hash  # takes time
    return [
        Sample(name, str(i), 0, "r", tokens=[1] * tokens, decode_seconds=float(time))
        for i, (tokens, time) in enumerate(zip(length, times, strict=True))
    ]


def truth(gain, spread):
    """Return vanilla's expected seconds over the decoder's: work and a prompt's factor are
    independent.
    """
    return gain / np.exp(spread**2 / 2)


@pytest.mark.parametrize(("gain", "spread"), [(0.99, 0.0), (1.7, 0.15)])
def test_the_interval_covers_the_truth_in_95_of_100_runs(gain, spread):
    """The drift is shared by the turns of a prompt, so that interleaving cancels it."""
    covered = 0
    for seed in range(100):
        vanilla, _, fast = run(seed, gain=gain, spread=spread)
        interval = speedup(pairs_of(vanilla, fast), prefill=False)
        covered += interval.low <= truth(gain, spread) <= interval.high
    assert 92 <= covered <= 98


def test_turns_that_are_not_interleaved_would_not_cover_it():
    """The decoder's times are of other hours: what the pairing is for."""
    covered = 0
    for seed in range(20):
        vanilla, _, fast = run(seed, interleaved=False)
        interval = speedup(pairs_of(vanilla, fast), prefill=False)
        covered += interval.low <= 1 <= interval.high
    assert covered < 8


def table(seed=1, **how):
    vanilla, again, fast = run(seed, **how)
    made = records(*vanilla, *fast)
    made.aa = again
    return rows(made)


def test_a_double_that_is_slower_by_one_percent_is_told_where_noise_is_small():
    row = row_of(table(gain=0.99, noise=0.005))
    assert row["noise_floor"] < 0.004
    assert row["speedup"] == pytest.approx(0.99, abs=0.003)
    assert row["told_from_noise"] is True


def test_a_double_that_is_slower_by_one_percent_is_not_told_where_noise_is_large():
    doubles = table(gain=0.99, noise=0.05)
    row = row_of(doubles)
    assert row["noise_floor"] > 0.008
    assert row["told_from_noise"] is False
    note = "fast on gsm8k@bundled, greedy: its speedup is not told from noise"
    assert note in render(doubles, "text").splitlines()


def test_vanilla_against_itself_is_rarely_told_from_noise():
    """Of 20 doubles that are vanilla, one would exceed an interval alone."""
    told = [row_of(table(seed, n=20))["told_from_noise"] for seed in range(20)]
    assert sum(told) == 0


def test_the_floor_is_the_farthest_end_of_the_interval():
    assert floor(Interval(1.003, 0.992, 1.014)) == pytest.approx(0.014)
    assert floor(Interval(0.99, 0.97, 1.01)) == pytest.approx(0.03)
    assert floor(Interval(1.0, float("nan"), float("nan"))) is None


def by_hand(again=0.9, prompts=6, **more):
    """Return the rows of `prompts` prompts: vanilla 0.9 s for 9 tokens, its second turn `again`."""
    every = [
        [sample(key, str(i), 10, seconds) for i in range(prompts)]
        for key, seconds in ((VANILLA, 0.9), (FAST, 0.45), (VANILLA, again))
    ]
    made = records(*every[0], *every[1])
    made.aa = [replace(s, **more) for s in every[2]]
    return rows(made)


def test_a_row_has_the_noise_of_the_rounds_that_it_took_part_in():
    """Two cells of a sweep: the noise of one says nothing of the other."""
    other = replace(FAST, decoder="other")
    samples = []
    aa = []
    for cell, own, again in (("a", FAST, 0.9), ("b", other, 1.8)):
        for i in range(6):
            samples += [
                sample(key, str(i), 10, seconds, round_=f"{cell}{i}")
                for key, seconds in ((VANILLA, 0.9), (own, 0.45))
            ]
            aa.append(sample(VANILLA, str(i), 10, again, round_=f"{cell}{i}"))
    made = records(*samples, keys=(VANILLA, FAST, other))
    made.aa = aa
    table = rows(made)
    assert row_of(table)["aa"] == pytest.approx(1)
    assert row_of(table, "other")["aa"] == pytest.approx(0.5)


def test_the_aa_figures_by_hand():
    doubles = by_hand(again=0.92)
    for decoder in ("vanilla", "fast"):  # of the setting
        row = row_of(doubles, decoder)
        assert row["aa"] == row["aa_low"] == row["aa_high"] == pytest.approx(0.9 / 0.92)
        assert row["noise_floor"] == pytest.approx(1 - 0.9 / 0.92)
        assert row["aa_divergences"] == 0
    assert row_of(doubles)["told_from_noise"] is True
    assert row_of(doubles, "vanilla")["told_from_noise"] is None
    title = render(doubles, "text").splitlines()[0]
    assert title.endswith(" · noise floor ±2.2% (A/A 0.978 [0.978, 0.978])")


def test_vanillas_second_turn_is_no_row_and_moves_no_figure():
    doubles = by_hand(again=5.0)
    assert [row["decoder"] for row in doubles] == ["vanilla", "fast"]
    assert row_of(doubles)["speedup"] == 2.0
    assert row_of(doubles, "vanilla")["samples"] == 6
    assert row_of(doubles, "vanilla")["tokens_per_second"] == pytest.approx(10.0)


def test_few_prompts_have_no_floor():
    doubles = by_hand(prompts=4)
    row = row_of(doubles)
    assert (row["aa"], row["aa_low"], row["noise_floor"], row["told_from_noise"]) == (
        1.0,
        *[None] * 3,
    )
    assert render(doubles, "text").splitlines()[0].endswith(" · A/A 1.000 [±?]")


def test_a_record_without_an_aa_run_is_as_it_was():
    vanilla, _, fast = run(1)
    doubles = rows(records(*vanilla, *fast))
    row = row_of(doubles)
    names = ("aa", "aa_low", "aa_high", "aa_divergences", "noise_floor", "told_from_noise")
    assert [row[name] for name in names] == [None] * 6
    assert "A/A" not in render(doubles, "text")


def test_vanilla_that_differs_from_itself_is_told():
    doubles = by_hand(tokens=[7] * 10)
    assert row_of(doubles)["aa_divergences"] == 6
    assert row_of(doubles)["verdict"] == "exact"
    note = "gsm8k@bundled, greedy: 6 outputs of vanilla differ when it is asked twice"
    assert note in render(doubles, "text").splitlines()


def test_a_second_turn_that_failed_has_no_figure():
    row = row_of(by_hand(error="ValueError: no", tokens=[]))
    assert (row["aa"], row["errors"]) == (None, 0)


def test_a_second_turn_survives_its_record(path):
    again = sample(KEY, "a", 10, 1.0)
    written = written_record(path)
    written.add(again, kind="aa")
    back = Records.read(path)
    assert (back.aa, back.samples) == ([again], [])

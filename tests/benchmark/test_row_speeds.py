"""Speeds of rows: Spec-Bench's own figure, and engines that go beyond the limit."""

from dataclasses import replace
from pathlib import Path

import pytest
from by_hand import FAST, VANILLA, records, row_of, sample

from fspad_bench.benchmark.record import Records
from fspad_bench.benchmark.rows import rows

ROOT = Path(__file__).parents[2]


def spec_bench(method, baseline):
    """Return the speedup of Spec-Bench's script over questions of turns (tokens, seconds)."""

    def speed(questions):
        rates = [sum(n for n, _ in turns) / sum(s for _, s in turns) for turns in questions]
        return sum(rates) / len(rates)

    return speed(method) / speed(baseline)


def test_spec_benchs_speedup_sums_the_turns_of_a_question_first():
    """A short turn that is fast weighs by its time, not as a question of its own."""
    vanilla = [[(10, 1.0), (100, 10.0)], [(50, 5.0), (50, 5.0)]]
    fast = [[(10, 0.1), (100, 8.0)], [(50, 4.0), (50, 2.5)]]
    samples = [
        sample(key, str(number), tokens, seconds, prefill=0.0, turn=turn)
        for key, questions in ((VANILLA, vanilla), (FAST, fast))
        for number, turns in enumerate(questions)
        for turn, (tokens, seconds) in enumerate(turns)
    ]
    row = row_of(rows(records(*samples)))
    assert row["speedup_spec_bench"] == pytest.approx((110 / 8.1 + 100 / 6.5) / 2 / 10)
    assert row["speedup_spec_bench"] == pytest.approx(spec_bench(fast, vanilla))
    assert row["speedup_spec_bench"] < 2 < (100 + 12.5 + 12.5 + 20) / 40  # a mean over turns


def test_the_shipped_record_has_spec_benchs_speedup_over_questions():
    """Prompt lookup on mt_bench, 40 questions of two turns: a mean over turns would be 1.703."""
    (path,) = (ROOT / "results" / "bfloat16-all").glob("*.jsonl")
    every = Records.read(path)
    keys = {
        name: key
        for name, key in every.keys.items()
        if (key.task, key.temperature) == ("mt_bench", 0.0)
        and key.decoder in ("vanilla", "prompt_lookup")
    }
    kept = Records(keys=keys, samples=[s for s in every.samples if s.key in keys])
    row = row_of(rows(kept), "prompt_lookup")
    assert row["speedup_spec_bench"] == pytest.approx(1.629, abs=5e-4)
    assert row["speedup"] == pytest.approx(1.667, abs=5e-4)


def test_tokens_beyond_the_limit_count_in_speeds_alone():
    """A foreign engine's seconds made them too, and the benchmark has confirmed them."""
    samples = [sample(VANILLA, "a", 10, 1.0), sample(FAST, "a", 10, 0.6, overshoot=2)]
    samples = [replace(s, prefill_seconds=0.0) for s in samples]
    row = row_of(rows(records(*samples)))
    assert row["speedup_end_to_end"] == pytest.approx(2.0)
    assert row["speedup"] == pytest.approx((1.0 / 9) / (0.6 / 11))  # without the prefill's
    assert (row["tokens"], row["verdict"]) == (10, "exact")
    assert row["tokens_per_second"] == pytest.approx((9 + 2) / 0.6)  # without the prefill's


def test_a_generation_without_tokens_has_no_speed():
    """No decoder of ours returns one; a record of another version may hold it."""
    samples = [sample(VANILLA, "a", 10, 1.0), sample(FAST, "a", [], 0.5)]
    row = row_of(rows(records(*samples)))
    assert row["speedup"] is row["speedup_end_to_end"] is row["speedup_spec_bench"] is None


@pytest.mark.parametrize("told", [{"forwards": 5}, {"committed": [1] * 5}, {}])
def test_tokens_a_step_are_unknown_unless_steps_and_forwards_are_told(told):
    row = row_of(rows(records(sample(FAST, "a", 6, 1.0, **told))))
    assert row["tokens_per_step"] is None

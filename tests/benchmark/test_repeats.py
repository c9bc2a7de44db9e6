"""Repeats of a run: their record, how they resume, and the spread of their figures."""

from dataclasses import replace
from statistics import stdev

import pytest
from by_hand import FAST, VANILLA, records, row_of, sample
from runs import LOOKUP, ME, Learner, foreign, plan_of, run, unfinished, write

from fspad_bench.benchmark.record import Audit, Pit
from fspad_bench.benchmark.render import render
from fspad_bench.benchmark.rows import rows
from fspad_bench.util.errors import BenchError

in_runs = pytest.mark.usefixtures("one_target")


def repeated(seconds, *, key=FAST, prompts=5, tokens=10, **more):
    """Return generations of vanilla in 0.9 s and of a decoder in `seconds`, a number a repeat."""
    return [
        sample(which, str(i), tokens, time, repeat=repeat, round_=f"{i} {repeat}", **more)
        for repeat, own in enumerate(seconds)
        for i in range(prompts)
        for which, time in ((replace(VANILLA, temperature=key.temperature), 0.9), (key, own))
    ]


def test_the_spread_of_repeats_by_hand():
    """9 decoded tokens in 0.45, 0.5 and 0.4 s are 20, 18 and 22.5 tokens/s."""
    table = rows(records(*repeated([0.45, 0.5, 0.4], committed=[4, 5], forwards=2)))
    row = row_of(table)
    assert (row["repeats"], row["samples"], row["outputs"]) == (3, 5, 15)
    assert row["tokens_per_second_cv"] == pytest.approx(stdev([20, 18, 22.5]) / (60.5 / 3))
    assert row["speedup_cv"] == pytest.approx(stdev([2, 1.8, 2.25]) / (6.05 / 3))
    assert row["tokens_per_step_cv"] == 0
    assert row_of(table, "vanilla")["tokens_per_second_cv"] == pytest.approx(0)
    assert row["speedup"] == pytest.approx(3 * 0.9 / 1.35)
    text = render(table, "text")
    assert " · greedy · 3 repeats" in text.splitlines()[0]
    (line,) = [line for line in text.splitlines() if line.startswith("fast ")]
    assert line.split()[-3:] == ["11.2%", "0.0%", "-"]


def test_repeats_of_a_prompt_are_drawn_together():
    """They differ widely and the prompts do not: the choice of prompts decides nothing."""
    row = row_of(rows(records(*repeated([0.3, 0.9], prompts=6))))
    assert row["speedup_low"] == row["speedup_high"] == pytest.approx(row["speedup"])


def test_one_run_has_no_spread():
    table = rows(records(*repeated([0.45])))
    names = ("tokens_per_second_cv", "tokens_per_step_cv", "speedup_cv")
    assert [row_of(table)[name] for name in names] == [None] * 3
    assert row_of(table)["repeats"] == 1
    assert "CV" not in render(table, "text")


def test_only_outputs_of_every_repeat_count_in_the_spread():
    samples = [s for s in repeated([0.45, 0.9]) if (s.sample, s.repeat) != ("0", 1)]
    samples[0] = replace(samples[0], decode_seconds=90.0)
    samples[1] = replace(samples[1], decode_seconds=90.0)
    row = row_of(rows(records(*samples)))
    assert row["tokens_per_second_cv"] == pytest.approx(stdev([20, 10]) / 15)


def test_an_output_that_is_not_the_same_in_each_repeat_is_a_finding():
    samples = repeated([0.45, 0.45])
    samples[-1] = replace(samples[-1], tokens=[7] * 10)
    table = rows(records(*samples))
    (finding,) = row_of(table)["findings"]
    assert finding["guard"] == "repeats"
    assert finding["text"].startswith("1 outputs are not the same each time")
    assert row_of(table, "vanilla")["findings"] == []
    assert f"fast on gsm8k@bundled, greedy: {finding['text']}" in render(table, "text")


def near_ties(repeats, regret=1e-6):
    """Return the row in float32 of one near tie of one prompt, in each of `repeats`."""
    vanilla = replace(VANILLA, dtype="float32")
    fast = replace(FAST, dtype="float32")
    samples = []
    for repeat in range(repeats):
        for name in "ab":
            tokens = [*range(9), 99] if name == "a" else 10
            place = {"round_": str(repeat), "repeat": repeat}
            samples.append(sample(vanilla, name, 10, 1.0, **place))
            samples.append(sample(fast, name, tokens, 1.0, **place))
    audits = [
        Audit(fast.hash, "a", 0, str(repeat), 9, [0.0] * 9 + [regret], [0.0] * 10, 1e-6)
        for repeat in range(repeats)
    ]
    return row_of(rows(records(*samples, keys=(vanilla, fast), audits=audits)))


def test_a_near_tie_is_judged_once_however_often_it_is_repeated():
    """One output may differ in 5,000 tokens of float32, or one in all."""
    assert near_ties(1)["verdict"] == near_ties(3)["verdict"] == "tie"
    assert near_ties(3)["divergences"] == 3
    assert near_ties(3, regret=1.0)["verdict"] == "lossy"


def test_the_evidence_of_a_distribution_counts_each_output_once():
    """Repeats have the same noise: their tokens are no new evidence."""
    other = replace(FAST, verification="rejection", temperature=1.0)
    samples = repeated([0.45, 0.45], key=other)
    made = records(*samples, keys=(replace(VANILLA, temperature=1.0), other))
    made.pits += [
        Pit(s.key, s.sample, 0, s.round, [0.5] * 10, [0] * 10)
        for s in samples
        if s.key == other.hash
    ]
    assert row_of(rows(made))["pit_tokens"] == 50


@in_runs
def test_every_repeat_is_the_whole_set_with_the_same_tokens(tmp_path, calls):
    data = write(tmp_path, ["One?", "Two?"])
    plan = plan_of(data, LOOKUP, temperatures=[0.0, 1.0], repeats=3, aa=True)
    _, records = run(plan, tmp_path / "out")
    order = [(s.repeat, s.sample) for s in records.samples]
    assert order == sorted(order)
    assert len(records.samples) == 3 * 2 * 2 * 2
    assert len(records.aa) == 3 * 2 * 2
    assert len({s.round for s in records.samples}) == 3 * 2 * 2
    measured = [call for call in calls if call.stream != "warm-up"]
    assert len(measured) == 3 * 2 * 2 * (2 + 1)
    assert len({call.stream for call in measured}) == 2
    for row in rows(records):
        assert (row["repeats"], row["verdict"], row["findings"]) == (3, "exact", [])
        assert (row["tokens_per_step_cv"], row["aa_divergences"]) == (0, 0)
        assert row["aa"] > 0


@in_runs
def test_an_interrupted_repeat_continues_where_it_stopped(tmp_path, monkeypatch, calls):
    data = write(tmp_path, ["One?", "Two?"])
    plan = plan_of(data, LOOKUP, repeats=2, aa=True)
    unfinished(plan, tmp_path / "out", monkeypatch)
    (path,) = (tmp_path / "out").glob("*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-3]))  # the last unit of the last repeat
    calls.clear()
    again, records = run(plan, tmp_path / "out")
    assert again == path
    assert len([call for call in calls if call.stream != "warm-up"]) == 3
    assert [(row["repeats"], row["outputs"]) for row in rows(records)] == [(2, 4)] * 2


@in_runs
def test_a_decoder_that_learns_across_prompts_is_not_repeated(data, tmp_path):
    assert Learner.scope == "run"
    with pytest.raises(BenchError, match="Learner learns across prompts") as caught:
        run(plan_of(data, f"{ME}:Learner", repeats=2), tmp_path / "out")
    assert "leave --repeats out" in caught.value.hint
    assert not (tmp_path / "out").exists()


@in_runs
def test_a_decoder_that_learns_across_prompts_has_one_temperature(data, tmp_path):
    """It would draft a prompt's next answer from the one before."""
    with pytest.raises(BenchError, match="the next temperature would show it each of them again"):
        run(plan_of(data, f"{ME}:Learner", temperatures=[0.0, 1.0]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@in_runs
def test_vanilla_takes_its_second_turn_among_the_others(data, tmp_path, calls, counted_rounds):
    run(plan_of(data, LOOKUP, aa=True), tmp_path / "out")
    labels = [call.label for call in calls if call.stream != "warm-up"]
    units = [tuple(labels[i : i + 3]) for i in range(0, len(labels), 3)]
    assert {tuple(sorted(unit)) for unit in units} == {(LOOKUP, "vanilla", "vanilla")}
    assert len(set(units)) > 1


@in_runs
def test_vanillas_second_turn_does_not_count_for_a_foreign_engine(data, tmp_path):
    records, row = foreign(data, tmp_path / "out", "none", aa=True)
    assert (len(records.aa), row["samples"], row["verdict"]) == (5, 5, "exact")
    assert row["aa"] > 0
    assert row["told_from_noise"] is None

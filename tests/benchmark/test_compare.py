"""Comparisons of records made by hand: what they find, and what they do not."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from by_hand import FAST, VANILLA, records, sample
from synthetic import synthetic

from fspad_bench.benchmark import matching
from fspad_bench.benchmark import rows as rows_module
from fspad_bench.benchmark.changes import STEPS, Line
from fspad_bench.benchmark.compare import compare, judged
from fspad_bench.benchmark.compare_report import render
from fspad_bench.benchmark.matching import Match, Side
from fspad_bench.benchmark.paired import change, count_p
from fspad_bench.benchmark.recorded_costs import origin_of_key
from fspad_bench.benchmark.speeds import NO_INTERVAL, intervals
from fspad_bench.util.errors import BenchError

RUNS = 200


def compared(a, b):
    return compare(Side([a]), Side([b]))


def states(comparison, figure="speedup"):
    """(decoder, task or None for the mean of tasks) -> state of a figure."""
    return {
        (line.match.a["decoder"], line.match.a["task"] if line.tasks == 1 else None): line.state
        for line in comparison.lines
        if line.figure == figure
    }


@pytest.fixture
def without_intervals(monkeypatch):
    """Leave out the intervals of rows, which a comparison does not read."""

    def quick(samples, pairs, *, hidden):
        names = ("tokens_per_step", "speedup", "speedup_end_to_end")
        return dict.fromkeys(names, NO_INTERVAL._replace(value=1.0))

    assert intervals([], [], hidden=False).keys() == quick([], [], hidden=False).keys()
    monkeypatch.setattr(rows_module, "intervals", quick)


@pytest.mark.parametrize("seed", range(3))
def test_a_drafter_that_became_slower_by_a_tenth_is_found(seed, without_intervals):
    comparison = compared(synthetic(seed), synthetic(seed + 1000, slower=1.1))
    assert comparison.worse
    found = states(comparison)
    assert [found[name, None] for name in ("fast", "faster")] == ["worse", "worse"]
    assert set(states(comparison, STEPS).values()) == {"same"}


def test_a_drafter_that_became_faster_is_better_and_no_failure(without_intervals):
    comparison = compared(synthetic(1, slower=1.1), synthetic(2))
    assert states(comparison)["fast", None] == "better"
    assert not comparison.worse


def test_ten_unchanged_runs_differ_in_nothing(without_intervals):
    first = synthetic(0)
    for seed in range(1, 11):
        assert compared(first, synthetic(seed)).beyond_noise == []


def test_false_alarms_are_as_rare_as_promised():
    """Of comparisons, not of figures: each looks at eight, of ten prompts."""
    rng = np.random.default_rng(11)
    lengths = np.random.default_rng(5).lognormal(0, 0.5, 10)[:, None]
    alarms = 0
    for _ in range(RUNS):
        lines = []
        for _ in range(8):
            a, b = lengths * rng.lognormal(0, 0.1, (2, 10, 2))
            tested = change(a, b, (1, -1))
            lines.append(Line(Match({}, {}), "speedup", 1.0, 1.0, change=tested, p=tested.p))
        alarms += any(line.state != "same" for line in judged(lines))
    assert alarms <= RUNS * 0.05 + 3 * math.sqrt(RUNS * 0.05 * 0.95)


def test_a_loss_of_tokens_per_step_is_found(without_intervals):
    comparison = compared(synthetic(1), synthetic(2, loss=0.1))
    assert set(states(comparison, STEPS).values()) == {"worse"}


def test_the_hour_does_not_count(without_intervals):
    """A machine that is half as fast slows vanilla too."""
    slow = synthetic(2)
    halved = [replace(s, decode_seconds=2 * s.decode_seconds) for s in slow.samples]
    slow.samples[:] = halved
    assert compared(synthetic(1), slow).beyond_noise == []


def test_a_change_within_the_noise_of_vanilla_against_itself_is_none():
    """A copy of vanilla reads 1.2 on each side by noise, so a slow-down of 1.3 is none."""
    copies = ("vanilla@again",)
    a = synthetic(1, copies=copies, noise=0.0, bursts=0.0)
    b = synthetic(2, copies=copies, noise=0.0, bursts=0.0, slower=1.3)
    for side in (a, b):
        copy = {name for name, key in side.keys.items() if key.decoder in copies}
        side.samples[:] = [
            replace(s, decode_seconds=s.decode_seconds / 1.2) if s.key in copy else s
            for s in side.samples
        ]
    comparison = compared(a, b)
    assert not comparison.worse
    floors = [line.floor for line in comparison.lines if line.figure == "speedup"]
    assert floors == pytest.approx([2 * math.log(1.2)] * len(floors), abs=0.05)
    assert "A/A floor" in render(comparison, "text")
    assert compared(a, synthetic(2, copies=copies, noise=0.0, bursts=0.0, slower=1.6)).worse


def test_rows_that_hold_an_aa_ratio_give_the_floor(monkeypatch):
    real = matching.rows
    monkeypatch.setattr(matching, "rows", lambda r: [row | {"aa": 0.9} for row in real(r)])
    size = {"prompts": 8, "tasks": ("nq",)}
    lines = compared(synthetic(1, **size), synthetic(2, **size)).lines
    floors = {line.floor for line in lines if line.figure == "speedup"}
    assert floors == {2 * abs(math.log(0.9))}


# matching


def test_what_else_differs_is_said_first(without_intervals):
    b = synthetic(2, source_sha256="ff" * 32, torch="2.14.0")
    text = render(compared(synthetic(1), b), "text")
    lines = text.splitlines()
    assert lines[0] == "what differs between A and B:"
    assert lines[1:3] == ["  source_sha256: 01010101 -> ffffffff", "  torch: 2.13.0 -> 2.14.0"]


def test_only_prompts_of_both_sides_count(without_intervals):
    a = synthetic(1, prompts=20, tasks=("nq",))
    b = synthetic(2, prompts=20, tasks=("nq",))
    b.samples[:] = [s for s in b.samples if s.sample not in ("nq-0", "nq-1")]
    (line, *_) = [x for x in compared(a, b).lines if x.figure == "speedup"]
    assert line.change.prompts == 18
    assert "18 of 20 prompts in common" in line.note


def test_another_prompt_of_the_same_name_is_not_compared(without_intervals):
    a = synthetic(1, prompts=8, tasks=("nq",))
    b = synthetic(2, prompts=8, tasks=("nq",))
    b.samples[:] = [replace(s, prompt_sha256="other") for s in b.samples]
    assert compared(a, b).tests == 0


def test_rows_of_one_decoder_match_by_their_options():
    deep = replace(FAST, options={"depth": 5, "head_sha256": "aa" * 32})
    flat = replace(FAST, options={"depth": 2, "head_sha256": "aa" * 32})
    retrained = replace(deep, options={"depth": 5, "head_sha256": "bb" * 32})
    a = records(
        *[sample(key, "p", 10, 1.0) for key in (VANILLA, flat, deep)], keys=(VANILLA, flat, deep)
    )
    b = records(
        *[sample(key, "p", 10, 1.0) for key in (VANILLA, retrained)], keys=(VANILLA, retrained)
    )
    comparison = compared(a, b)
    (match,) = {
        id(x.match): x.match for x in comparison.lines if x.match.a["decoder"] == "fast"
    }.values()
    assert match.a["options"]["depth"] == 5
    assert match.differences == {"options.head_sha256": ("aa" * 32, "bb" * 32)}
    assert [row["options"]["depth"] for row in comparison.only_a] == [2]


def test_trees_are_sized_by_the_machine_where_the_row_measured_costs():
    auto, fixed = (replace(FAST, options={"tree": tree}) for tree in ("auto", "fixed"))
    keys = (VANILLA, auto, fixed)
    samples = [sample(key, "a", 10, 1.0, committed=[3] * 3, forwards=3) for key in keys]

    def sized(*origins):
        side = records(*samples, keys=keys)
        side.costs.update({("fast", origin): {"forward": [1.0]} for origin in origins})
        lines = [line for line in compared(side, side).lines if line.figure == STEPS]
        trees = {line.match.a["options"]["tree"]: line.note for line in lines}
        return [tree for tree, note in trees.items() if "trees sized by the machine" in note]

    assert sized() == []
    assert sized(origin_of_key(auto)) == ["auto"]
    assert sized("", origin_of_key(auto)) == ["auto"]
    assert sized("") == ["auto", "fixed"]  # an old record does not say of which


def test_several_records_of_a_side_count_together(without_intervals):
    once = compare(Side([synthetic(1)]), Side([synthetic(2)]))
    often = compare(Side([synthetic(1), synthetic(3)]), Side([synthetic(2), synthetic(4)]))
    errors = [next(x.change.error for x in c.lines if x.figure == "speedup") for c in (once, often)]
    assert errors[1] < errors[0]


def test_two_sides_without_a_common_row_are_refused():
    b = records(
        *[replace(s, key=replace(VANILLA, task="nq").hash) for s in [sample(VANILLA, "a", 9, 1.0)]],
        keys=[replace(VANILLA, task="nq")],
    )
    with pytest.raises(BenchError, match="no row is on both sides: task gsm8k against nq"):
        compared(records(sample(VANILLA, "a", 9, 1.0), keys=[VANILLA]), b)


# verdicts, scores, few prompts


def verdicts(a, b):
    (line,) = [
        x for x in compared(a, b).lines if x.figure == "verdict" and x.match.a["decoder"] == "fast"
    ]
    return line


def test_a_verdict_that_is_lossy_now_is_worse():
    good = records(sample(VANILLA, "a", 10, 1.0), sample(FAST, "a", 10, 1.0))
    bad = records(sample(VANILLA, "a", 10, 1.0), sample(FAST, "a", [*range(9), 99], 1.0))
    line = verdicts(good, bad)
    assert (line.a, line.b, line.state) == ("exact", "unverified", "worse")
    assert line.note == "1 of 1 outputs differ"
    assert verdicts(bad, good).state == "better"


def test_generations_that_fail_now_are_worse():
    good = records(*[sample(k, p, 10, 1.0) for k in (VANILLA, FAST) for p in "ab"])
    bad = records(*[sample(k, p, 10, 1.0) for k in (VANILLA, FAST) for p in "ab"])
    bad.samples[-1] = replace(bad.samples[-1], error="out of order")
    line = verdicts(good, bad)
    assert (line.b, line.state) == ("exact, 1 failed", "worse")


def test_scores_of_equal_prompts_stand_beside_each_other():
    samples = [sample(VANILLA, "a", 10, 1.0), sample(FAST, "a", 10, 1.0)]
    a = records(*samples, scores={"fast": {"accuracy": 100.0}})
    b = records(*samples, scores={"fast": {"accuracy": 0.0}})
    for side in (a, b):
        side.scored[FAST.hash] = 1
    line = accuracy(a, b)
    assert (line.a, line.b, line.state, line.p) == (100.0, 0.0, "same", 1.0)


def accuracy(a, b):
    (line,) = [x for x in compared(a, b).lines if x.figure == "accuracy"]
    return line


def test_a_score_is_tested_on_the_prompts_that_have_answers():
    """80% against 40% is p = 0.02 of 20 prompts, and 0.0005 of 40."""
    samples = [sample(k, f"q{i}", 10, 1.0) for k in (VANILLA, FAST) for i in range(40)]
    a = records(*samples, scores={"fast": {"accuracy": 80.0}})
    b = records(*samples, scores={"fast": {"accuracy": 40.0}})
    for side in (a, b):
        side.scored[FAST.hash] = 20
    assert accuracy(a, b).p == pytest.approx(count_p(16, 20, 8, 20))
    b.scored[FAST.hash] = None
    line = accuracy(a, b)
    assert (line.p, line.state) == (None, "untested")


def test_few_prompts_are_not_tested():
    a = records(*[sample(k, p, 10, 1.0) for k in (VANILLA, FAST) for p in "abc"])
    b = records(*[sample(k, p, 10, 1.0 + (k is FAST)) for k in (VANILLA, FAST) for p in "abc"])
    (line,) = [x for x in compared(a, b).lines if x.figure == "speedup"]
    assert (line.a, line.b) == (pytest.approx(1), pytest.approx(0.5))
    assert line.state == "untested"
    assert "fewer than 5 prompts" in line.note


# reports


def test_json_holds_every_line(without_intervals):
    comparison = compared(synthetic(1), synthetic(2, slower=1.2))
    content = json.loads(render(comparison, "json"))
    assert content.keys() == {"differences", "lines", "only_a", "only_b", "tests", "worse"}
    assert content["worse"] is True
    assert len(content["lines"]) == len(comparison.lines)
    line = next(x for x in content["lines"] if x["state"] == "worse")
    assert line["ratio_low"] < line["ratio"] < line["ratio_high"] < 1
    assert line["p"] <= line["p_corrected"] < 0.05


def test_markdown_is_a_table(without_intervals):
    text = render(compared(synthetic(1), synthetic(2)), "markdown")
    assert "| row " in text
    assert "no figure differs beyond noise" in text

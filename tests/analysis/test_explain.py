"""Explanations of whole records: what is compared with what, and what is missing."""

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from by_hand import FAST, VANILLA, sample
from small import DRAFTED, OTHER, PLAIN, SLOW, before_schema_4, small

from fspad_bench.analysis.cases import ALL_TASKS
from fspad_bench.analysis.explain import conclusions, reports
from fspad_bench.analysis.text import render
from fspad_bench.benchmark.record import Records
from fspad_bench.benchmark.recorded_costs import origin_of_key
from fspad_bench.benchmark.rows import rows
from fspad_bench.util.errors import BenchError

RESULTS = Path(__file__).parents[2] / "results"


def of(report, decoder, task=None):
    """The explanation of a decoder, on a task where there are several."""
    (one,) = [
        e
        for e in report.explanations
        if e.case.decoder == decoder and (task is None or e.case.task == task)
    ]
    return one


def test_the_sentence_says_why_more_tokens_are_slower():
    (report,) = reports(small(), ["fast", "slow"])
    (comparison,) = conclusions(report)
    assert comparison.sentence == (
        "fast commits 33% more tokens a step than slow; its draft makes a step 32% longer; "
        "its forwards make a step 23% longer; its verification makes a step 11% longer; "
        "the rest of its work makes a step 11% longer; so it is 33% slower."
    )


def test_the_order_of_the_names_is_that_of_the_comparison():
    (report,) = reports(small(), ["slow", "fast"])
    (comparison,) = report.comparisons
    assert comparison.sentence.startswith("slow commits 25% fewer tokens a step than fast; ")
    assert comparison.sentence.endswith("so it is 50% faster.")


def test_without_names_only_contradictions_are_told():
    (report,) = reports(small())
    assert [(c.decoder, c.reference) for c in report.comparisons] == [("fast", "slow")]
    quick = replace(DRAFTED, decode_seconds=0.39, draft_seconds=0.0)
    (report,) = reports(small(PLAIN, quick, OTHER))
    assert report.comparisons == []


def test_vanilla_may_be_named():
    (report,) = reports(small(), ["fast", "vanilla"])
    (comparison,) = report.comparisons
    assert comparison.chain.speedup == pytest.approx(4 / 3)
    assert comparison.sentence.endswith("so it is 33% faster.")


def test_all_tasks_are_pooled():
    """Two tasks of one generation each: the pool has the steps of both."""
    nq = [replace(key, task="nq") for key in (VANILLA, FAST)]
    plain = replace(PLAIN, key=nq[0].hash, round="s")
    twice = replace(DRAFTED, key=nq[1].hash, round="s", decode_seconds=1.2)
    (report,) = reports(small(PLAIN, DRAFTED, plain, twice, keys=(VANILLA, FAST, *nq)))
    pool = of(report, "fast", ALL_TASKS)
    assert pool.step.steps == 6
    assert pool.chain.speedup == pytest.approx(1.6 / 1.8)
    assert of(report, "fast", "nq@bundled").chain.speedup == pytest.approx(0.8 / 1.2)


def two_tasks(*of_nq):
    """vanilla on two tasks, fast on the first, and generations of further keys on the second."""
    plain = replace(VANILLA, task="nq")
    samples = [PLAIN, DRAFTED, replace(PLAIN, key=plain.hash, round="s")]
    keys = [VANILLA, FAST, plain]
    for key, generation in of_nq:
        keys.append(key)
        samples.append(replace(generation, key=key.hash, round="s"))
    return small(*samples, keys=keys)


def test_a_decoder_that_lacks_a_task_is_not_pooled():
    slow = replace(SLOW, task="nq")
    (report,) = reports(two_tasks((slow, OTHER)), ["fast", "slow"])
    for decoder in ("fast", "slow"):
        whole = of(report, decoder, ALL_TASKS)
        assert whole.gaps == ["not pooled over all tasks: measured on the questions of 1 of 2"]
        assert whole.step is whole.chain is whole.modelled is None
    assert of(report, "vanilla", ALL_TASKS).step.steps == 16
    assert "fast, slow: not pooled over all tasks" in render([report], "text")
    assert report.comparisons == []


def test_generations_that_all_failed_are_no_measurement():
    fast = replace(FAST, task="nq")
    (report,) = reports(two_tasks((fast, replace(DRAFTED, error="out of order"))))
    assert of(report, "fast", ALL_TASKS).gaps[0].endswith("of 1 of 2")


def test_a_task_without_vanilla_has_no_part_in_a_speedup_of_all():
    nq = replace(FAST, task="nq")
    samples = [PLAIN, DRAFTED, replace(DRAFTED, key=nq.hash)]
    (report,) = reports(small(*samples, keys=(VANILLA, FAST, nq)))
    whole = of(report, "fast", ALL_TASKS)
    assert whole.step.steps == 6
    assert whole.chain is None
    assert "vanilla did not answer the same prompts" in whole.gaps[-1]


def test_the_pool_of_a_task_measured_twice_is_of_the_same_questions_for_all():
    """vanilla and slow answered more questions of nq than fast, which is told."""
    more = {"task": "nq", "data_sha256": "cd" * 32}
    few = [(replace(key, task="nq"), s) for key, s in ((VANILLA, PLAIN), (FAST, DRAFTED))]
    many = [
        (replace(key, **more), replace(generation, sample=name))
        for key, generation in ((VANILLA, PLAIN), (SLOW, OTHER))
        for name in "bc"
    ]
    first = [(VANILLA, PLAIN), (FAST, DRAFTED), (SLOW, OTHER)]
    every = [*first, *few, *many]
    samples = [replace(generation, key=key.hash) for key, generation in every]
    (report,) = reports(small(*samples, keys=[key for key, _ in every]))
    assert of(report, "slow", ALL_TASKS).step.steps == 12
    assert of(report, "fast", ALL_TASKS).gaps[0].endswith("of 1 of 2")


def test_temperatures_are_groups_of_their_own():
    warm = [replace(key, temperature=1.0) for key in (VANILLA, FAST)]
    samples = [replace(PLAIN, key=warm[0].hash), replace(DRAFTED, key=warm[1].hash)]
    every = small(PLAIN, DRAFTED, *samples, keys=(VANILLA, FAST, *warm))
    assert [report.group.sampling for report in reports(every)] == ["greedy", "T=1"]


def test_outputs_that_loop_are_left_out_on_request():
    loop = replace(DRAFTED, sample="b", tokens=[7] * 60, decode_seconds=9.0)
    plain = replace(PLAIN, sample="b", tokens=[7] * 60)
    every = small(PLAIN, plain, DRAFTED, loop)
    (report,) = reports(every, without_loops=True)
    assert of(report, "fast").chain.speedup == pytest.approx(4 / 3)
    assert of(report, "vanilla").step.steps == 8
    (report,) = reports(every)
    assert of(report, "fast").chain.speedup == pytest.approx((1.6 / 69) / (9.6 / 69))


class TestGaps:
    def gaps(self, *samples, keys=(VANILLA, FAST), decoder="fast"):
        (report,) = reports(small(*samples, keys=keys))
        return of(report, decoder).gaps

    def test_a_whole_record_has_none(self):
        assert self.gaps(PLAIN, DRAFTED) == []

    def test_an_old_record_says_what_it_lacks(self):
        trees, verification = self.gaps(PLAIN, before_schema_4(DRAFTED))
        assert "which nodes were accepted" in trees
        assert "verification was not timed" in verification

    def test_without_vanilla_there_is_no_speedup(self):
        (gap,) = self.gaps(DRAFTED, keys=(FAST,))
        assert "there is no speedup to explain" in gap

    def test_steps_on_a_device_have_no_parts(self):
        (gap,) = self.gaps(PLAIN, replace(DRAFTED, draft_seconds=None, score_seconds=None))
        assert "parts of a step were not timed" in gap

    def test_a_foreign_engine_has_no_steps(self):
        key = replace(FAST, verification="foreign")
        claiming = replace(DRAFTED, key=key.hash)  # as schemas 1 and 2 recorded its claims
        for engine in (sample(key, "a", 9, 0.0), claiming):
            (report,) = reports(small(PLAIN, engine, keys=(VANILLA, key)), ["fast", "vanilla"])
            assert report.comparisons == []
            explanation = of(report, "fast")
            assert "an engine of its own" in explanation.gaps[0]
            assert explanation.step is explanation.chain is None
            assert explanation.acceptance.committed == []

    def test_hidden_work_takes_the_speedup_away(self):
        (gap,) = self.gaps(PLAIN, replace(DRAFTED, prefill_forwards=3))
        assert gap == "no decode speedup: 2 full forwards ran before its decode clock started"

    def test_of_hidden_work_no_time_of_a_step_is_told(self):
        (report,) = reports(small(PLAIN, replace(DRAFTED, prefill_forwards=3), OTHER))
        assert of(report, "fast").step is None
        assert of(report, "slow").step is not None

    def test_generations_that_all_failed_leave_nothing(self):
        (gap,) = self.gaps(PLAIN, replace(DRAFTED, error="out of order"))
        assert gap == "no generation is left"

    def test_answers_of_one_token_have_no_steps(self):
        short = {"tokens": [1], "committed": [], "drafted": [], "forwards": 0}
        short |= {"depths": None, "ranks": None, "refused": None}
        (gap,) = self.gaps(replace(PLAIN, **short), replace(DRAFTED, **short))
        assert "no steps or no decode times" in gap


def test_a_decoder_that_is_not_there_is_an_error():
    with pytest.raises(BenchError) as caught:
        reports(small(), ["fats"])
    assert caught.value.message == "no decoder 'fats' in these records"
    assert "did you mean 'fast'?" in caught.value.hint


def test_settings_of_one_decoder_are_told_apart():
    deep = replace(FAST, options={"depth": 5})
    every = small(PLAIN, DRAFTED, replace(DRAFTED, key=deep.hash), keys=(VANILLA, FAST, deep))
    (report,) = reports(every, ["fast"])
    names = [e.case.decoder for e in report.explanations]
    assert names == ["vanilla", "fast (depth=3)", "fast (depth=5)"]
    (report,) = reports(every, ["fast (depth=5)"])
    assert [e.case.decoder for e in report.explanations] == ["vanilla", "fast (depth=5)"]


def test_costs_of_forwards_give_a_modelled_speedup():
    """Forwards of 60 ms, where 100 were measured: a step takes 160 ms in place of 200."""
    costs = {"greedy": {"forward": [0.06] * 12, "overhead": 0.1, "per_level": 0.1}}
    every = small(PLAIN, DRAFTED, keys=(VANILLA, FAST))
    every.costs["fast", ""] = costs
    (report,) = reports(every)
    assert of(report, "fast").modelled == pytest.approx(4 / 3 * 0.2 / 0.16)
    every.costs["fast", ""] = {"greedy": {"verify": [0.06] * 12, "longer": [0.0] * 12}}
    assert of(reports(every)[0], "fast").modelled == pytest.approx(4 / 3 * 0.2 / 0.16)


class TestCosts:
    """A forward of 60 ms by these costs makes a step of 160 ms, where 200 were measured."""

    COSTS: ClassVar = {"greedy": {"forward": [0.06] * 12}}

    def modelled(self, costs, *keys):
        """The modelled speedup of `fast` at each key, by its depth."""
        samples = [replace(DRAFTED, key=key.hash) for key in keys]
        every = small(PLAIN, *samples, keys=(VANILLA, *keys))
        every.costs.update(costs)
        (report,) = reports(every)
        return [e.modelled for e in report.explanations if e.case.decoder.startswith("fast")]

    def test_they_are_those_of_the_rows_own_options(self):
        deep = replace(FAST, options={"depth": 5})
        costs = {("fast", origin_of_key(deep)): self.COSTS}
        assert self.modelled(costs, FAST, deep) == [None, pytest.approx(5 / 3)]

    def test_they_are_those_of_the_rows_own_machine(self):
        other = replace(FAST, machine="another")
        costs = {("fast", origin_of_key(other)): self.COSTS}
        assert self.modelled(costs, FAST) == [None]
        costs["fast", origin_of_key(FAST)] = {"forward": [0.2] * 12}
        assert self.modelled(costs, FAST) == [pytest.approx(4 / 3 * 0.2 / 0.3)]

    def test_those_of_an_old_record_count_where_they_stand_alone(self):
        old = {("fast", ""): self.COSTS}
        assert self.modelled(old, FAST) == [pytest.approx(5 / 3)]
        deep = replace(FAST, options={"depth": 5})
        assert self.modelled(old, FAST, deep) == [None, None]
        assert self.modelled({**old, ("fast", origin_of_key(deep)): {}}, FAST) == [None]


@pytest.mark.parametrize("costs", [{}, {"forward": [1.0]}, {"forward": ["a"] * 12}, {"x": 3}])
def test_costs_that_cannot_be_read_give_no_model(costs):
    every = small(PLAIN, DRAFTED, keys=(VANILLA, FAST))
    every.costs["fast", ""] = costs
    assert of(reports(every)[0], "fast").modelled is None


def test_a_shipped_record_is_explained_by_its_own_speedups():
    (path,) = (RESULTS / "bfloat16-growth").glob("*.jsonl")
    every = Records.read(path)
    keys = {name: key for name, key in every.keys.items() if key.task == "gsm8k"}
    every = Records(keys=keys, samples=[s for s in every.samples if s.key in keys])
    (report,) = reports(every)
    measured = {row["decoder"].partition("=")[0]: row["speedup"] for row in rows(every)}
    assert len(measured) == 6
    for explanation in report.explanations:
        expected = pytest.approx(measured[explanation.case.decoder], rel=1e-12)
        assert explanation.chain.speedup == expected


def test_a_shipped_record_of_a_gpu_says_what_it_lacks():
    path = RESULTS / "h100" / "20261126T231025-smollm2-135m-1abe.jsonl"
    greedy, sampled = reports(Records.read(path))
    for report in (greedy, sampled):
        fspad = of(report, "fspad", ALL_TASKS)
        assert set(fspad.chain.factors) == {"tokens", "step"}
        assert any("parts of a step were not timed" in gap for gap in fspad.gaps)


def twice(**changes):
    """The small records, and again with other values of these fields of their keys."""
    pairs = [(VANILLA, PLAIN), (FAST, DRAFTED), (SLOW, OTHER)]
    keys = [replace(key, **more) for more in ({}, changes) for key, _ in pairs]
    samples = [replace(s, key=key.hash) for key, (_, s) in zip(keys, pairs * 2, strict=True)]
    return small(*samples, keys=keys)


def test_a_task_that_was_measured_twice_is_compared_within_each_measurement():
    (report,) = reports(twice(max_new_tokens=99), ["fast", "slow"])
    assert [(c.decoder, c.reference, c.task) for c in report.comparisons] == [
        ("fast", "slow", "gsm8k@bundled, 16 tokens"),
        ("fast", "slow", "gsm8k@bundled, 99 tokens"),
    ]


def test_two_sets_of_questions_have_names_of_their_own():
    (report,) = reports(twice(data_sha256="cd" * 32), ["fast"])
    tasks = {explanation.case.task for explanation in report.explanations}
    assert tasks == {"gsm8k@bundled, 1 prompts (ababab)", "gsm8k@bundled, 1 prompts (cdcdcd)"}


@pytest.mark.parametrize("field", ["machine", "seed", "version"])
def test_what_tells_two_groups_apart_is_said(field):
    values = [str(getattr(VANILLA, field)), "7"]
    places = [
        report.group.place for report in reports(twice(**{field: type(getattr(VANILLA, field))(7)}))
    ]
    assert [place.rpartition(" · ")[2] for place in places] == [f"{field}={v}" for v in values]

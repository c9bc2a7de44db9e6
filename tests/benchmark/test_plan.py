"""A plan that would measure nothing is refused where it is made."""

import pytest

from fspad_bench.benchmark.plan import Plan
from fspad_bench.benchmark.repeat import given_plan
from fspad_bench.util.errors import BenchError

WHOLE = {"decoders": ["vanilla"], "tasks": ["gsm8k"], "target": "tiny"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit": 0}, "limit is 0"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"threads": 0}, "threads is 0"),
        ({"repeats": 0}, "repeats is 0"),
        ({"decoders": []}, "without decoders"),
        ({"tasks": []}, "without tasks"),
        ({"temperatures": []}, "without temperatures"),
        ({"dtype": "float99"}, "no precision is called 'float99'"),
    ],
)
def test_a_plan_that_measures_nothing_is_refused(settings, message):
    with pytest.raises(BenchError, match=message):
        Plan(**(WHOLE | settings))


def test_what_is_left_open_is_no_mistake():
    plan = Plan(**WHOLE)
    assert (plan.limit, plan.max_new_tokens, plan.threads, plan.repeats) == (None, None, None, 1)


def test_a_plan_is_given_as_json_and_vanilla_runs_unnamed():
    content = {"decoders": ["suffix"], "tasks": ["gsm8k"], "target": "tiny"}
    assert given_plan(content) == Plan(["vanilla", "suffix"], ["gsm8k"], "tiny")
    assert given_plan(WHOLE).decoders == ["vanilla"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "it is no JSON object"),
        ({**WHOLE, "temperature": [0]}, "'temperature': did you mean 'temperatures'"),
        ({"decoders": ["vanilla"], "tasks": ["gsm8k"]}, "it has no 'target'"),
        ({**WHOLE, "tasks": "gsm8k"}, "'tasks' is 'gsm8k'"),
    ],
)
def test_json_that_is_no_plan_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        given_plan(content)

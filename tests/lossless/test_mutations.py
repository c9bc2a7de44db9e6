"""The wrong rules behave as listed, leave nothing behind, and cannot drift away from the code they spoil."""

from dataclasses import replace

import pytest
import torch

from fspad_bench.core import sampling
from fspad_bench.core.verification import ask_along
from fspad_bench.engine import gpu as kernels
from fspad_bench.lossless import trials
from fspad_bench.lossless.certify import QUICK
from fspad_bench.lossless.mutations import WRONG_RULES

BY_NAME = {wrong.name: wrong for wrong in WRONG_RULES}


@pytest.fixture(scope="module")
def ground(tiny):
    return trials.Ground(tiny)


@pytest.mark.parametrize("name", BY_NAME)
def test_each_is_refused_by_what_is_listed_and_by_nothing_blind(name, ground):
    check = trials.judge(BY_NAME[name], ground, without=QUICK.skipped)
    assert check.verdict == "PASS", check.figure


@pytest.mark.nightly
@pytest.mark.parametrize(
    "name",
    [name for name, wrong in BY_NAME.items() if {"G-test", "PIT"} & {*wrong.caught, *wrong.blind}],
)
def test_the_statistical_tests_behave_as_listed_too(name, ground):
    check = trials.judge(BY_NAME[name], ground)
    assert check.verdict == "PASS", check.figure


@pytest.mark.parametrize("name", BY_NAME)
def test_the_code_is_whole_again_afterwards(name):
    wrong = BY_NAME[name]
    before = wrong.function.__code__
    with pytest.raises(RuntimeError), wrong.applied():
        assert wrong.function.__code__ is not before
        raise RuntimeError
    assert wrong.function.__code__ is before


@pytest.mark.parametrize("name", BY_NAME)
def test_every_check_that_is_listed_exists(name):
    wrong = BY_NAME[name]
    assert wrong.caught
    assert wrong.blind
    assert {*wrong.caught, *wrong.blind} <= trials.TRIALS.keys()


def test_without_a_wrong_line_every_trial_holds(ground):
    harmless = replace(
        BY_NAME["noise that can be infinite"],
        function=sampling.gumbel,
        right="return torch",
        wrong="return  torch",
    )
    assert [
        check
        for check in trials.TRIALS
        if check not in QUICK.skipped and not trials.holds(check, harmless, ground)
    ] == []


def test_a_rule_listed_wrongly_fails_the_certification(ground):
    wrong = BY_NAME["a position too far"]
    assert (
        trials.judge(replace(wrong, caught=("exact law T=1",), blind=()), ground).verdict == "FAIL"
    )
    assert trials.judge(replace(wrong, blind=("identity T=1",)), ground).verdict == "FAIL"


def test_a_line_that_is_no_more_is_an_error():
    lost = replace(BY_NAME["a position too far"], right="position + len(path) - 7")
    with pytest.raises(LookupError, match="is not a line of ask_along any more"), lost.applied():
        pass


def test_every_caller_runs_the_wrong_line():
    wrong = BY_NAME["typical acceptance"]
    with wrong.applied():
        assert 0.09 in _constants(ask_along.__code__)
        assert kernels.chosen(torch.device("cuda")) is None
    assert 0.09 not in _constants(ask_along.__code__)


def _constants(code):
    found = set()
    for constant in code.co_consts:
        found |= _constants(constant) if hasattr(constant, "co_consts") else {constant}
    return found

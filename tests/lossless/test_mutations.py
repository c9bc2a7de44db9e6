"""The mutations behave as listed, leave nothing behind, and cannot lose their grip unnoticed."""

import os
from dataclasses import replace

import pytest

from fspad_bench.core import sampling
from fspad_bench.core.verification import match
from fspad_bench.decoders.build import Decoder
from fspad_bench.engine import gpu as kernels
from fspad_bench.lossless import trial_target, trials
from fspad_bench.lossless.certify import QUICK
from fspad_bench.lossless.mutations import MUTATIONS, Mutation, Patch
from fspad_bench.lossless.scripted import ScriptedDrafter, ScriptedTarget
from fspad_bench.lossless.trial_target import TrialTarget

BY_NAME = {mutation.name: mutation for mutation in MUTATIONS}
STATISTICAL = {"G-test", "PIT"}
PATCHES = [name for name, mutation in BY_NAME.items() if isinstance(mutation.fault, Patch)]
RULES = [name for name in BY_NAME if name not in PATCHES]


@pytest.fixture(scope="module")
def target(tiny):
    """The trials' target, on which generations are shorter than in a certification."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial_target, "TOKENS", 10)
        return TrialTarget(tiny)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "name",  # one that a statistical test alone refuses takes as long as ten others: by night
    [
        pytest.param(name, marks=[pytest.mark.nightly] * ({*mutation.caught} <= STATISTICAL))
        for name, mutation in BY_NAME.items()
    ],
)
def test_each_is_refused_by_what_is_listed_and_by_nothing_blind(name, target):
    check = trials.judge(BY_NAME[name], target, without=QUICK.skipped)
    assert check.verdict == "PASS", check.figure


@pytest.mark.nightly
@pytest.mark.parametrize(
    "name",
    [name for name, m in BY_NAME.items() if STATISTICAL & {*m.caught, *m.blind}],
)
def test_the_statistical_tests_behave_as_listed_too(name, target):
    check = trials.judge(BY_NAME[name], target)
    assert check.verdict == "PASS", check.figure


def test_the_number_of_mutations_does_not_shrink():
    assert len(BY_NAME) == len(MUTATIONS) >= 13


@pytest.mark.parametrize("name", PATCHES)
def test_the_code_is_whole_again_after_a_patch(name):
    mutation = BY_NAME[name]
    owner, right, _ = mutation.fault
    assert getattr(owner, right.__name__) is right
    with pytest.raises(RuntimeError), mutation.applied():
        assert getattr(owner, right.__name__) is not right
        raise RuntimeError
    assert getattr(owner, right.__name__) is right


@pytest.mark.parametrize("name", BY_NAME)
def test_the_environment_stays_as_it_was(name, monkeypatch):
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    before = dict(os.environ)
    with BY_NAME[name].applied():
        assert dict(os.environ) == before
    assert dict(os.environ) == before


@pytest.mark.parametrize("name", RULES)
def test_a_wrong_rule_is_given_to_one_drafter_alone(name):
    with BY_NAME[name].applied() as applied:
        spoiled = ScriptedDrafter(ScriptedTarget(3))
        applied.spoil(spoiled)
        assert spoiled.rule is not match
        assert ScriptedDrafter(ScriptedTarget(3)).rule is match


@pytest.mark.parametrize("name", BY_NAME)
def test_the_trials_decoder_is_verified_on_the_host(name, target):
    with BY_NAME[name].applied() as applied:
        decoder = target.decoder(applied)
    assert decoder.loop is None
    assert decoder.drafter.rule is not match  # which a kernel might carry out
    assert (decoder.drafter.rule.verify is match.verify) == (name in PATCHES)


@pytest.mark.parametrize("name", BY_NAME)
def test_every_check_that_is_listed_exists(name):
    mutation = BY_NAME[name]
    assert mutation.caught
    assert mutation.blind
    assert {*mutation.caught, *mutation.blind} <= trials.TRIALS.keys()
    assert {*mutation.unreached} <= {*mutation.blind}


def harmless(*checks, unreached=()):
    """A patch that puts the right function in the place of itself."""
    fault = Patch(sampling.Sampler, sampling.Sampler.next, sampling.Sampler.next)
    return Mutation("harmless", fault, caught=(), blind=checks, unreached=unreached)


def test_without_a_mistake_every_trial_holds(target):
    dear = {*QUICK.skipped, *trials.ENGINE_TRIALS}  # the engine's have tests of their own
    quick = [check for check in trials.TRIALS if check not in dear]
    outcomes = {check: trials.run_trial(check, harmless(), target) for check in quick}
    assert [check for check, outcome in outcomes.items() if not outcome.passed] == []


def test_a_mutation_that_is_listed_wrongly_fails_the_certification(target):
    mutation = BY_NAME["a position too far"]
    passes = replace(mutation, caught=("exact distribution T=1",), blind=())
    refused = replace(mutation, blind=("identity T=1",))
    assert trials.judge(passes, target).verdict == "FAIL"
    assert trials.judge(refused, target).verdict == "FAIL"


def test_a_mutation_that_never_ran_fails_the_certification(target):
    """A check that a mistake does not reach would pass as if it were blind to it."""
    check = trials.judge(harmless("noise is finite"), target)
    assert check.verdict == "FAIL"
    assert "never called in noise is finite" in check.figure
    unreached = harmless("noise is finite", unreached=("noise is finite",))
    assert trials.judge(unreached, target).verdict == "PASS"


def test_a_mutation_that_ran_where_it_is_listed_as_unreached_fails_too(target):
    check = trials.judge(harmless("identity greedy", unreached=("identity greedy",)), target)
    assert check.verdict == "FAIL"
    assert "called in identity greedy, listed as unreached" in check.figure


@pytest.mark.parametrize("trial", ["identity T=1", "cache"])
def test_a_trial_ends_with_the_first_output_that_is_refused(trial, target, monkeypatch):
    generations = []
    generate = Decoder.generate
    monkeypatch.setattr(
        Decoder, "generate", lambda *arguments: generations.append(1) or generate(*arguments)
    )
    assert not trials.run_trial(trial, BY_NAME["a stale KV row"], target).passed
    assert 1 <= len(generations) < len(target.prompts)


def test_an_exception_that_is_not_listed_is_no_refusal(target):
    mutation = replace(BY_NAME["draws with replacement"], raises=None)
    with pytest.raises(ValueError, match="two siblings carry the same token"):
        trials.judge(mutation, target)


def test_a_function_that_is_no_more_is_an_error():
    def gone():
        pass

    fault = Patch(sampling, gone, gone)
    lost = replace(BY_NAME["noise that can be infinite"], fault=fault)
    with pytest.raises(AttributeError, match="gone"), lost.applied():
        pass

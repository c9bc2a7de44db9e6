"""Faults that show at one size, depth or tie: one check refuses each here, all that are listed by
night.
"""

from types import SimpleNamespace

import pytest

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.engine.cpu.native import native
from fspad_bench.lossless import engine, engines, paths, trials
from fspad_bench.lossless.certify import MUTATIONS
from fspad_bench.lossless.engine_faults import ENGINE_FAULTS
from fspad_bench.lossless.mutations import Patch
from fspad_bench.lossless.reference import Reference
from fspad_bench.lossless.trial_target import Engines, TrialTarget
from fspad_bench.models.load import load_target

BY_NAME = {fault.name: fault for fault in ENGINE_FAULTS}
CHEAP = (  # trials that take a fraction of a second
    "compaction",
    "every depth",
    "ties",
    "noise key",
    "processed distribution",
    "positions",
    "attention",
    "non-vacuity",
    "cache",
    "identity penalties",
)
SMALL = engine.Sizes(nodes=(64, 65, 128), prefixes=(9,), lengths=())


def scores_hold(target):
    return engine.scores_hold(target, engine.tree_errors(Reference(target), SMALL))


def paths_hold(target):
    return paths.paths_hold(target, paths.host_paths(target))


def device_paths_hold(target):
    return paths.paths_hold(target, paths.device_paths(target))


NARROW = {  # dearer ones, on one engine
    "ancestors lost from node 64 on": scores_hold,
    "the sign bit of ancestors lost": scores_hold,
    "positions beyond depth eight of large trees": scores_hold,
    "a window one short after paths of twelve": paths_hold,
    "paths of six not compacted on the device": device_paths_hold,
    "a window one short after paths of ten on the device": device_paths_hold,
}


@pytest.fixture(scope="module")
def target(tiny):
    return TrialTarget(tiny)


def fault_named(name):
    if BY_NAME[name].compiled and native() is None:
        pytest.skip("no compiled step")
    return BY_NAME[name]


def cheapest(fault):
    return next((check for check in CHEAP if check in fault.caught), None)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", [name for name, fault in BY_NAME.items() if cheapest(fault)])
def test_each_is_refused_by_its_cheapest_check(name, target):
    fault = fault_named(name)
    outcome = trials.run_trial(cheapest(fault), fault, target)
    assert (outcome.passed, outcome.reached) == (False, True), cheapest(fault)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", NARROW)
def test_the_others_are_refused_on_one_engine(name, tiny):
    holds = NARROW[name]
    target = engines.tiny_on_kernels() if holds is device_paths_hold else tiny
    with BY_NAME[name].applied() as applied:
        assert not holds(target)
    assert applied.calls


def test_a_value_that_is_no_number_goes_with_its_fault():
    """Kernels read stale entries too: one would spoil every later generation."""
    target = engines.tiny_on_kernels()

    def tokens(prompt):
        return generate(target, Vanilla(target), Sampler(), prompt, Limit(2)).tokens

    before = tokens([5, 6, 7])
    with BY_NAME["a value that is not a number"].applied() as applied:
        tokens(list(range(20, 40)))
    assert applied.calls
    assert tokens([5, 6, 7]) == before


def test_the_loop_on_a_device_is_spoiled_on_the_cpu_alone():
    """A step that is captured could not be asked for numbers."""
    tiny = engines.tiny_on_kernels()  # as on a device
    (target,) = Engines(tiny).on_kernels
    assert target is not tiny
    assert (target.kernels.name, target.device.type) == ("reference", "cpu")


def test_paths_are_not_asked_where_a_tree_rounds_otherwise():
    coarse = load_target("tiny", dtype="bfloat16")
    engines_alone = SimpleNamespace(engines=SimpleNamespace(targets=[coarse]))
    assert trials.ENGINE_TRIALS["paths"](None, engines_alone)


def test_every_fault_is_refused_by_day_or_by_an_exact_distribution():
    rest = [name for name, fault in BY_NAME.items() if not cheapest(fault) and name not in NARROW]
    assert rest == ["drawn in bfloat16, judged in float64"]  # seconds: by night


@pytest.mark.nightly
@pytest.mark.parametrize("name", BY_NAME)
def test_each_is_refused_by_all_that_are_listed_and_by_nothing_blind(name, target):
    check = trials.judge(fault_named(name), target)
    assert check.verdict == "PASS", check.figure


@pytest.mark.parametrize("name", BY_NAME)
def test_lists_are_complete(name):
    fault = BY_NAME[name]
    assert fault.caught
    assert fault.blind
    assert {*fault.caught, *fault.blind} <= trials.TRIALS.keys()
    assert {*fault.unreached} <= {*fault.blind}


@pytest.mark.parametrize("name", [n for n, f in BY_NAME.items() if isinstance(f.fault, Patch)])
def test_the_code_is_whole_again_after_a_fault(name):
    owner, right, _ = BY_NAME[name].fault
    before = getattr(owner, right.__name__)
    with pytest.raises(RuntimeError), BY_NAME[name].applied():
        assert getattr(owner, right.__name__) is not before
        raise RuntimeError
    assert getattr(owner, right.__name__) is before is right


@pytest.mark.nightly
def test_without_a_fault_every_trial_holds(target):
    fault = BY_NAME["no residual from depth two on"]
    right = type(fault)("right", trials.match.verify, caught=(), blind=())
    assert [
        name for name in trials.ENGINE_TRIALS if not trials.run_trial(name, right, target).passed
    ] == []


def test_a_certification_puts_in_every_one():
    assert {fault.name for fault in MUTATIONS} >= BY_NAME.keys()
    assert len(MUTATIONS) == len({fault.name for fault in MUTATIONS}) >= 38

"""Exact distributions of the production loop; a wrong one must be far from the target's."""

import pytest

from fspad_bench.core.protocols import Drafter
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import RULES, Accepted, Rule, match
from fspad_bench.decoders.fspad import Fspad
from fspad_bench.decoders.prompt_lookup import PromptLookup
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.lossless import exact, oracle
from fspad_bench.lossless.checks import ELSEWHERE
from fspad_bench.lossless.oracle import distance
from fspad_bench.lossless.scripted import ScriptedDrafter, ScriptedTarget
from fspad_bench.lossless.witness import Observations, Witness
from fspad_bench.util.errors import BenchError


def test_the_reference_is_a_distribution():
    outputs = exact.product_distribution(ScriptedTarget(3), Sampler(0.7), 4)
    assert len(outputs) == 81
    assert sum(outputs.values()) == pytest.approx(1)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("draft", ["ranked", "drawn, own vocabulary"])
def test_every_rule_keeps_the_distribution(rule, draft):
    (check,) = exact.check_rules([draft], (0,), [rule])
    assert (check.subject, check.verdict) == (f"{rule}, {draft}", "PASS")


@pytest.mark.nightly
@pytest.mark.parametrize("draft", exact.DRAFTS)
def test_every_rule_keeps_the_distribution_of_wide_trees(draft):
    assert {check.verdict for check in exact.check_rules([draft])} == {"PASS"}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("rule", RULES)
def test_equal_states_merged_change_nothing(rule):
    target = ScriptedTarget(3)
    sampler = exact.SAMPLERS["T=1.5 top-p=0.9"]
    drafter = exact.scripted(rule, "drawn, own vocabulary")(target)
    apart = Observations()
    together = Observations()
    one_by_one = exact.loop_distribution(target, Witness(drafter, apart, draws=False), sampler)
    merged = exact.loop_distribution(target, exact.watched(drafter, target, together), sampler)
    assert distance(one_by_one, merged) < 1e-14
    assert together.accepted.keys() == apart.accepted.keys()
    assert together.accepted.total() < apart.accepted.total() / 2


def test_only_a_drafter_that_keeps_nothing_has_its_states_merged():
    class Counting(ScriptedDrafter):
        pass

    target = ScriptedTarget(3)
    seen = Observations()
    assert isinstance(exact.watched(ScriptedDrafter(target), target, seen), exact.Merged)
    assert not isinstance(exact.watched(Counting(target), target, seen), exact.Merged)
    assert not isinstance(exact.watched(PromptLookup(target), target, seen), exact.Merged)


def test_a_drafter_that_is_verified_at_another_temperature_is_far_off():
    class Warm(ScriptedTarget):
        def logits(self, prefix):
            return super().logits(prefix) * 0.8

    sampler = exact.SAMPLERS["T=1"]
    warm = exact.loop_distribution(Warm(3), Vanilla(None), sampler)
    right = exact.product_distribution(ScriptedTarget(3), sampler, exact.LENGTH)
    assert distance(warm, right) > 0.05


def test_decoders_that_can_stand_on_a_script_do(tiny):
    for name, decoder in (("prompt_lookup", PromptLookup), ("vanilla", Vanilla)):
        check = exact.check_decoder(name, decoder, tiny)
        assert (check.verdict, "over 6 samplers" in check.figure) == ("PASS", True)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("options", "prompts"),
    [
        ({}, 1),
        ({"verify": "rejection", "depth": 2, "nodes": 4}, 1),
        pytest.param({"verify": "rejection", "depth": 2}, 1, marks=pytest.mark.nightly),
        pytest.param({"verify": "rejection"}, 2, marks=pytest.mark.nightly),
        pytest.param({"verify": "traversal", "depth": 3}, 2, marks=pytest.mark.nightly),
    ],
)
def test_those_that_cannot_stand_on_tiny(options, prompts, tiny, monkeypatch):
    monkeypatch.setattr(exact, "TINY_PROMPTS", exact.TINY_PROMPTS[:prompts])
    check = exact.check_decoder("fspad", lambda target: Fspad(target, **options), tiny)
    assert check.verdict == "PASS", check
    assert "on tiny (on a script: it reads a target's " in check.figure


def test_a_head_of_another_target_is_left_to_other_checks(tiny):
    def make(target):
        raise BenchError("the head does not fit tiny")

    check = exact.check_decoder("fspad", make, tiny)
    assert check.verdict == ELSEWHERE
    assert "does not fit tiny" in check.figure


def test_a_rule_of_its_own_that_is_lossy_is_seen_wherever_it_stands(tiny):
    @Rule
    def hasty(tree, logits, sampler, position):
        path, bonus = match(tree, logits, sampler, position)
        for child in tree.offspring[path[-1]]:
            if sampler.distribution(logits[path[-1]])[tree.tokens[child]] > 0.2:
                return Accepted([*path, child], sampler.next(logits[child], position + len(path)))
        return Accepted(path, bonus)

    class Hasty(Fspad):
        def __init__(self, target):
            super().__init__(target)
            self.rule = hasty

    assert exact.check_decoder("hasty", Hasty, tiny).verdict == "FAIL"


def test_a_foreign_engine_has_nothing_to_explore(tiny):
    class Engine:
        def __init__(self, target):
            pass

        def generate(self, prompt, sampler, limit):
            raise AssertionError("never called")

    assert exact.check_decoder("engine", Engine, tiny).verdict == "-"


def test_too_large_a_decision_tree_is_left_to_other_checks(tiny, monkeypatch):
    monkeypatch.setattr(oracle, "MAX_PATHS", 5)
    assert exact.check_decoder("prompt_lookup", PromptLookup, tiny).verdict == "-"


class Silent(Drafter):
    """Never drafts anything."""

    def __init__(self, target):
        pass

    def propose(self, context, budget):
        return Tree.root(context.tokens[-1])


def test_a_drafter_that_is_never_tested_is_vacuous(tiny):
    assert exact.check_decoder("silent", Silent, tiny).verdict == "VACUOUS"
    assert exact.check_decoder("vanilla", Silent, tiny).verdict == "VACUOUS"


def test_vanilla_drafts_nothing_under_any_name(tiny):
    assert exact.check_decoder("base=vanilla", Vanilla, tiny).verdict == "PASS"


def crashing(error):
    class Crashing(Vanilla):
        def __init__(self, target):
            if isinstance(target, ScriptedTarget):
                raise error

    return Crashing


@pytest.mark.parametrize(
    "error",
    [AttributeError("no tokenizer"), TypeError("not a model"), BenchError("no head for this")],
)
def test_a_decoder_that_needs_more_than_a_script_is_told_by_the_type_of_its_error(error):
    reason = exact.reason_it_needs_more(crashing(error))
    assert reason == f"{type(error).__name__}: {error}"
    assert exact.reason_it_needs_more(Vanilla) == ""


@pytest.mark.parametrize("error", [ValueError("wrong"), ZeroDivisionError("no such thing")])
def test_a_decoder_that_crashes_on_a_script_has_failed(error, tiny):
    with pytest.raises(type(error), match=str(error)):
        exact.check_decoder("crashing", crashing(error), tiny)


def test_a_crash_while_decoding_on_a_script_is_no_excuse(tiny):
    class Late(Vanilla):
        def begin(self, context, scores):
            raise AttributeError("no such thing")

    with pytest.raises(AttributeError, match="no such thing"):
        exact.check_decoder("late", Late, tiny)

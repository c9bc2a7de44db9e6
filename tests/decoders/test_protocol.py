"""The protocol of drafters: its defaults, its adapter, and rules as class attributes."""

import pytest

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Drafter, Limit, as_drafter, as_engine
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import Accepted, Rule, match, rejection
from fspad_bench.decoders.vanilla import Vanilla

PROMPT = list(range(30, 52))


def repeat_last(context, budget):
    last = context.tokens[-1]
    return Tree.chain(last, [last] * min(2, budget))


class Bare:
    def propose(self, context, budget):
        return repeat_last(context, budget)


class Full(Bare):
    """Has every method, and inherits from nothing."""

    rule = rejection
    scope = "run"
    capture = ()

    def __init__(self):
        self.calls = []

    def settings(self):
        return {"a": 1}

    def prepare(self, target, known=None):
        self.calls.append("prepare")
        return known

    def begin(self, context, scores):
        self.calls.append("begin")

    def observe(self, step):
        self.calls.append("observe")

    def device_drafter(self):
        return "device"


def test_a_drafter_with_only_propose_gets_the_defaults(tiny):
    drafter = as_drafter(Bare())
    assert isinstance(drafter, Drafter)
    assert drafter.rule is match
    assert (drafter.scope, tuple(drafter.capture)) == ("prompt", ())
    assert drafter.settings() == {}
    assert drafter.prepare(tiny) is None
    assert drafter.device_drafter() is None
    limit = Limit(20)
    for temperature in (0.0, 1.0):
        sampler = Sampler(temperature, seed=1)
        answer = generate(tiny, Bare(), sampler, PROMPT, limit)
        assert answer.tokens == generate(tiny, Vanilla(tiny), sampler, PROMPT, limit).tokens
        assert max(answer.drafted) == 2


def test_an_adapted_drafter_keeps_what_it_has(tiny):
    decoder = Full()
    drafter = as_drafter(decoder)
    assert drafter.rule is rejection
    assert (drafter.scope, drafter.settings()) == ("run", {"a": 1})
    assert drafter.prepare(tiny, {"known": 1}) == {"known": 1}
    assert drafter.device_drafter() == "device"
    generate(tiny, decoder, Sampler(), PROMPT, Limit(4))
    assert decoder.calls[:3] == ["prepare", "begin", "observe"]


def test_a_drafter_is_not_adapted():
    class Own(Drafter):
        def propose(self, context, budget):
            return Tree.root(context.tokens[-1])

    drafter = Own()
    assert as_drafter(drafter) is drafter


def test_a_drafter_that_inherits_propose_is_none():
    class Own(Drafter):
        def propse(self, context, budget):
            return Tree.root(context.tokens[-1])

    drafter = Own()
    for use in (as_drafter, lambda own: own.propose(None, 1)):
        with pytest.raises(TypeError, match=r"Own has no propose\(context, budget\)"):
            use(drafter)
    drafter.propose = drafter.propse
    assert as_drafter(drafter) is drafter


def test_an_object_without_propose_is_no_drafter():
    with pytest.raises(TypeError, match="int has no propose"):
        as_drafter(3)


def test_only_what_generates_by_itself_is_an_engine():
    class Engine:
        def generate(self, prompt, sampler, limit):
            raise NotImplementedError

    class Both(Engine, Bare):
        pass

    engine = Engine()
    assert as_engine(engine) is engine
    assert as_engine(Both()) is None
    assert as_engine(Bare()) is None
    assert as_engine(3) is None


def refuse_all(tree, logits, sampler, position):
    """Accept no drafted token."""
    return Accepted([0], sampler.next(logits[0], position))


class PlainRule(Drafter):
    rule = refuse_all

    def propose(self, context, budget):
        return repeat_last(context, budget)


def test_a_plain_function_is_a_rule(tiny):
    """It is not bound to the drafter as a method."""
    assert isinstance(PlainRule.rule, Rule)
    assert PlainRule().rule.name == "refuse_all"
    answer = generate(tiny, PlainRule(), Sampler(), PROMPT, Limit(8))
    assert answer.tokens == generate(tiny, Vanilla(tiny), Sampler(), PROMPT, Limit(8)).tokens
    assert set(answer.committed) == {1}


def test_a_subclass_inherits_the_rule():
    class Heir(PlainRule):
        pass

    assert Heir().rule is PlainRule.rule


@pytest.mark.parametrize(
    "function",
    [lambda self, tree, logits, sampler, position: None, lambda tree, logits: None],
)
def test_a_rule_with_a_wrong_signature_is_an_error_at_class_creation(function):
    with pytest.raises(TypeError, match=r"takes \(tree, logits, sampler, position\)"):
        type("Wrong", (Drafter,), {"rule": function})

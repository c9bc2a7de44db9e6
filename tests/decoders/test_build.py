"""Decoders by their labels: built, prepared, and lossless on the tiny target."""

import hashlib
import sys

import pytest
from recording import vanilla_tokens

from fspad_bench.core.protocols import Drafter, Generation, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import Accepted, match
from fspad_bench.decoders.build import build_decoder, check_options, configure
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.util import registry
from fspad_bench.util.errors import BenchError

HERE = "test_build_decoders"
PROMPT = list(range(30, 52))
LIMIT = Limit(24)
SOURCE = '''
from fspad_bench.core.tree import Tree
from fspad_bench.core.protocols import Drafter, Generation
from fspad_bench.decoders.prompt_lookup import PromptLookup


class Bare:
    """Has nothing but `propose`."""

    def __init__(self, target, *, length: int = 2):
        self.length = length

    def propose(self, context, budget):
        return Tree.chain(context.tokens[-1], context.tokens[-1:] * min(self.length, budget))


class Silent:
    def __init__(self, target):
        pass


class Misspelt(Drafter):
    def propse(self, context, budget):
        return Tree.root(context.tokens[-1])


class BadRule(Bare):
    rule = "match"


class Counter(Drafter):
    scope = "run"

    def __init__(self, target):
        self.calls = []

    def prepare(self, target, known=None):
        self.calls.append(known)
        return {"measured": 1}

    def propose(self, context, budget):
        return Tree.root(context.tokens[-1])


class Heir(PromptLookup):
    """Adds an option to those that the inherited `settings` tell."""

    def __init__(self, target, *, length: int = 8, weight: float = 1.0):
        super().__init__(target, length=length)


class Teller(Heir):
    def __init__(self, target, *, weight: float = 1.0):
        super().__init__(target, weight=weight)

    def settings(self):
        return {"told": "itself"}


class Short:
    """An engine that answers with five tokens."""

    def __init__(self, target):
        pass

    def generate(self, prompt, sampler, limit):
        return Generation([1, 2, 3, 4, 5], 0.0, 0.0, committed=[1, 3])
'''


@pytest.fixture
def own_decoders(monkeypatch, tmp_path):
    """Write a user's module of decoders; return the path of its file."""
    path = tmp_path / f"{HERE}.py"
    path.write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield path
    sys.modules.pop(HERE, None)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", registry.names(registry.DECODERS))
def test_every_registered_decoder_agrees_with_vanilla_token_for_token(tiny, name, temperature):
    sampler = Sampler(temperature, seed=5)
    for prompt in (PROMPT, [3, 9, 3, 9, 3]):
        answer = build_decoder(name, tiny).generate(tiny, sampler, prompt, LIMIT)
        assert answer.tokens == vanilla_tokens(tiny, sampler, prompt, LIMIT)
        assert sum(answer.committed) == len(answer.tokens) - 1
        assert name in ("vanilla", "prompt_lookup", "aded") or sum(answer.drafted) > 0


def test_options_come_from_the_user_over_the_preset(tiny):
    preset = build_decoder("fspad@paper", tiny).options
    assert (preset["nodes"], preset["depth"], preset["top_k"]) == (60, 6, 10)
    options = {"fspad": {"nodes": "20"}, "fspad@paper": {"nodes": "30"}}
    assert build_decoder("fspad@paper", tiny, options).options["nodes"] == 30
    assert build_decoder("fspad", tiny, options).options["nodes"] == 20
    named = build_decoder("mine=fspad@paper", tiny, {**options, "mine": {"depth": "2"}}).options
    assert (named["nodes"], named["depth"]) == (60, 2)
    with pytest.raises(BenchError, match="fspad has no preset 'papre'"):
        configure("fspad@papre", {})


def test_options_of_no_decoder_and_names_given_twice_are_refused():
    with pytest.raises(BenchError, match="this run has no decoder 'fsapd'"):
        check_options(["fspad"], {"fsapd": {"nodes": "4"}})
    with pytest.raises(BenchError, match="two decoders are called 'fspad'"):
        check_options(["fspad", "fspad"], {})
    check_options(["fspad", "deep=fspad"], {"deep": {"depth": "5"}})


def test_a_decoder_with_only_propose_works(tiny, own_decoders):
    decoder = build_decoder(f"{HERE}:Bare", tiny, {f"{HERE}:Bare": {"length": "3"}})
    vanilla = build_decoder("vanilla", tiny)
    for temperature in (0.0, 1.0):
        sampler = Sampler(temperature, seed=6)
        answer = decoder.generate(tiny, sampler, PROMPT, LIMIT)
        assert answer.tokens == vanilla.generate(tiny, sampler, PROMPT, LIMIT).tokens
        assert max(answer.drafted) == 3
    assert (decoder.verification, decoder.scope) == ("match", "prompt")
    assert decoder.measurements is None
    digest = hashlib.sha256(own_decoders.read_bytes()).hexdigest()
    assert decoder.options == {"length": 3, "code_sha256": digest}


@pytest.mark.parametrize("name", registry.names(registry.DECODERS))
def test_the_packages_own_decoders_tell_all_themselves(tiny, name):
    decoder = build_decoder(name, tiny)
    assert decoder.options == (decoder.drafter.settings() or decoder.given)


def test_an_option_that_inherited_settings_cannot_tell_is_one_of_the_row(tiny, own_decoders):
    label = f"{HERE}:Heir"
    given = {label: {"length": "12", "weight": "2.5"}}
    options = build_decoder(label, tiny, given).options
    inherited = build_decoder("prompt_lookup", tiny, {"prompt_lookup": {"length": "12"}}).options
    digest = hashlib.sha256(own_decoders.read_bytes()).hexdigest()
    assert options == {**inherited, "weight": 2.5, "code_sha256": digest}
    telling = build_decoder(f"{HERE}:Teller", tiny).options
    assert telling == {"told": "itself", "code_sha256": digest}


def test_a_decoder_is_prepared_once_by_its_first_generation(tiny, own_decoders):
    decoder = build_decoder(f"{HERE}:Counter", tiny)
    calls = decoder.drafter.calls
    assert calls == []
    for _ in range(2):
        decoder.generate(tiny, Sampler(), PROMPT, Limit(3))
    assert calls == [None]
    assert decoder.measurements == {"measured": 1}
    assert decoder.scope == "run"


def test_a_prepared_decoder_is_not_prepared_again(tiny, own_decoders):
    decoder = build_decoder(f"{HERE}:Counter", tiny)
    decoder.prepare({"measured": 7})
    decoder.generate(tiny, Sampler(), PROMPT, Limit(3))
    assert decoder.drafter.calls == [{"measured": 7}]


def test_a_class_that_is_no_decoder_is_refused(tiny, own_decoders):
    with pytest.raises(BenchError) as raised:
        build_decoder(f"{HERE}:Silent", tiny)
    assert f"{HERE}:Silent is not a decoder" in raised.value.message
    assert "propose(context, budget)" in raised.value.hint


def test_a_misspelt_propose_is_named(tiny, own_decoders):
    with pytest.raises(BenchError) as raised:
        build_decoder(f"{HERE}:Misspelt", tiny)
    assert "Misspelt has no propose(context, budget)" in raised.value.message
    assert raised.value.hint.startswith("is propse meant to be propose?")


def test_a_rule_that_is_no_function_is_refused(tiny, own_decoders):
    with pytest.raises(BenchError, match="its rule is not a function"):
        build_decoder(f"{HERE}:BadRule", tiny)


def test_an_engine_is_cut_at_the_limit_and_refused_where_it_ends_before(tiny, own_decoders):
    engine = build_decoder(f"{HERE}:Short", tiny)
    assert (engine.verification, engine.drafter, engine.loop) == ("foreign", None, None)
    answer = engine.generate(tiny, Sampler(), PROMPT, Limit(3))
    assert isinstance(answer, Generation)
    assert (answer.tokens, answer.committed) == ([1, 2, 3], [])  # its steps are claims
    assert answer.claims["committed"] == [1, 3]  # of 4 tokens, as its forwards
    stopped = engine.generate(tiny, Sampler(), PROMPT, Limit(9, frozenset({4})))
    assert (stopped.tokens, stopped.claims["committed"]) == ([1, 2, 3, 4], [1, 2])
    with pytest.raises(ValueError, match="ended after 5 tokens"):
        engine.generate(tiny, Sampler(), PROMPT, Limit(6))


def test_a_custom_rule_is_called_own(tiny, monkeypatch):
    def strict(tree, logits, sampler, position):
        path, bonus = match(tree, logits, sampler, position)
        return Accepted(path, bonus)

    class Custom(Drafter):
        rule = strict

        def __init__(self, target):
            pass

        def propose(self, context, budget):
            return Tree.root(context.tokens[-1])

    monkeypatch.setattr(registry, "resolve", lambda group, name: Custom)
    assert build_decoder("custom", tiny).verification == "own"


def test_a_class_is_told_to_be_named(tiny):
    with pytest.raises(BenchError, match="is no name of a decoder") as caught:
        build_decoder(Vanilla, tiny)
    assert "package.module:Class" in caught.value.hint

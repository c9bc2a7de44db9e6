"""What crosses the border to a decoder's own code is copied, checked and converted."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from fspad_bench.core.protocols import Generation, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.border import blamed, check_ids, received
from fspad_bench.decoders.build import Decoder, build_decoder
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.util.errors import BenchError
from fspad_bench.util.strangers import ForeignExitError, described

ME = "border_decoders"
SOURCE = """
import numpy as np
from fspad_bench.decoders.vanilla import Vanilla


class Fails(Vanilla):
    def __init__(self, target, *, where: str = "constructor"):
        self.where = where
        self.fail("constructor")

    def fail(self, where):
        if where == self.where:
            raise SystemExit(0) if where == "prepare" else ZeroDivisionError("out of order")

    @property
    def scope(self):
        self.fail("scope")
        return "prompt"

    def settings(self):
        self.fail("settings")
        return {"rate": np.float32(0.5), "sizes": (1, np.int64(2)), 3: None}

    def prepare(self, target, known=None):
        self.fail("prepare")
        return {"seconds": np.float64(0.25)}


class Everywhere(Vanilla):
    scope = "everywhere"
"""
PLAIN = Generation([3, 4], 0.5, 0.25, 1, [1], [2], None, None, 0)


@pytest.fixture
def module(monkeypatch, tmp_path):
    (tmp_path / f"{ME}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)


def test_numbers_of_other_libraries_become_plain():
    generation = received(
        Generation(
            torch.tensor([3, 4]),
            np.float32(0.5),
            torch.tensor(0.25),
            np.int64(1),
            (np.int32(1),),
            np.array([2]),
        )
    )
    assert generation == PLAIN
    assert json.loads(json.dumps(asdict(generation))) == asdict(PLAIN)


def test_what_is_known_of_trees_becomes_plain():
    trees = {"depths": torch.tensor([2]), "ranks": ((np.int64(0), 1),), "refused": (np.int8(3),)}
    generation = received(replace(PLAIN, **trees, verify_seconds=np.float32(0.5)))
    known = {"depths": [2], "ranks": [[0, 1]], "refused": [3], "verify_seconds": 0.5}
    assert asdict(generation) == asdict(PLAIN) | known


def test_lists_are_copies():
    tokens = [3, 4]
    generation = received(replace(PLAIN, tokens=tokens))
    tokens.append(5)
    assert generation.tokens == [3, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": [3.0]}, "tokens holds 3.0"),
        ({"tokens": [-1]}, "tokens holds -1"),
        ({"tokens": "34"}, "tokens is '34'"),
        ({"tokens": None}, "tokens is None"),
        ({"committed": [1, None]}, "committed holds None"),
        ({"drafted": 7}, "drafted is 7"),
        ({"committed": [10**9]}, "committed holds 1000000000"),
        ({"forwards": 10**400}, "forwards holds 1000"),
        ({"forwards": "1"}, "forwards holds '1'"),
        ({"partial_forwards": -1}, "partial_forwards holds -1"),
        ({"decode_seconds": float("nan")}, "decode_seconds is nan"),
        ({"prefill_seconds": -1.0}, "prefill_seconds is -1.0"),
        ({"draft_seconds": float("inf")}, "draft_seconds is inf"),
        ({"verify_seconds": "1"}, "verify_seconds is '1'"),
        ({"depths": [-1]}, "depths holds -1"),
        ({"refused": 7}, "refused is 7"),
        ({"ranks": [1]}, "ranks is 1"),
        ({"ranks": 7}, "ranks is 7, not a list of lists"),
        ({"ranks": [[0, 10**9]]}, "ranks holds 1000000000"),
    ],
)
def test_what_is_no_generation_is_an_error(changes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        received(replace(PLAIN, **changes))
    with pytest.raises(TypeError, match="tuple returned"):
        received(([3, 4], 0.5, 0.25))


def test_ids_beyond_the_vocabulary_are_an_error():
    check_ids([0, 96], 97)
    with pytest.raises(ValueError, match="token 97 is outside the target's vocabulary of 97"):
        check_ids([97, 1], 97)


class Extends:
    """An engine that writes its answer to the prompt's list."""

    def generate(self, prompt, sampler, limit):
        prompt += [5] * limit.max_new_tokens
        return Generation(prompt[-limit.max_new_tokens :], 0.0, 0.0)


def test_an_engine_gets_a_prompt_of_its_own(tiny):
    prompt = [40, 41, 42]
    answer = Decoder("extends", tiny, engine=Extends()).generate(tiny, Sampler(), prompt, Limit(3))
    assert prompt == [40, 41, 42]
    assert answer.tokens == [5, 5, 5]


class Clears(Vanilla):
    """A drafter that empties the list it was given."""

    def __init__(self, prompt):
        self.prompt = prompt

    def begin(self, context, scores):
        self.prompt.clear()


def test_a_drafter_that_holds_the_list_cannot_change_the_answer(tiny):
    prompt = [40, 41, 42]
    expected = Decoder("v", tiny, drafter=Vanilla(tiny)).generate(tiny, Sampler(), prompt, Limit(4))
    decoder = Decoder("clears", tiny, drafter=Clears(prompt))
    assert decoder.generate(tiny, Sampler(), prompt, Limit(4)).tokens == expected.tokens


@pytest.mark.parametrize(
    ("where", "part"),
    [
        ("constructor", "its constructor raised ZeroDivisionError: out of order"),
        ("settings", "settings() raised ZeroDivisionError: out of order"),
        ("prepare", "prepare() raised SystemExit: 0"),
        ("scope", "one of its attributes raised ZeroDivisionError: out of order"),
    ],
)
def test_mistakes_outside_a_generation_name_the_decoder_and_the_line(module, tiny, where, part):
    label = f"{ME}:Fails"
    with pytest.raises(BenchError) as raised:
        decoder = build_decoder(label, tiny, {label: {"where": where}})
        decoder.prepare()
        decoder.options  # noqa: B018
    assert raised.value.message.startswith(f"{label}: {part}")
    assert f"{ME}.py:13)" in raised.value.message


def test_settings_and_measurements_become_plain(module, tiny):
    label = f"{ME}:Fails"
    decoder = build_decoder(label, tiny, {label: {"where": "nowhere"}})
    decoder.prepare()
    assert decoder.measurements == {"seconds": 0.25}
    options = decoder.options
    assert {name: options[name] for name in ("rate", "sizes", "3")} == {
        "rate": 0.5,
        "sizes": [1, 2],
        "3": None,
    }
    assert json.loads(json.dumps(options)) == options


def test_a_scope_that_is_none_is_refused_when_the_decoder_is_built(module, tiny):
    with pytest.raises(BenchError, match="its scope is 'everywhere'"):
        build_decoder(f"{ME}:Everywhere", tiny)


def test_our_own_errors_pass():
    with pytest.raises(BenchError, match=r"^mine$"), blamed("x", "y"):
        raise BenchError("mine")


class Strike(BaseException):
    """An exception that `except Exception` does not catch, such as pytest's own."""


class Mute(Exception):
    """An exception whose message cannot be had."""

    def __str__(self):
        raise ValueError("no text")


class Ends(Vanilla):
    """A decoder that raises whatever it is given."""

    def __init__(self, error):
        self.error = error

    def begin(self, context, scores):
        raise self.error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SystemExit(3), "SystemExit: 3"),
        (GeneratorExit(), "GeneratorExit"),
        (Strike("out"), "Strike: out"),
        (Mute(), "Mute"),
    ],
)
def test_whatever_a_decoder_raises_is_an_exception_of_one_line(tiny, error, message):
    decoder = Decoder("ends", tiny, drafter=Ends(error))
    with pytest.raises((ForeignExitError, Mute)) as raised:
        decoder.generate(tiny, Sampler(), [40, 41], Limit(3))
    assert described(raised.value) == message
    refused = pytest.raises(BenchError, match=f"ends: its part raised {message} ")
    with refused, blamed("ends", "its part"):
        raise error


def test_ctrl_c_goes_through(tiny):
    decoder = Decoder("ends", tiny, drafter=Ends(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        decoder.generate(tiny, Sampler(), [40, 41], Limit(3))


def test_a_class_without_a_module_is_a_decoder(module, tiny, monkeypatch):
    import border_decoders

    monkeypatch.setattr(border_decoders.Everywhere, "__module__", None)
    monkeypatch.setattr(border_decoders.Everywhere, "scope", "prompt")
    assert build_decoder(f"{ME}:Everywhere", tiny).scope == "prompt"


class Foreign:
    """An engine that answers with a token of another vocabulary."""

    def generate(self, prompt, sampler, limit):
        return Generation([97] * limit.max_new_tokens, 0.0, 0.0)


def test_an_answer_of_another_vocabulary_is_the_engines_error(tiny):
    foreign = Decoder("foreign", tiny, engine=Foreign())
    with pytest.raises(ValueError, match="token 97 is outside the target's vocabulary of 97"):
        foreign.generate(tiny, Sampler(), [40], Limit(3))


class Proposes(Vanilla):
    """Proposes an object of its own."""

    def __init__(self, proposed):
        self.proposed = proposed

    def propose(self, context, budget):
        return self.proposed


class Judges(Vanilla):
    """Verifies by a rule that returns a pair of its own."""

    def __init__(self):
        self.rule = lambda tree, logits, sampler, position: ([0], 5)


@pytest.mark.parametrize(
    ("drafter", "message"),
    [
        (Proposes(None), r"propose\(\) returned NoneType, not a Tree"),
        (Proposes([1, 2]), r"propose\(\) returned list, not a Tree"),
        (Judges(), "its rule returned tuple, not an Accepted"),
    ],
)
def test_what_is_no_tree_and_no_verdict_is_named(tiny, drafter, message):
    decoder = Decoder("own", tiny, drafter=drafter)
    with pytest.raises(TypeError, match=message):
        decoder.generate(tiny, Sampler(), [40], Limit(3))

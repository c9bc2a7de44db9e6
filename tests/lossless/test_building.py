"""How a certification builds decoders beside a run: prepared, on scripts of three tokens, and by
the border that says whose mistake an exception is.
"""

from functools import partial

import pytest

from fspad_bench.decoders.border import DecoderError
from fspad_bench.decoders.prompt_lookup import PromptLookup
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.lossless import certify, distribution, exact
from fspad_bench.lossless.scripted import ScriptedTarget
from fspad_bench.util.errors import BenchError
from fspad_bench.util.registry import DECODERS, names

ME = __name__
PLACES = ("constructor", "prepare")
STANDING = ("aded", "lookahead", "prompt_lookup", "suffix", "token_recycling", "vanilla")


class Fails(PromptLookup):
    """Raises on a script, where and what its options say."""

    def __init__(self, target, *, where="constructor", kind="ZeroDivisionError"):
        super().__init__(target)
        self.where = where
        self.kind = kind
        self.fail("constructor", target)

    def prepare(self, target, known=None):
        self.fail("prepare", target)

    def fail(self, where, target):
        if where != self.where or not isinstance(target, ScriptedTarget):
            return
        if self.kind == "BenchError":
            raise BenchError("no table of this target") from OSError("no file")
        kinds = {kind.__name__: kind for kind in (AttributeError, TypeError, ZeroDivisionError)}
        raise kinds[self.kind]("no such thing")


class Measures(PromptLookup):
    """Prepares behind the tokens of a large vocabulary."""

    def prepare(self, target, known=None):
        with target.session(80) as session:
            session.prefill(range(80))


def made(name, **options):
    label = f"{ME}:{name}"
    return partial(certify._decoder, label, {label: options})


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("AttributeError", "AttributeError: no such thing"),
        ("TypeError", "TypeError: no such thing"),
        ("BenchError", "BenchError: no table of this target"),
    ],
)
def test_a_decoder_that_needs_more_than_a_script_says_so(kind, where, reason):
    assert exact.reason_it_needs_more(made("Fails", where=where, kind=kind)) == reason


@pytest.mark.parametrize("where", PLACES)
def test_any_other_exception_is_the_decoders_failure(where, tiny):
    make = made("Fails", where=where)
    with pytest.raises(DecoderError, match="raised ZeroDivisionError: no such thing"):
        exact.check_decoder("fails", make, tiny)
    with pytest.raises(DecoderError, match="raised ZeroDivisionError: no such thing"):
        distribution.check_g_test("fails", make, 0.3)


def test_preparing_with_tokens_that_a_script_does_not_have_needs_more():
    reason = exact.reason_it_needs_more(made("Measures"))
    assert reason == "BenchError: token 3 is outside the target's vocabulary of 3"


@pytest.mark.parametrize("name", names(DECODERS))
def test_every_registered_decoder_stands_on_a_script_or_says_what_it_needs(name):
    reason = exact.reason_it_needs_more(partial(certify._decoder, name, {}))
    assert not reason or name not in STANDING


def test_a_drafter_is_prepared_and_proposes_whatever_it_finds(tiny):
    drafter = certify._decoder("prompt_lookup", {}, tiny)
    assert (drafter.tree, drafter.costs) == ("fixed", None)
    assert isinstance(certify._decoder("base=vanilla", {}, tiny), Vanilla)

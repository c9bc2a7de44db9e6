"""Tokens in company against tokens alone: exact, a tie of rounding, or lossy."""

import pytest

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Generation, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.shared_loop import Question
from fspad_bench.decoders.build import build_decoder
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.profiling import company
from fspad_bench.profiling.company import Referee

QUESTIONS = [Question([5 + n, 9, 11] * 4, Sampler(), Limit(5 + n)) for n in range(2)]


@pytest.fixture
def referee(tiny):
    tokens = [generate(tiny, Vanilla(tiny), q.sampler, q.prompt, q.limit).tokens for q in QUESTIONS]
    return Referee(tiny, QUESTIONS, {"vanilla": tokens, "eagle": tokens}, tokens)


def given(referee, changed=None):
    """Return the generations of four requests, as they are alone but for the last of a token."""
    tokens = [list(referee.vanilla[number % 2]) for number in range(4)]
    if changed is not None:
        tokens[changed][-1] = (tokens[changed][-1] + 1) % 96
    return {number: Generation(own, 0.0, 1.0) for number, own in enumerate(tokens)}


def test_requests_are_compared_with_their_own_question(tiny, referee):
    decoder = build_decoder("vanilla", tiny)
    assert referee.differing("vanilla", given(referee)) == []
    assert referee.verdict(decoder, given(referee)) == "exact"
    swapped = given(referee)
    swapped[0], swapped[1] = swapped[1], swapped[0]
    assert referee.differing("vanilla", swapped) == [0, 1]
    assert referee.verdict(decoder, swapped) == "lossy"


def test_a_difference_is_a_tie_only_where_rounding_explains_it(tiny, referee, monkeypatch):
    decoder = build_decoder("vanilla", tiny)
    changed = given(referee, changed=2)
    assert referee.differing("vanilla", changed) == [2]
    assert referee.verdict(decoder, changed) == "lossy"
    real = referee.auditor.audit
    monkeypatch.setattr(referee.auditor, "audit", lambda *a: real(*a)._replace(margin_error=1e9))
    assert referee.verdict(decoder, changed) == "tie"
    monkeypatch.setattr(company, "keeps_bits", lambda target: True)
    assert referee.verdict(decoder, changed) == "lossy"


@pytest.mark.parametrize("equal_bits", [False, True])
def test_other_tokens_of_a_rule_that_draws_are_unverified(equal_bits, tiny, referee, monkeypatch):
    monkeypatch.setattr(company, "keeps_bits", lambda target: equal_bits)
    decoder = build_decoder("eagle", tiny, {"eagle": {"verify": "rejection"}})
    assert referee.verdict(decoder, given(referee)) == "exact"
    assert referee.verdict(decoder, given(referee, changed=1)) == "unverified"


def test_a_target_whose_precise_copy_does_not_fit_leaves_it_unverified(tiny, referee, monkeypatch):
    def too_large(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(referee.auditor, "audit", too_large)
    decoder = build_decoder("vanilla", tiny)
    assert referee.verdict(decoder, given(referee, changed=1)) == "unverified"

"""The loop for several requests: they leave and join, and none sees another's rows."""

import pytest
import torch
from clock import stopped

from fspad_bench.core import shared_loop
from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.shared_loop import Question, SharedLoop
from fspad_bench.decoders.prompt_lookup import PromptLookup
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.engine import together

LENGTHS = (3, 9, 5, 1, 7)
QUESTIONS = [
    Question([7, 8, 9] * (n + 2), Sampler(seed=n), Limit(length))
    for n, length in enumerate(LENGTHS)
]


class Batches(PromptLookup):
    """Notes how many requests share each forward."""

    def propose(self, context, budget):
        self.seen = [*getattr(self, "seen", []), context.batch]
        return super().propose(context, budget)


def finished(loop):
    """Run a loop to its end, and return its rounds."""
    with loop:
        rounds = []
        while not loop.finished:
            rounds.append(loop.step())
    return rounds


def expected(target, make):
    return {
        number: generate(target, make(target), q.sampler, q.prompt, q.limit).tokens
        for number, q in enumerate(QUESTIONS)
    }


def test_a_request_that_ends_makes_room_for_the_next(tiny):
    loop = SharedLoop(tiny, [Vanilla(tiny), Vanilla(tiny)], QUESTIONS)
    rounds = finished(loop)
    at_work = [sorted(done.tokens) for done in rounds]
    # the prefill gives a token; the fourth request wants no other, and makes room at once
    assert at_work == [[0, 1]] * 2 + [[1, 2]] * 4 + [[1, 4]] * 2 + [[4]] * 4
    assert [done.nodes for done in rounds] == [len(numbers) for numbers in at_work]
    tokens = {number: generation.tokens for number, generation in loop.generations.items()}
    assert tokens == expected(tiny, Vanilla)
    assert [loop.generations[n].forwards for n in range(5)] == [n - 1 for n in LENGTHS]


def test_drafters_are_told_how_many_share_a_forward(tiny):
    drafters = [Batches(tiny, shortest=1), Batches(tiny, shortest=1), Batches(tiny, shortest=1)]
    loop = SharedLoop(tiny, drafters, QUESTIONS)
    rounds = finished(loop)
    seen = sorted(count for drafter in drafters for count in drafter.seen)
    assert seen == sorted(len(done.tokens) for done in rounds for _ in done.tokens)
    assert set(seen) == {2, 3}


def test_above_the_bound_nothing_is_drafted(tiny):
    make = [PromptLookup(tiny, shortest=1) for _ in range(2)]
    loop = SharedLoop(tiny, make, QUESTIONS, speculate_up_to=1)
    rounds = finished(loop)
    assert all(done.nodes == 2 for done in rounds if len(done.tokens) == 2)
    assert any(done.nodes > 1 for done in rounds if len(done.tokens) == 1)
    tokens = {number: generation.tokens for number, generation in loop.generations.items()}
    assert tokens == expected(tiny, Vanilla)


def test_seconds_of_a_round_are_shared_and_prefills_are_not_among_them(tiny, monkeypatch):
    clock = stopped(monkeypatch, shared_loop)
    score = type(tiny).score_together
    session = type(tiny).session

    def slowly(self, sessions, trees):
        clock.sleep(1.0)
        return score(self, sessions, trees)

    def opened_slowly(self, *sizes, **options):
        clock.sleep(100.0)
        return session(self, *sizes, **options)

    monkeypatch.setattr(type(tiny), "score_together", slowly)
    monkeypatch.setattr(type(tiny), "session", opened_slowly)
    loop = SharedLoop(tiny, [Vanilla(tiny), Vanilla(tiny)], QUESTIONS[:2])
    rounds = finished(loop)
    assert [round(done.seconds, 3) for done in rounds] == [1.0] * 8
    seconds = [loop.generations[number].decode_seconds for number in range(2)]
    assert seconds == pytest.approx([1.0, 7.0], abs=1e-3)  # halves of 2, and 6 by itself
    scored = [loop.generations[number].score_seconds for number in range(2)]
    assert scored == pytest.approx(seconds, abs=1e-3)
    assert loop.generations[0].prefill_seconds == pytest.approx(100.0, abs=1e-3)


def test_all_sessions_are_closed_when_a_round_fails(tiny, monkeypatch):
    def fails(self, sessions, trees):
        raise RuntimeError("no forward")

    monkeypatch.setattr(type(tiny), "score_together", fails)
    loop = SharedLoop(tiny, [Vanilla(tiny), Vanilla(tiny)], QUESTIONS)
    with pytest.raises(RuntimeError, match="no forward"), loop:
        loop.step()
    assert loop.working == []
    assert tiny.last_session.closed


def test_rows_of_one_request_that_are_given_to_another_show(tiny, monkeypatch):
    """A planted fault: what attends over the first cache is the second request's, and so on."""
    own = together.each_its_own

    def shifted(attends, sizes):
        attend = own(attends, sizes)
        return lambda layer, rows, rope: torch.roll(attend(layer, rows, rope), 1, dims=0)

    questions = [Question([5 + n, 9, 11 + n] * 5, Sampler(), Limit(12)) for n in range(2)]
    right = [generate(tiny, Vanilla(tiny), q.sampler, q.prompt, q.limit).tokens for q in questions]
    monkeypatch.setattr(together, "each_its_own", shifted)
    loop = SharedLoop(tiny, [Vanilla(tiny), Vanilla(tiny)], questions)
    finished(loop)
    assert all(loop.generations[n].tokens != right[n] for n in range(2))

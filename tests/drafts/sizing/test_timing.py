"""The quickest of some turns, taken in turn."""

import pytest
from clock import stopped
from doubles import random_target

from fspad_bench.core import loop
from fspad_bench.core.protocols import Context
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import match
from fspad_bench.drafts.sizing import timing
from fspad_bench.drafts.sizing.timing import Turn
from fspad_bench.engine.session import Session


@pytest.fixture
def target():
    return random_target("llama")


def test_overhead_is_timed_without_its_forward_and_leaves_the_session_as_it_was(
    target, monkeypatch
):
    clock = stopped(monkeypatch, timing, loop)
    forwards = []
    score = Session.score

    def slow_score(self, tree):
        forwards.append(len(tree))
        clock.sleep(0.03)
        return score(self, tree)

    monkeypatch.setattr(Session, "score", slow_score)
    with target.session(64) as session:
        scores = session.prefill([1, 2, 3])
        context = Context([1, 2, 3, int(scores.logits[-1].argmax())], 3, Sampler())
        turn = Turn(session, context, lambda: Tree.chain(context.tokens[-1], [5, 6]))
        seconds = timing.overhead_seconds([turn] * 2, match)
        assert (session.length, session.pending) == (3, 0)
    assert 0 < min(seconds) <= max(seconds) < 1e-4
    assert forwards == [3] * (2 * (timing.WARM + timing.TURNS))


def test_every_timed_forward_stands_at_its_prefix_length(target, monkeypatch):
    stopped(monkeypatch, timing)
    lengths = []
    score = Session.score

    def recording_score(self, tree):
        lengths.append((self.length, len(tree)))
        return score(self, tree)

    monkeypatch.setattr(Session, "score", recording_score)
    assert len(timing.forward_seconds(target, [(1, 20), (3, 40), (3, 20)])) == 3
    assert lengths == [(20, 1), (40, 3), (20, 3)] * (timing.WARM + timing.TURNS)


def test_runs_take_turns(tiny, monkeypatch):
    """So that a busy moment timing each of them one turn."""
    stopped(monkeypatch, timing)
    log = []
    runs = [lambda: log.append("a"), lambda: log.append("b")]
    assert len(timing.best_of(runs, tiny)) == 2
    assert log == ["a", "b"] * (timing.WARM + timing.TURNS)


def test_the_quickest_turn_counts_but_no_warm_up():
    seconds = iter([0.1, 9.0, 0.1, 9.0, *[3.0, 5.0] * (timing.TURNS - 1), 2.0, 4.0])
    assert timing._quickest(lambda run: next(seconds), ["a", "b"]) == [2.0, 4.0]


def test_a_slow_target_is_measured_less_often(tiny, monkeypatch):
    clock = stopped(monkeypatch, timing)
    log = []

    def slow():
        log.append(clock.sleep(0.6 * timing.PATIENCE))

    (seconds,) = timing.best_of([slow], tiny)
    assert len(log) == timing.WARM + 2
    assert seconds == pytest.approx(0.6 * timing.PATIENCE, rel=1e-3)

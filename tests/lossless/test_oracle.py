"""`explore` visits every decision path and weighs it by its probability."""

import itertools

import pytest
import torch

from fspad_bench.core.sampling import Sampler
from fspad_bench.lossless import oracle as oracle_module
from fspad_bench.lossless.oracle import (
    DecisionTreeTooLarge,
    KnownStateError,
    Oracle,
    RememberingSampler,
    distance,
    explore,
)

P = torch.tensor([0.5, 0.25, 0.0, 0.25], dtype=torch.float64)


def test_two_draws_are_a_product():
    outputs = explore(Sampler(1.0), lambda oracle: (oracle.draw(P), oracle.draw(P)))
    assert outputs == pytest.approx(
        {(a, b): float(P[a] * P[b]) for a in (0, 1, 3) for b in (0, 1, 3)}
    )


def test_a_decision_may_depend_on_earlier_ones():
    def play(oracle):
        first = oracle.draw(P)
        return (first, oracle.accept(0.1)) if first == 1 else (first,)

    assert explore(Sampler(1.0), play) == pytest.approx(
        {(0,): 0.5, (3,): 0.25, (1, True): 0.025, (1, False): 0.225}
    )


def test_next_has_the_samplers_distribution():
    sampler = Sampler(0.7, top_p=0.8)
    logits = torch.randn(6, generator=torch.Generator().manual_seed(1)).double()
    outputs = explore(sampler, lambda oracle: (oracle.next(logits, 9),))
    p = sampler.distribution(logits)
    assert outputs == pytest.approx({(i,): float(x) for i, x in enumerate(p) if x})


@pytest.mark.parametrize(
    ("probability", "answers"),
    [(0.0, {False}), (1.0, {True}), (7.0, {True}), (float("nan"), {False})],
)
def test_a_certain_answer_is_no_decision(probability, answers):
    outputs = explore(Sampler(1.0), lambda oracle: (oracle.accept(probability),))
    assert set(outputs) == {(answer,) for answer in answers}


def test_forced_decisions_are_replayed():
    oracle = Oracle(Sampler(1.0), [3, 1])
    assert [oracle.draw(P), oracle.draw(P), oracle.draw(P)] == [3, 1, 0]
    assert oracle.decisions[0].others == [0, 1]


@pytest.mark.parametrize("merged", [False, True])
def test_what_follows_equal_states_is_explored_once(merged):
    """Nine pairs of draws have six sums, and each is followed by a draw of three outcomes."""
    plays = []

    def play(oracle):
        total = oracle.draw(P) + oracle.draw(P)
        if merged:
            oracle.reach(total)
        last = oracle.draw(P.roll(total))
        plays.append(total)
        return total, last

    outputs = explore(Sampler(1.0), play)
    right = {}
    for a, b in itertools.product((0, 1, 3), repeat=2):
        for last, p in enumerate(P.roll(a + b).tolist()):
            if p:
                weight = float(P[a] * P[b]) * p
                right[a + b, last] = right.get((a + b, last), 0.0) + weight
    assert outputs == pytest.approx(right)
    assert len(plays) == (6 * 3 if merged else 9 * 3)


def test_a_state_may_follow_another_without_a_decision():
    def play(oracle):
        first = oracle.draw(P)
        oracle.reach(("first", first > 0))
        oracle.reach(("again", first > 0))
        second = oracle.draw(P)
        oracle.reach(("second", second))
        return (second,)

    assert explore(Sampler(1.0), play) == pytest.approx({(0,): 0.5, (1,): 0.25, (3,): 0.25})


def test_a_known_state_is_no_news_while_decisions_are_forced():
    oracle = Oracle(Sampler(1.0), [3, 1], known={"a"})
    oracle.draw(P)
    oracle.reach("a")
    oracle.draw(P)
    with pytest.raises(KnownStateError):
        oracle.reach("a")
    assert oracle.states == [("a", 1), ("a", 2)]


def test_distance_is_total_variation():
    assert distance({(0,): 0.5, (1,): 0.5}, {(0,): 0.25, (2,): 0.75}) == 0.75


def test_too_many_paths_are_an_error(monkeypatch):
    monkeypatch.setattr(oracle_module, "MAX_PATHS", 5)
    with pytest.raises(DecisionTreeTooLarge, match="more than 5 decision paths"):
        explore(Sampler(1.0), lambda oracle: (oracle.draw(P), oracle.draw(P)))


def test_a_play_with_state_of_its_own_is_an_error():
    plays = []

    def play(oracle):
        plays.append(1)
        return (oracle.draw(P if len(plays) == 1 else P.roll(1)),)

    with pytest.raises(RuntimeError, match="keep no state"):
        explore(Sampler(1.0), play)


def test_a_remembering_sampler_processes_equal_logits_once(monkeypatch):
    plain = Sampler(0.7, top_k=4, top_p=0.8, seed=3, stream="a")
    remembering = RememberingSampler.of(plain)
    other = remembering.streamed("b")
    rows = torch.randn(2, 6, generator=torch.Generator().manual_seed(1)).double()
    for logits in rows:
        assert remembering.distribution(logits).equal(plain.distribution(logits))
        assert remembering.next(logits, 9) == plain.next(logits, 9)
    assert other.key == plain.streamed("b").key
    monkeypatch.setattr(Sampler, "process", None)
    assert other.distribution(rows[1].clone()).equal(remembering.distribution(rows[1]))
    assert other.next(rows[1].clone(), 9) >= 0


def test_what_is_remembered_outlives_a_rule_that_changes_it_in_place():
    remembering = RememberingSampler.of(Sampler(0.7))
    logits = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    right = Sampler(0.7).distribution(logits)
    scores = Sampler(0.7).process(logits)[0]
    for _ in range(2):
        assert remembering.distribution(logits).equal(right)
        assert remembering.process(logits)[0].equal(scores)
        remembering.distribution(logits)[2] = 0
        remembering.process(logits)[0][2] = 0

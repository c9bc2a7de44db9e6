"""The tests of distributions, each by answers made by hand."""

import random

import pytest
from cells import answer

from fspad_bench.lossless.checks import ELSEWHERE, FAIL, INCONCLUSIVE, PASS
from fspad_bench.serving.certify.sampled import (
    Lengths,
    LogProbabilities,
    Pit,
    Repeats,
    Round,
    Stops,
    Tokens,
    WholeTexts,
)

ALPHA = 1e-3
KINDS = [Tokens, WholeTexts, Lengths, lambda: Stops(8), LogProbabilities, Repeats, Pit]


def run(test, served, plain, rounds=12, each=8, seed=0):
    """Bet on rounds of answers to two prompts, each made by a function of a dice."""
    dice = random.Random(seed)
    for _ in range(rounds):
        sides = [[[make(dice) for _ in range(each)] for _ in "ab"] for make in (served, plain)]
        test.round(Round(*sides), ALPHA)
    return test.check("cell", ALPHA)


def usual(dice):
    """Observation with 1 to 8 fair bits, of log-probability -0.7 or less likely ones."""
    tokens = [dice.randrange(2) for _ in range(dice.randrange(1, 9))]
    likely = dice.choice([-0.7, -0.9, -1.1])
    finish = dice.choice(["stop", "length"])
    u = tuple(dice.random() for _ in tokens)
    return answer(tokens, finish, likely=likely)._replace(u=u)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_sides_pass_with_the_shift_that_would_be_seen(kind):
    check = run(kind(), usual, usual)
    assert check.verdict == PASS
    assert "192 answers a side: TV 0." in check.figure
    assert check.bound == "e 1000"


def sequence(tokens, **settings):
    return lambda dice: answer(tokens(dice), **settings)


@pytest.mark.parametrize(
    ("kind", "served"),
    [
        (Tokens, sequence(lambda d: [int(d.random() < 0.8), 0])),
        (WholeTexts, sequence(lambda d: [d.randrange(2)] * 2)),
        (Lengths, sequence(lambda d: [1] * d.randrange(1, 4))),
        (lambda: Stops(8), sequence(lambda d: [1], finish="stop")),
        (LogProbabilities, sequence(lambda d: [1, 0], likely=-0.1)),
        (Repeats, sequence(lambda d: [1, 0])),
        (Pit, lambda d: answer([1, 0])._replace(u=(0.5 * d.random(), d.random()))),
    ],
)
def test_each_sees_what_it_is_for(kind, served):
    check = run(kind(), served, usual, rounds=24)
    assert check.verdict == FAIL
    taken = int(check.figure.split(" after ")[1].split()[0])
    assert 16 <= taken <= 384


@pytest.mark.parametrize("offset", [1e-4, 1e-3])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_likely_answer_may_be_scored_by_other_products(share, offset):
    """With speculation a server scores it in other company, and rounds otherwise."""

    def side(shift):
        def made(dice):
            if dice.random() < share:
                return answer([1, 0], likely=-0.7 + shift)
            return answer([dice.randrange(9)], likely=-0.5 - dice.random() + shift)

        return made

    for seed in range(4):
        check = run(LogProbabilities(), side(offset), side(0.0), rounds=24, seed=seed)
        assert check.verdict != FAIL


@pytest.mark.parametrize("kind", KINDS)
def test_one_round_does_not_pass_however_large(kind):
    """Nothing was known before it, so that nothing was bet."""
    prompt = [usual(random.Random(i)) for i in range(400)]
    test = kind()
    test.round(Round([prompt], [prompt]), ALPHA)
    check = test.check("cell", ALPHA)
    assert check.verdict == INCONCLUSIVE
    assert check.figure == "too few answers; e 1, 400 answers a side: nothing detectable"


def test_the_second_round_is_bet_on_by_the_first():
    test = Lengths()
    run(test, usual, usual, rounds=2)
    assert dict(test.wealth.pairs) == {0: 8, 1: 8}


def test_a_shift_above_a_half_is_too_large_to_pass_by():
    check = run(Stops(8), usual, usual, rounds=3)
    assert check.verdict == INCONCLUSIVE
    assert check.figure.startswith("too few answers; ")


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_too_few_answers_do_not_pass(kind, rounds):
    assert run(kind(), usual, usual, rounds, each=1).verdict == INCONCLUSIVE


@pytest.mark.parametrize("kind", [LogProbabilities, Pit])
def test_without_log_probabilities_the_others_go_on(kind):
    def silent(dice):
        return usual(dice)._replace(chosen=None, u=None)

    check = run(kind(), silent, silent)
    assert (check.verdict, check.bound) == (ELSEWHERE, "")
    assert check.figure.startswith("neither side returns ")
    assert run(Tokens(), silent, silent).verdict == PASS


@pytest.mark.parametrize("kind", [LogProbabilities, Pit])
@pytest.mark.parametrize("kept", [0, 1])
def test_log_probabilities_of_a_part_of_the_answers_are_no_sample(kind, kept):
    """Answers that begin with 1 come without, or lack their last token's."""

    def selected(dice):
        made = usual(dice)
        if made.tokens[0] == 0:
            return made
        return made._replace(chosen=made.chosen[:-1] * kept, u=made.u[:-1] * kept)

    check = run(kind(), selected, usual)
    assert check.verdict == ELSEWHERE
    assert check.figure.startswith("the served side returns no ")
    assert run(kind(), usual, selected).figure.startswith("the plain side returns no ")


@pytest.mark.parametrize("kind", [LogProbabilities, Pit])
def test_an_empty_answer_has_no_log_probabilities_to_lack(kind):
    def often_empty(dice):
        made = usual(dice)
        return made if made.tokens[0] else answer([])._replace(chosen=(), u=None)

    assert run(kind(), often_empty, often_empty, rounds=24).verdict == PASS


@pytest.mark.parametrize("kind", [LogProbabilities, Pit])
def test_log_probabilities_of_two_kinds_are_not_compared(kind):
    check = run(kind("of two kinds"), usual, usual)
    assert (check.verdict, check.figure) == (ELSEWHERE, "of two kinds")


def test_a_finding_stays_one():
    """Later answers may be right: the wealth fell, but it had been reached."""
    test = Repeats()
    run(test, sequence(lambda d: [1, 0]), usual)
    taken = test.taken
    assert run(test, usual, usual, rounds=60).verdict == FAIL
    assert test.taken == taken


def test_repeats_are_counted_in_blocks_of_eight():
    test = Repeats()
    run(test, usual, usual, rounds=3, each=16)
    assert test.wealth.pairs["distinct"] == (3 - 1) * 2 * 2  # the first round is not bet on


@pytest.mark.nightly
@pytest.mark.parametrize("length", [8, 24])
def test_the_stated_shift_is_seen_with_80_to_90_percent(length):
    """Of 40 runs 30 must: two standard deviations below 80 to 90%."""

    def likelier(sign):
        return sequence(
            lambda d: [2 * d.randrange(8) + (d.random() < 0.5 + sign * shift / 2) for _ in places]
        )

    def in_u(make):
        def made(dice):
            reply = make(dice)
            return reply._replace(u=tuple((token + 0.5) / 16 for token in reply.tokens))

        return made

    places = range(length)
    shift = 0.0
    test = Pit()
    run(test, *[in_u(likelier(0))] * 2, rounds=16)
    shift = test.shift(ALPHA)
    assert 0.04 < shift < 0.2
    seen = 0
    for seed in range(40):
        test = Pit()
        run(test, in_u(likelier(1)), in_u(likelier(-1)), rounds=16, seed=seed)
        seen += test.taken is not None
    assert seen >= 30

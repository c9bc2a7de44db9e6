"""Greedy identity, and the audit of what differs."""

import math
import random

import pytest
from cells import Through, answer, by_name, checks, pair, plan

from fspad_bench.lossless.checks import FAIL, INCONCLUSIVE, PASS
from fspad_bench.serving.certify.greedy import Difference, Judge, differences, judged, lead
from fspad_bench.serving.certify.observation import END, Observation
from fspad_bench.serving.certify.plan import Sampling
from fspad_bench.serving.double.service import Direct, Double, Settings

GREEDY = Judge(Sampling())
PROMPT = (1,)


def test_a_right_engine_is_identical():
    found = by_name(checks(pair(), plan("greedy", max_tokens=24)))
    assert found["greedy identity"].verdict == PASS
    assert found["greedy identity"].figure.startswith("4 of 4 answers identical, ")
    assert found["plain repeats itself"].figure == "4 of 4 answers repeated"


class Noisy(Through):
    """A server that gives greedy answers of other weights with a probability of `share`."""

    def __init__(self, engine, other, share, seed):
        super().__init__(engine)
        self.other = other
        self.share = share
        self.dice = random.Random(seed)

    def ask_all(self, asks, concurrency):
        right = self.engine.ask_all(asks, concurrency)
        if asks[0].max_tokens == 1:  # the first tokens, which tell the model
            return right
        wrong = self.other.ask_all(asks, concurrency)
        return [
            b if self.dice.random() < self.share else a for a, b in zip(right, wrong, strict=True)
        ]


def noisy_identity(share, seed):
    """Return the identity of a noisy plain server and one that errs with this probability."""
    right = pair()
    others = pair(salt=9)[0], Direct(Double(Settings(depth=0, salt=9)))
    engines = Noisy(right[0], others[0], share, seed), Noisy(right[1], others[1], 0.3, 100 + seed)
    return by_name(checks(engines, plan("greedy", greedy_repeats=16)))["greedy identity"]


def test_noise_of_both_servers_is_no_finding_and_more_of_it_is_one():
    """The control has the noise of both of its sides, as the comparison has."""
    assert {noisy_identity(0.3, seed).verdict for seed in range(6)} == {INCONCLUSIVE}
    check = noisy_identity(1.0, 0)
    assert check.verdict == FAIL
    assert check.bound == "a lead of 0.25 nats, p 0.01"


def test_a_short_rollback_is_found_at_its_depth_alone():
    found = checks(pair("short-rollback"), plan("greedy", depths=(4, 5), max_tokens=24))
    verdicts = {(check.subject[:7], check.name): check.verdict for check in found}
    assert verdicts["depth 5", "greedy identity"] == FAIL
    assert verdicts["depth 4", "greedy identity"] == PASS
    assert verdicts["depth 5", "plain repeats itself"] == PASS


def test_the_lead_is_the_plain_servers_after_the_shared_prefix():
    plain = answer([4, 5, 6], rival=8, gap=0.2)
    assert lead(plain, answer([4, 8, 1]), PROMPT, GREEDY) == pytest.approx(0.2)
    assert lead(plain, answer([4, 7, 1]), PROMPT, GREEDY) == pytest.approx(8.9)  # not in the list
    assert math.isnan(lead(answer([4, 5]), answer([4, 8]), PROMPT, GREEDY))


def test_an_end_is_audited_by_the_longer_answer():
    longer = answer([4, 5, 6], rival=8, gap=3.0)
    ended = answer([4], "stop")
    assert lead(longer, ended, PROMPT, GREEDY) == pytest.approx(3.0)
    assert lead(ended, longer, PROMPT, GREEDY) == pytest.approx(3.0)
    assert math.isnan(lead(answer([4, 5]), ended, PROMPT, GREEDY))
    assert len(differences([answer([4])], [ended], [PROMPT], GREEDY)) == 1  # the word differs


def test_a_lower_bound_within_a_tie_tells_nothing():
    """The alternatives are 0.1 and more behind: an end or another token may be 19 nats behind."""
    plain = answer([4, 5, 6])
    plain = plain._replace(top=tuple({t: -0.1, 8: -0.2} for t in plain.tokens))
    ended = answer([4], "stop")
    assert math.isnan(lead(plain, ended, PROMPT, GREEDY))
    assert math.isnan(lead(ended, plain, PROMPT, GREEDY))
    assert math.isnan(lead(plain, answer([4, 7]), PROMPT, GREEDY))
    assert lead(plain, answer([4, 8]), PROMPT, GREEDY) == pytest.approx(0.1)
    assert lead(plain, ended, PROMPT, GREEDY._replace(tie=0.05)) == pytest.approx(0.1)


def test_a_target_of_ours_audits_ends():
    def scorer(prompt, output, ours, theirs, sampling):
        assert output == (4,)
        return {(5, END): 19.0, (END, 5): -19.0}[ours, theirs]

    judge = GREEDY._replace(scorer=scorer)
    longer = answer([4, 5, 6], rival=8, gap=0.1)
    assert lead(longer, answer([4], "stop"), PROMPT, judge) == 19.0
    assert lead(answer([4], "stop"), longer, PROMPT, judge) == -19.0
    cut = answer([4], "length")  # what would have followed is not known
    assert math.isnan(lead(longer, cut, PROMPT, judge))


def test_penalties_do_not_lower_what_is_not_listed():
    """After 4 its raw -0.2 falls to -0.7, but an unlisted token may lie at -0.2."""
    plain = answer([4, 5])
    plain = plain._replace(top=({4: -0.1}, {5: -0.1, 4: -0.2}))
    judge = Judge(Sampling(presence=0.5))
    assert lead(plain, answer([4, 4]), PROMPT, judge) == pytest.approx(0.6)
    assert math.isnan(lead(plain, answer([4, 7]), PROMPT, judge))
    assert math.isnan(lead(plain, answer([4], "stop"), PROMPT, judge))


def test_a_chosen_token_below_the_list_is_not_its_floor():
    """The penalised choice is far below the list; an unlisted token may lie just below -0.5."""
    plain = answer([4, 5], likely=-3.0)._replace(top=({4: -0.1}, {4: -0.2, 8: -0.5}))
    judge = Judge(Sampling(presence=9.0))
    assert math.isnan(lead(plain, answer([4, 7]), PROMPT, judge))


def test_characters_are_not_scored_as_token_ids():
    def scorer(*arguments):
        raise AssertionError("asked")

    plain, served = (Observation(tokens, "stop", is_text=True) for tokens in ((97, 98), (97, 99)))
    assert math.isnan(lead(plain, served, PROMPT, GREEDY._replace(scorer=scorer)))


def test_raw_log_probabilities_are_penalised_before_they_are_compared():
    """After 4 a rival loses 0.5: what led by raw -0.4 leads by 0.1."""
    plain = answer([4, 5], rival=4, gap=-0.4)
    judge = Judge(Sampling(presence=0.3, frequency=0.2))
    assert lead(plain, answer([4, 4]), PROMPT, judge) == pytest.approx(0.1)
    assert lead(plain, answer([4, 4]), PROMPT, judge._replace(raw=False)) == pytest.approx(-0.4)
    repetition = Judge(Sampling(repetition=1.2))
    assert math.isnan(lead(plain, answer([4, 4]), PROMPT, repetition))


def test_a_target_of_ours_audits_without_log_probabilities():
    def scorer(prompt, output, ours, theirs, sampling):
        assert (prompt, output, ours, theirs) == (PROMPT, (4,), 5, 8)
        return 0.7

    assert lead(answer([4, 5]), answer([4, 8]), PROMPT, Judge(Sampling(), True, scorer)) == 0.7


@pytest.mark.parametrize(
    ("leads", "own", "verdict", "words"),
    [
        ([], [], PASS, "12 of 12 answers identical"),
        ([0.2], [], PASS, "1 near ties, largest lead overturned 0.2 nats"),
        ([0.2, 3.0], [], FAIL, "1 differ by more than a near tie, answer 1 at token 4 by 3 nats"),
        ([math.inf], [], FAIL, "by inf nats"),
        ([math.nan], [], INCONCLUSIVE, "cannot be audited"),
        ([-3.0], [], INCONCLUSIVE, "no log-probs explain the plain token"),
        ([3.0], [0.2], FAIL, "1 differ by more"),
        ([3.0], [4.0], INCONCLUSIVE, "the plain server differs so from itself in 1, p 0.76"),
        ([3.0] * 4, [4.0], INCONCLUSIVE, "in 1, p 0.16"),
        ([3.0] * 4, [math.nan], INCONCLUSIVE, "in 1, p 0.16"),
        ([3.0] * 11, [4.0], FAIL, "in 1, p 5.4e-05"),
    ],
)
def test_the_verdict_of_differences(leads, own, verdict, words):
    found = [[Difference(0, 3, x) for x in kind] for kind in (leads, own)]
    check = judged("greedy identity", "cell", found[0], [answer([1])] * 12, 0.25, found[1], 1e-3)
    assert check.verdict == verdict
    assert words in check.figure

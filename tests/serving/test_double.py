"""The double: right without a fault, and with each fault wrong where it should be."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from fspad_bench.core.sampling import Sampler
from fspad_bench.lossless.choice import distribution
from fspad_bench.serving.double.generation import FAULTS, Generation, Models, Request
from fspad_bench.serving.double.model import END, Penalties, exponentials, race
from fspad_bench.serving.double.service import Direct, Double, Settings
from fspad_bench.serving.engine import Ask
from fspad_bench.util.errors import BenchError

PROMPT = (3, 4, 5)
MODELS = Models.of(salt=0, noise=1.0, end=-1.5)
REFUTED = 60  # of chi-square with 23 degrees of freedom: 4e-5
USUAL = 42  # within 99 %
COLD = Sampler(temperature=0.5)
CUT = Sampler(temperature=0.6, top_k=8, top_p=0.8)


def exact(sampler, text=PROMPT):
    return distribution(MODELS.target.model.logits(text), sampler)


def second(sampler):
    """Return the probabilities of the second token, over all first ones that do not end."""
    first = exact(sampler)
    rows = [exact(sampler, (*PROMPT, token)) for token in range(len(first))]
    weights = [0.0 if token == END else p for token, p in enumerate(first)]
    return [
        sum(weight * row[token] for weight, row in zip(weights, rows, strict=True))
        for token in range(len(first))
    ]


def outputs(sampler, count, *, depth, tokens, **options):
    for seed in range(count):
        request = Request(PROMPT, tokens, replace(sampler, seed=seed), depth=depth)
        generation = Generation(MODELS, request, **options)
        list(generation.steps())
        yield generation.output


def chi_square(tokens, p):
    total = len(tokens)
    mass = sum(p)
    cells = [(tokens.count(token), total * x / mass) for token, x in enumerate(p) if x]
    if len(tokens) > sum(seen for seen, _ in cells):
        return float("inf")  # a token of probability 0
    return sum((seen - expected) ** 2 / expected for seen, expected in cells)


def distance(sampler, position, count, **options):
    """Return chi-square of the tokens at a position, 0 or 1, against the exact probabilities."""
    texts = list(outputs(sampler, count, tokens=position + 2, **options))
    tokens = [text[position] for text in texts if len(text) > position]
    return chi_square(tokens, exact(sampler) if position == 0 else second(sampler))


@pytest.mark.parametrize("rule", ["rejection", "match"])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_without_a_fault_tokens_are_the_targets(rule, depth):
    assert distance(CUT, 0, 500, depth=depth, rule=rule) < USUAL
    assert distance(COLD, 1, 500, depth=depth, rule=rule) < USUAL


@pytest.mark.parametrize(
    ("fault", "sampler", "position", "depth", "count"),
    [
        ("bonus-without-temperature", COLD, 1, 1, 600),
        ("recovery-noise-reused", Sampler(temperature=1.0), 0, 1, 4500),
        ("one-hot-residual", Sampler(temperature=1.0), 0, 1, 800),
        ("filter-order", CUT, 0, 1, 400),
        ("short-rollback", COLD, 1, 1, 400),
        ("ignored-sampling", COLD, 0, 1, 400),
    ],
)
def test_a_fault_shows_where_it_should(fault, sampler, position, depth, count):
    options = {"depth": depth, "fault_depth": depth}
    assert distance(sampler, position, count, fault=fault, **options) > REFUTED
    assert distance(sampler, position, count, fault=None, **options) < USUAL


def test_what_theory_calls_blind_is_blind():
    right = list(outputs(Sampler(temperature=1.0), 50, depth=3, tokens=8))
    for fault in ("bonus-without-temperature", "filter-order", "ignored-sampling"):
        wrong = list(outputs(Sampler(temperature=1.0), 50, depth=3, tokens=8, fault=fault))
        assert wrong == right, fault


@pytest.mark.parametrize("fault", sorted(FAULTS.keys() - {"cached-answers"}))
def test_no_fault_is_in_force_without_speculation(fault):
    right = list(outputs(COLD, 30, depth=0, tokens=8))
    assert list(outputs(COLD, 30, depth=0, tokens=8, fault=fault)) == right


def test_a_short_rollback_shows_at_one_depth_alone():
    for depth in range(1, 7):
        right = list(outputs(COLD, 20, depth=depth, tokens=12))
        wrong = list(
            outputs(COLD, 20, depth=depth, tokens=12, fault="short-rollback", fault_depth=5)
        )
        assert (wrong != right) == (depth == 5)


def test_shorter_outputs_are_shorter_and_end():
    right = list(outputs(Sampler(temperature=1.0), 100, depth=4, tokens=30))
    wrong = list(
        outputs(Sampler(temperature=1.0), 100, depth=4, tokens=30, fault="shorter-outputs")
    )
    mean = sum(map(len, right)) / 100
    assert sum(map(len, wrong)) / 100 < 0.9 * mean
    assert all(text[-1] == END for text in wrong if len(text) < 30)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_greedy_is_plain_greedy_at_every_depth(depth):
    plain = list(outputs(Sampler(), 1, depth=0, tokens=24))
    for rule in ("rejection", "match"):
        assert list(outputs(Sampler(), 1, depth=depth, tokens=24, rule=rule)) == plain


def test_match_gives_plain_tokens_for_the_same_seed_and_rejection_does_not():
    plain = list(outputs(CUT, 40, depth=0, tokens=12))
    assert list(outputs(CUT, 40, depth=4, tokens=12, rule="match")) == plain
    assert list(outputs(CUT, 40, depth=4, tokens=12, rule="rejection")) != plain


def test_penalties_are_of_the_text_at_each_draft():
    penalties = Penalties(presence=0.7, frequency=0.3, repetition=1.2)
    texts = []
    for depth in (0, 4):
        sampler = Sampler(temperature=1.0, seed=5)
        request = Request(PROMPT, 20, sampler, penalties, depth)
        generation = Generation(MODELS, request, rule="match")
        list(generation.steps())
        texts.append(generation.output)
    assert texts[0] == texts[1]
    assert penalties.applied([2.0, -2.0, 1.0], [1], [0, 0]) == pytest.approx(
        [2 / 1.2 - 0.7 - 0.6, -2.4, 1.0]
    )


def test_a_race_draws_in_proportion():
    weights = [0.5, 0.0, 0.3, 0.2]
    drawn = [race(weights, exponentials(1, i, "x", 4)) for i in range(2000)]
    shares = [drawn.count(token) / 2000 for token in range(4)]
    assert shares == pytest.approx(weights, abs=0.03)


class TestService:
    def ask(self, double, **options):
        return Direct(double).ask(Ask(PROMPT, 12, temperature=1.0, **options))

    def test_counts_drafts_and_gives_raw_log_probabilities(self):
        double = Double()
        reply = self.ask(double, seed=1, logprobs=3)
        assert reply.drafted == double.drafted > 0
        assert reply.accepted == double.accepted
        for position, (token, row) in enumerate(zip(reply.tokens, reply.top, strict=True)):
            p = exact(Sampler(temperature=1.0), (*PROMPT, *reply.tokens[:position]))
            assert math.exp(reply.chosen[position]) == pytest.approx(p[token])
            assert len(row) == 3
            assert all(a >= b for a, b in pairwise(row.values()))
        assert self.ask(double, seed=1).chosen is None

    def test_a_seed_repeats_and_no_seed_does_not(self):
        double = Double()
        assert self.ask(double, seed=7).tokens == self.ask(double, seed=7).tokens
        assert len({self.ask(double).tokens for _ in range(8)}) > 1

    def test_speculation_is_switched_by_request(self):
        double = Double(Settings(depth=3))
        assert self.ask(double, extra={"speculative": False}).drafted == 0
        deep = self.ask(double, seed=2, extra={"num_speculative_tokens": 6})
        assert deep.drafted > self.ask(double, seed=2).drafted

    def test_a_cached_answer_returns_with_speculation_alone(self):
        double = Double(Settings(fault="cached-answers"))
        assert len({self.ask(double).tokens for _ in range(6)}) == 1
        off = {"speculative": False}
        assert len({self.ask(double, extra=off).tokens for _ in range(6)}) > 1

    def test_many_at_once_are_answered_in_order(self):
        asks = [Ask(PROMPT, 6, temperature=1.0, seed=seed) for seed in range(20)]
        engine = Direct(Double())
        alone = [reply.tokens for reply in engine.ask_all(asks, 1)]
        assert [reply.tokens for reply in engine.ask_all(asks, 4)] == alone

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"fault": "one-hot"}, "unknown fault 'one-hot'"),
            ({"rule": "matches"}, "unknown rule 'matches'"),
            ({"depth": -1}, "draft depth"),
        ],
    )
    def test_refuses_wrong_settings(self, options, said):
        with pytest.raises(BenchError, match=said):
            Settings(**options)

    def test_refuses_tokens_that_it_does_not_have(self):
        with pytest.raises(BenchError, match="tokens below 24"):
            Direct(Double()).ask(Ask((24,), 4))

"""Tests of sampled answers: do both sides draw them from one distribution?

Both sides answer the same prompts with seeds of their own, round by round. Each test bets on the
answers of a round by what earlier rounds taught it (`betting`), so that one may look after every
round; a finding is kept with the number of answers that it took.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Sequence
from math import exp, log
from random import Random
from typing import NamedTuple

from fspad_bench.lossless.checks import ELSEWHERE, FAIL, INCONCLUSIVE, PASS, Check
from fspad_bench.serving.certify.betting import (
    Chains,
    Drawn,
    Families,
    Group,
    TwoSamples,
    Wealth,
    detectable,
)
from fspad_bench.serving.certify.observation import END, Observation

BINS = 4  # of lengths and of log-probabilities
U_BINS = 16
JITTER = 0.1  # nats, far above a rounding of a mean and below a shift that matters
BLOCK = 8  # answers to one prompt
EIGHTHS = 8  # of an answer's limit, for stops
LARGEST = 0.5  # total variation: a test that would not have seen as much does not pass
LARGEST_OF_REPEATS = 0.95  # cached answers shift their number by nearly 1


class Round(NamedTuple):
    """Answers of both sides, prompt by prompt, as many of each."""

    served: list[list[Observation]]
    plain: list[list[Observation]]

    @property
    def size(self) -> int:
        return sum(map(len, self.served))


class Comparison(ABC):
    """A test of one hypothesis; `taken` counts the served answers up to its finding."""

    name: str
    unit: str
    largest = LARGEST

    def __init__(self) -> None:
        self.wealth: Wealth = TwoSamples()
        self.answers = 0
        self.taken: int | None = None

    def round(self, answers: Round, alpha: float) -> None:
        """Bet on a round, and note whether that made it a finding."""
        self.bet(answers)
        self.answers += answers.size
        if self.taken is None and self.wealth.rejects(alpha):
            self.taken = self.answers

    @abstractmethod
    def bet(self, answers: Round) -> None: ...

    def groups(self) -> list[Group]:
        assert isinstance(self.wealth, TwoSamples)
        return self.wealth.groups()

    def shift(self, alpha: float) -> float:
        """Return the least total variation that the answers so far reveal with 90% power."""
        if self.wealth.most < -log(alpha):
            return 1.0
        return detectable(self.groups(), alpha, len(self.wealth.logs))

    def absent(self) -> str:
        """Return what the servers do not give the test, nothing where it has what it needs."""
        return ""

    def check(self, subject: str, alpha: float) -> Check:
        """Return the verdict so far."""
        bound = f"e {1 / alpha:.0f}"
        e = f"e {_power_of_ten(self.wealth.highest)}"
        if self.taken is not None:
            figure = f"{e} after {self.taken} answers a side"
            return Check(self.name, subject, FAIL, figure, bound)
        if self.absent():
            return Check(self.name, subject, ELSEWHERE, self.absent())
        shift = self.shift(alpha)
        seen = (
            f"TV {shift:.3f} of {self.unit} detectable" if shift < 0.999 else "nothing detectable"
        )
        figure = f"{e}, {self.answers} answers a side: {seen}"
        if shift < self.largest:
            return Check(self.name, subject, PASS, figure, bound)
        return Check(self.name, subject, INCONCLUSIVE, f"too few answers; {figure}", bound)


class Tokens(Comparison):
    """The next token after each prefix that both sides came to."""

    name = "tokens"
    unit = "the next token"

    def bet(self, answers: Round) -> None:
        assert isinstance(self.wealth, TwoSamples)
        self.wealth.round(_prefixes(answers.served), _prefixes(answers.plain))


class WholeTexts(Comparison):
    """Whole answers: their tokens after none, one and two others, and by position."""

    name = "texts"
    unit = "tokens, everywhere alike,"
    families = 4

    def __init__(self) -> None:
        super().__init__()
        self.wealth: Chains = Chains(self.families)

    def bet(self, answers: Round) -> None:
        for served, plain in zip(answers.served, answers.plain, strict=True):
            ours = [self.draws(answer) for answer in served]
            theirs = [self.draws(answer) for answer in plain]
            self.wealth.round(ours, theirs)

    def draws(self, answer: Observation) -> Families:
        """Return what the test knows of an answer; its end counts as a token."""
        tokens = [*answer.tokens, answer.end]
        after = [
            [(tuple(tokens[max(0, i - n) : i]), token) for i, token in enumerate(tokens)]
            for n in range(3)
        ]
        return [*after, list(enumerate(tokens))]

    def groups(self) -> list[Group]:
        return self.wealth.group()


class Lengths(Comparison):
    """The lengths of answers, by quarters of what the prompt's answers have been."""

    name = "lengths"
    unit = "lengths"
    jitter = 0.0  # of each value, either way: differences far below it are none

    def __init__(self) -> None:
        super().__init__()
        self.past: dict[int, list[float]] = {}
        self.dice = Random(self.name)

    def value(self, answer: Observation) -> float | None:
        return float(len(answer.tokens))

    def bet(self, answers: Round) -> None:
        assert isinstance(self.wealth, TwoSamples)
        if not self.past:  # the edges are those of the first round, which is not bet on
            for prompt, sides in enumerate(zip(answers.served, answers.plain, strict=True)):
                self.past[prompt] = sorted(self._values([a for side in sides for a in side]))
        self.wealth.round(self._binned(answers.served), self._binned(answers.plain))

    def _binned(self, side: Sequence[Sequence[Observation]]) -> list[Drawn]:
        drawn: list[Drawn] = []
        for prompt, answers in enumerate(side):
            past = self.past.get(prompt)
            if past:
                edges = [past[len(past) * i // BINS] for i in range(1, BINS)]
                values = self._values(answers)
                drawn += [(prompt, bisect_right(edges, value)) for value in values]
        return drawn

    def _values(self, answers: Sequence[Observation]) -> list[float]:
        known = [value for value in map(self.value, answers) if value is not None]
        return [value + self.dice.uniform(-self.jitter, self.jitter) for value in known]


class Stops(Comparison):
    """The places where answers stop, in eighths of the limit, and with which word."""

    name = "stops"
    unit = "places of stops"

    def __init__(self, max_tokens: int) -> None:
        super().__init__()
        self.max_tokens = max_tokens

    def bet(self, answers: Round) -> None:
        assert isinstance(self.wealth, TwoSamples)
        self.wealth.round(self._ends(answers.served), self._ends(answers.plain))

    def _ends(self, side: Sequence[Sequence[Observation]]) -> list[Drawn]:
        return [
            (prompt, (answer.finish, len(answer.tokens) * EIGHTHS // self.max_tokens))
            for prompt, answers in enumerate(side)
            for answer in answers
        ]


class LogProbabilities(Lengths):
    """The mean log-probability of an answer's tokens, by quarters as lengths are.

    A server scores an answer by other products with speculation than without, so the same likely
    answer has means that differ by a rounding, which an edge between them would tell apart: each
    mean gets a noise of its own.

    `reason`: why the two servers' are not compared.
    """

    name = "log-probs"
    unit = "their means"
    jitter = JITTER

    def __init__(self, reason: str = "") -> None:
        super().__init__()
        self.reason = reason

    def bet(self, answers: Round) -> None:
        self.reason = self.reason or missing("log-probs", answers, lambda one: one.chosen)
        if not self.reason:
            super().bet(answers)

    def value(self, answer: Observation) -> float | None:
        return sum(answer.chosen) / len(answer.chosen) if answer.chosen else None

    def absent(self) -> str:
        return self.reason


class Repeats(Comparison):
    """The number of distinct ones among eight answers to a prompt: cached ones are too alike."""

    name = "repeats"
    unit = "the number of distinct answers"
    largest = LARGEST_OF_REPEATS

    def bet(self, answers: Round) -> None:
        assert isinstance(self.wealth, TwoSamples)
        self.wealth.round(_distinct(answers.served), _distinct(answers.plain))


class Pit(WholeTexts):
    """The places of tokens in their own server's distribution (`pit`).

    `reason`: why the two servers' are not compared.
    """

    name = "PIT"
    unit = "u"
    families = 1

    def __init__(self, reason: str = "") -> None:
        super().__init__()
        self.reason = reason

    def bet(self, answers: Round) -> None:
        self.reason = self.reason or missing("alternatives", answers, lambda one: one.u)
        if not self.reason:
            super().bet(answers)

    def draws(self, answer: Observation) -> Families:
        """Return the bins of u."""
        return [[((), min(U_BINS - 1, int(u * U_BINS))) for u in answer.u or ()]]

    def absent(self) -> str:
        return self.reason


def missing(what: str, answers: Round, of: Callable[[Observation], Sequence[float] | None]) -> str:
    """Return that a side's answers lack one value a token, nothing where none does.

    A part of the answers is not enough: a server may leave out those in which a draft was accepted.
    """
    counts = {}
    for side, kept in answers._asdict().items():
        every = [answer for one in kept for answer in one if answer.tokens]
        lacking = sum(len(of(answer) or ()) != len(answer.tokens) for answer in every)
        counts[side] = (lacking, len(every))
    if all(lacking == count > 0 for lacking, count in counts.values()):
        return f"neither side returns {what}"
    for side, (lacking, count) in counts.items():
        if lacking:
            return f"the {side} side returns no {what} with {lacking} of {count} answers"
    return ""


def _prefixes(side: Sequence[Sequence[Observation]]) -> list[Drawn]:
    drawn: list[Drawn] = []
    for prompt, answers in enumerate(side):
        for answer in answers:
            tokens = (*answer.tokens, answer.end) if answer.end == END else answer.tokens
            drawn += [((prompt, tokens[:i]), token) for i, token in enumerate(tokens)]
    return drawn


def _distinct(side: Sequence[Sequence[Observation]]) -> list[Drawn]:
    """Return the number of distinct answers in every block of BLOCK to one prompt."""
    return [
        ("distinct", len({answer.tokens for answer in answers[i : i + BLOCK]}))
        for answers in side
        for i in range(0, len(answers), BLOCK)
    ]


def _power_of_ten(logarithm: float) -> str:
    return f"{exp(logarithm):.2g}" if logarithm < 7 else f"10^{logarithm / log(10):.1f}"

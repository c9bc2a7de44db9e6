"""Is it one model on both sides? What they say of the first token, which no draft has touched."""

from __future__ import annotations

import math
from statistics import median
from typing import NamedTuple

from fspad_bench.serving.certify.observation import Observation
from fspad_bench.serving.certify.pair import Pair
from fspad_bench.serving.certify.pit import is_raw
from fspad_bench.serving.certify.plan import PLAIN, SERVED, Cell, Sampling
from fspad_bench.serving.engine import Ask
from fspad_bench.util.errors import BenchError

LIKELIEST = 5
NATS = 0.5  # between two servers' log-probabilities of a token, on the usual prompt
HINT = "give two servers of the same weights and tokenizer, one with speculation and one without"
HOT = Sampling(temperature=1.0)
COLD = Sampling(temperature=0.5)


class Scores(NamedTuple):
    """The distribution that log-probabilities are of.

    `raw`: the plain server's are those before the temperature. `apart`: why the two servers' are
    not compared, nothing where they are of one kind.
    """

    raw: bool = True
    apart: str = ""


def check_same_model(pair: Pair) -> Scores:
    """Compare both sides on the control prompts, asked anew each time.

    Which distribution is scored is told from answers that the report file keeps, because verdicts
    depend on it. Raises BenchError where the sides serve different models.
    """
    hot = {side: _first(pair, side, HOT) for side in (SERVED, PLAIN)}
    if not all(answers[0].top for answers in hot.values()):
        _compare_tokens({side: _first(pair, side, Sampling()) for side in (SERVED, PLAIN)})
        return Scores()
    _compare_scores(hot)
    raw = {side: is_raw(_kept(pair, side, HOT), _kept(pair, side, COLD)) for side in hot}
    apart = "" if raw[SERVED] == raw[PLAIN] else "only one side's are those before the temperature"
    return Scores(raw[PLAIN], apart)


def _first(pair: Pair, side: str, sampling: Sampling) -> list[Observation]:
    return pair.send(side, _asks(pair, side, sampling), 1)


def _kept(pair: Pair, side: str, sampling: Sampling) -> list[Observation]:
    return pair.ask(f"first tokens | {sampling.name}", side, _asks(pair, side, sampling), 1)


def _asks(pair: Pair, side: str, sampling: Sampling) -> list[Ask]:
    cell = Cell(sampling)
    return [
        pair.plan.ask(side, cell, prompt, seed=1, max_tokens=1)
        for prompt in pair.plan.prompts_of(cell)
    ]


def _compare_scores(hot: dict[str, list[Observation]]) -> None:
    apart = [distance(a, b) for a, b in zip(hot[PLAIN], hot[SERVED], strict=True)]
    if median(apart) > NATS:
        raise BenchError(
            "the two servers do not serve the same model: log-probabilities of the first token "
            f"are {median(apart):.2g} nats apart on the usual prompt",
            HINT,
        )


def _compare_tokens(greedy: dict[str, list[Observation]]) -> None:
    same = [a.tokens == b.tokens for a, b in zip(greedy[PLAIN], greedy[SERVED], strict=True)]
    if sum(same) * 2 < len(same):
        raise BenchError(
            "the two servers do not serve the same model: their greedy first tokens agree on "
            f"{sum(same)} of {len(same)} prompts",
            HINT,
        )


def distance(plain: Observation, served: Observation) -> float:
    """Return the largest difference in the log-probabilities of the plain server's likeliest."""
    if not (plain.top and served.top):
        return math.inf if bool(plain.top) != bool(served.top) else 0.0
    ours = plain.top[0]
    theirs = served.top[0]
    likeliest = sorted(ours, key=lambda token: -ours[token])[:LIKELIEST]
    least = min(theirs.values())
    gaps = [
        abs(ours[token] - theirs[token]) if token in theirs else max(0.0, ours[token] - least)
        for token in likeliest
    ]
    return max(gaps)

"""Two servers of different models are told at once."""

import math
from dataclasses import replace

import pytest
from cells import Through, answer, by_name, checks, pair, plan

from fspad_bench.serving.certify.ledger import Ledger
from fspad_bench.serving.certify.pair import Pair
from fspad_bench.serving.certify.same_model import Scores, check_same_model, distance
from fspad_bench.util.errors import BenchError


class Silent(Through):
    """A server that returns no log-probabilities."""

    def ask_all(self, asks, concurrency):
        replies = self.engine.ask_all(asks, concurrency)
        return [replace(reply, chosen=None, top=None) for reply in replies]


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (lambda x: x, "log-probabilities of the first token are"),
        (Silent, "greedy first tokens agree on 0 of 3 prompts"),
    ],
)
def test_another_model_is_refused(wrap, words, tmp_path):
    engines = tuple(map(wrap, pair(salt=9)))
    one = plan("greedy", prompts=((3, 5), (11, 5), (9, 9)))
    with pytest.raises(BenchError, match="do not serve the same model") as error:
        checks(engines, one, tmp_path / "report.jsonl")
    assert words in error.value.message
    assert len((tmp_path / "report.jsonl").read_text().splitlines()) == 1  # asked again next time


def test_the_distance_is_that_of_the_likeliest_tokens():
    one = answer([1], rival=2, gap=1.0)
    assert distance(one, one) == 0.0
    assert distance(one, answer([1], rival=2, gap=1.4)) == pytest.approx(0.4)
    assert distance(one, answer([1], rival=3, gap=1.0)) == pytest.approx(7.9)  # 2 is not listed


class Processed(Silent):
    """A server whose log-probabilities are those after the temperature."""

    def ask_all(self, asks, concurrency):
        replies = self.engine.ask_all(asks, concurrency)
        return [
            replace(reply, top=tuple(heated(row, ask.temperature or 1) for row in reply.top))
            for ask, reply in zip(asks, replies, strict=True)
        ]


class Wavering(Silent):
    """A server whose log-probabilities differ by 0.01 nats from time to time."""

    def ask_all(self, asks, concurrency):
        replies = self.engine.ask_all(asks, concurrency)
        return [
            replace(reply, top=tuple(wavered(row, ask.temperature) for row in reply.top))
            for ask, reply in zip(asks, replies, strict=True)
        ]


def wavered(row, temperature):
    return {token: x + (0.01 if temperature < 1 and token % 2 else 0) for token, x in row.items()}


def heated(row, temperature):
    total = sum(math.exp(x / temperature) for x in row.values())
    return {token: x / temperature - math.log(total) for token, x in row.items()}


def test_log_probabilities_of_two_kinds_are_told_apart():
    served, plain = pair()
    one = plan("temperature=0.7", rounds=1, logprobs=24)
    found = by_name(checks((Processed(served), plain), one))
    for name in ("log-probs", "PIT"):
        assert found[name].figure == "only one side's are those before the temperature"
    noisy = check_same_model(Pair(*map(Wavering, (served, plain)), one, Ledger(None, {})))
    assert noisy == Scores()
    raw, processed = (
        check_same_model(Pair(*engines, one, Ledger(None, {})))
        for engines in ((served, plain), (Processed(served), Processed(plain)))
    )
    assert (raw, processed) == (Scores(), Scores(raw=False))

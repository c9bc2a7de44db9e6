"""Answers generated in one batch equal the answers that each request gets alone."""

import pytest
import torch
from doubles import ARCHITECTURES, answer_all, driven, random_model

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import NotFiniteError, Sampler
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.engine import batch, batch_cache
from fspad_bench.engine.batch import Request, Wave, answer_streams
from fspad_bench.engine.batch_cache import BatchCache, common_prefix
from fspad_bench.engine.forward import FusedForward
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.models.tiny import tiny_tokenizer
from fspad_bench.util.errors import BenchError

PROMPTS = [
    [5, 9, 1],
    [5, 9, 1, 30, 30],
    [5, 9, 1, 30, 31, 2, 17],
    [8],
    [5, 9],
    [40, 41, 40, 41, 40],
    [5, 9, 1],
]
LENGTHS = [12, 3, 9, 1, 15, 7, 12]


def vanilla_answer(target, prompt, length):
    limit = Limit(length, target.stop_ids)
    return generate(target, Vanilla(target), Sampler(), prompt, limit).tokens


@pytest.fixture
def step_sizes(monkeypatch):
    """The number of sequences of every step."""
    sizes = []
    real = BatchCache.step

    def recorded(self, tokens, positions):
        sizes.append(len(tokens))
        return real(self, tokens, positions)

    monkeypatch.setattr(BatchCache, "step", recorded)
    return sizes


@pytest.mark.parametrize("slots", [1, 2, 3, 50])
def test_greedy_answers_equal_vanilla(tiny, slots):
    pairs = list(zip(PROMPTS, LENGTHS, strict=True))
    requests = [Request(prompt, 0.0, length) for prompt, length in pairs]
    answers = answer_all(tiny, requests, slots=slots, seed=[0])
    assert answers == [vanilla_answer(tiny, prompt, length) for prompt, length in pairs]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_answers_equal_vanilla_on_every_architecture(name):
    target = TransformersTarget(random_model(name), tiny_tokenizer())
    requests = [Request(prompt, 0.0, 8) for prompt in PROMPTS]
    answers = answer_all(target, requests, slots=3, seed=[0])
    assert answers == [vanilla_answer(target, prompt, 8) for prompt in PROMPTS]


def test_an_answer_ends_with_its_first_stop_id(tiny, monkeypatch):
    stop = vanilla_answer(tiny, PROMPTS[1], 6)[3]
    monkeypatch.setattr(TransformersTarget, "stop_ids", property(lambda self: frozenset([stop])))
    (answer,) = answer_all(tiny, [Request(PROMPTS[1], 0.0, 30)], slots=4, seed=[0])
    assert stop not in answer[:-1]
    assert answer[-1] == stop


def test_draws_follow_from_the_seed_and_the_index_of_the_request(tiny):
    requests = [Request(prompt, 1.0, 10) for prompt in PROMPTS]
    answers = answer_all(tiny, requests, slots=2, seed=[1, 2])
    assert answers == answer_all(tiny, requests, slots=50, seed=[1, 2])
    assert answers[0] != answers[6]  # the same prompt at another index
    assert answers != answer_all(tiny, requests, slots=2, seed=[1, 3])


def test_masked_entries_have_no_effect(tiny, monkeypatch):
    """Entries of longer sequences, and of sequences that used the slot before, must not leak."""
    requests = [Request(prompt, 0.0, 10) for prompt in PROMPTS]
    answers = answer_all(tiny, requests, slots=7, seed=[0])
    real = BatchCache.__init__

    def dirty(self, *arguments):
        real(self, *arguments)
        for keys, values in zip(self.keys, self.values, strict=True):
            keys.fill_(1e6)
            values.fill_(-1e6)

    monkeypatch.setattr(BatchCache, "__init__", dirty)
    assert answer_all(tiny, requests, slots=7, seed=[0]) == answers


def test_one_long_request_does_not_widen_the_cache_of_the_others(tiny, monkeypatch):
    sizes = []
    real = BatchCache.__init__

    def recorded(self, target, slots):
        sizes.append(slots)
        real(self, target, slots)

    monkeypatch.setattr(BatchCache, "__init__", recorded)
    requests = [Request([5, 9, n], 0.0, 6) for n in range(12)]
    requests.insert(5, Request(list(range(90)) * 30, 0.0, 6))
    answers = answer_all(tiny, requests, slots=4, seed=[0])
    assert answers == [vanilla_answer(tiny, r.prompt, r.length) for r in requests]
    assert sizes == [4, 1]


def test_the_cache_follows_its_longest_sequence(tiny, monkeypatch):
    """The cache widens for a long answer and shrinks after it; the other sequences keep theirs."""
    monkeypatch.setattr(batch_cache, "WIDEN", 4)
    monkeypatch.setattr(TransformersTarget, "stop_ids", frozenset())
    widths = []
    real = BatchCache.step

    def recorded(self, *arguments):
        logits = real(self, *arguments)
        widths.append(self.width)
        return logits

    monkeypatch.setattr(BatchCache, "step", recorded)
    requests = [Request([5, n], 0.0, 40 if n == 1 else 9) for n in range(8)]
    answers = answer_all(tiny, requests, slots=2, seed=[0])
    assert answers == [vanilla_answer(tiny, r.prompt, r.length) for r in requests]
    assert max(widths) == 44
    assert widths.index(44) < len(widths) - 1
    assert widths[-1] <= 20


def test_draws_have_the_targets_distribution(tiny):
    count = 4000
    temperature = 0.8
    requests = [Request(PROMPTS[2], temperature, 1)] * count
    answers = answer_all(tiny, requests, slots=500, seed=[7])
    with tiny.session(len(PROMPTS[2])) as session:
        logits = session.prefill(PROMPTS[2]).logits[-1]
    p = Sampler(temperature).distribution(logits)
    first_tokens = torch.tensor([answer[0] for answer in answers])
    counts = torch.bincount(first_tokens, minlength=97).double()
    likely = p * count > 5
    z = (counts - p * count)[likely] / (p * count * (1 - p))[likely].sqrt()
    assert likely.sum() > 10
    assert z.abs().max() < 4.5
    assert 0.5 < float((z**2).mean()) < 2


def test_no_step_computes_an_empty_slot(tiny, step_sizes):
    reported = []
    requests = [Request([i], 0.0, 2 + i % 9) for i in range(40)]
    answers = answer_all(tiny, requests, slots=8, seed=[0], on_tokens=reported.append)
    assert sum(reported) == sum(map(len, answers))
    # the first token of each answer comes from the prefill
    assert sum(step_sizes) == sum(len(answer) - 1 for answer in answers)
    assert sum(step_sizes) / len(step_sizes) > 4


def test_prompts_are_prefilled_in_bounded_portions(tiny, monkeypatch):
    sizes = []
    real = BatchCache.prefill

    def recorded(self, first, prompts):
        sizes.append(sum(map(len, prompts)))
        return real(self, first, prompts)

    monkeypatch.setattr(batch, "PREFILL_TOKENS", 30)
    monkeypatch.setattr(BatchCache, "prefill", recorded)
    requests = [Request(list(range(i, i + 12)), 0.0, 2) for i in range(10)]
    answer_all(tiny, requests, slots=10, seed=[0])
    assert max(sizes) <= 30


def test_no_requests_give_no_answers(tiny):
    assert answer_all(tiny, [], slots=4, seed=[0]) == []
    assert list(answer_streams(tiny, [], slots=4)) == []


def conversation(number, waves, temperature=0.0):
    """Return a stream that continues its own answers, in each wave with one prompt fewer."""
    texts = [PROMPTS[(number + i) % len(PROMPTS)] for i in range(waves)]
    for wave in range(waves):
        requests = [Request(x, temperature, 5 + 3 * i) for i, x in enumerate(texts[wave:])]
        answers = yield Wave(requests, [number, wave])
        texts[wave:] = [x + y for x, y in zip(texts[wave:], answers, strict=True)]
    return number, texts


@pytest.mark.sampled(4)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("slots", "ahead"), [(1, 1), (3, 2), (50, 5), (4, 50)])
def test_streams_return_in_order_what_each_returns_alone(tiny, slots, ahead, temperature):
    lengths = [2, 0, 5, 1, 3, 0, 2, 4]

    def reply(wave):
        return answer_all(tiny, wave.requests, slots=9, seed=wave.seed)

    expected = [driven(conversation(n, k, temperature), reply) for n, k in enumerate(lengths)]
    streams = (conversation(n, waves, temperature) for n, waves in enumerate(lengths))
    assert list(answer_streams(tiny, streams, slots=slots, ahead=ahead)) == expected


def test_at_most_ahead_streams_are_started_and_not_yielded(tiny):
    started = []
    finished = []

    def counted(number):
        started.append(number)
        assert len(started) - len(finished) <= 3
        return (yield from conversation(number, 1 + number % 3))

    for number, _ in answer_streams(tiny, map(counted, range(9)), slots=4, ahead=3):
        finished.append(number)
    assert finished == started == list(range(9))


def test_other_streams_fill_the_slots_while_one_waits(tiny, monkeypatch, step_sizes):
    monkeypatch.setattr(TransformersTarget, "stop_ids", frozenset())

    def uneven(number):
        for wave in range(3):
            lengths = [24, 4, 4, 4]
            requests = [Request([number, wave, i], 0.0, n) for i, n in enumerate(lengths)]
            yield Wave(requests, [number])

    steps = {}
    tokens = {}
    for ahead in (1, 4):
        step_sizes.clear()
        assert len(list(answer_streams(tiny, map(uneven, range(8)), slots=4, ahead=ahead))) == 8
        steps[ahead] = len(step_sizes)
        tokens[ahead] = sum(step_sizes)
    assert tokens[1] == tokens[4]
    assert steps[4] < 0.6 * steps[1]


def test_an_error_in_a_stream_is_raised(tiny):
    def broken():
        yield Wave([Request([1], 0.0, 2)], [0])
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        list(answer_streams(tiny, [conversation(0, 3), broken()], slots=2, ahead=2))


@pytest.mark.parametrize(
    ("sequences", "length"),
    [([[1, 2], [1, 2, 3]], 2), ([[1], [2]], 0), ([[4, 4]], 2), ([[1], []], 0)],
)
def test_common_prefixes(sequences, length):
    assert common_prefix(sequences) == length


def test_a_target_without_the_lean_forward_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(FusedForward, "fits", staticmethod(lambda model: False))
    target = TransformersTarget(random_model("llama"), tiny_tokenizer())
    with pytest.raises(BenchError, match="has no fused forward"):
        answer_all(target, [Request([1], 0.0, 1)], slots=1, seed=[0])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_end_the_generation(tiny, temperature, value, monkeypatch):
    real = BatchCache.step

    def damaged(self, tokens, positions):
        logits = real(self, tokens, positions)
        logits[0, 3] = value
        return logits

    monkeypatch.setattr(BatchCache, "step", damaged)
    with pytest.raises(NotFiniteError, match="are not finite"):
        answer_all(tiny, [Request([5, 9, 1], temperature, 9)], slots=2, seed=[0])

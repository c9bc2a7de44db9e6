"""Many continuations at once are what each would have been alone."""

import pytest
import torch
from doubles import ARCHITECTURES, answer_all, driven, random_model

from fspad_bench.core.loop import Limit, generate
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.engine import batch
from fspad_bench.engine.batch import Batch, Request, Wave, answer_streams, common_prefix
from fspad_bench.engine.forward import LeanForward
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.errors import BenchError
from fspad_bench.models.tiny import tiny_tokenizer

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


def alone(target, prompt, length):
    return generate(
        target, Vanilla(target), Sampler(), prompt, Limit(length, target.stop_ids)
    ).tokens


@pytest.mark.parametrize("rows", [1, 2, 3, 50])
def test_greedy_answers_are_vanillas(tiny, rows):
    requests = [
        Request(prompt, 0.0, length) for prompt, length in zip(PROMPTS, LENGTHS, strict=True)
    ]
    found = answer_all(tiny, requests, rows=rows, seed=[0])
    assert found == [
        alone(tiny, prompt, length) for prompt, length in zip(PROMPTS, LENGTHS, strict=True)
    ]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_on_every_architecture(name):
    target = TransformersTarget(random_model(name), tiny_tokenizer())
    found = answer_all(target, [Request(prompt, 0.0, 8) for prompt in PROMPTS], rows=3, seed=[0])
    assert found == [alone(target, prompt, 8) for prompt in PROMPTS]


def test_answers_end_behind_their_first_stop_id(tiny, monkeypatch):
    stop = alone(tiny, PROMPTS[1], 6)[3]
    monkeypatch.setattr(TransformersTarget, "stop_ids", property(lambda self: frozenset([stop])))
    (found,) = answer_all(tiny, [Request(PROMPTS[1], 0.0, 30)], rows=4, seed=[0])
    assert stop not in found[:-1]
    assert found[-1] == stop


def test_draws_follow_from_seed_and_place_alone(tiny):
    requests = [Request(prompt, 1.0, 10) for prompt in PROMPTS]
    found = answer_all(tiny, requests, rows=2, seed=[1, 2])
    assert found == answer_all(tiny, requests, rows=50, seed=[1, 2])
    assert found[0] != found[6]  # the same prompt, another place
    assert found != answer_all(tiny, requests, rows=2, seed=[1, 3])


def test_what_a_row_does_not_see_is_without_effect(tiny, monkeypatch):
    """Rows of other lengths stand beside it, and rows that were there before."""
    requests = [Request(prompt, 0.0, 10) for prompt in PROMPTS]
    found = answer_all(tiny, requests, rows=7, seed=[0])
    real = Batch.__init__

    def dirty(self, *arguments):
        real(self, *arguments)
        for keys, values in zip(self.keys, self.values, strict=True):
            keys.fill_(1e6)
            values.fill_(-1e6)

    monkeypatch.setattr(Batch, "__init__", dirty)
    assert answer_all(tiny, requests, rows=7, seed=[0]) == found


def test_one_long_request_does_not_widen_the_cache_of_all(tiny, monkeypatch):
    made, real = [], Batch.__init__

    def noted(self, target, rows):
        made.append(rows)
        real(self, target, rows)

    monkeypatch.setattr(Batch, "__init__", noted)
    requests = [Request([5, 9, n], 0.0, 6) for n in range(12)]
    requests.insert(5, Request(list(range(90)) * 30, 0.0, 6))
    found = answer_all(tiny, requests, rows=4, seed=[0])
    assert found == [alone(tiny, request.prompt, request.length) for request in requests]
    assert made == [4, 1]


def test_the_cache_follows_its_longest_row(tiny, monkeypatch):
    """It widens for an answer that goes on, shrinks behind it, and nothing of the others' is lost."""
    monkeypatch.setattr(batch, "WIDEN", 4)
    monkeypatch.setattr(TransformersTarget, "stop_ids", frozenset())
    widths, real = [], Batch.step
    monkeypatch.setattr(
        Batch,
        "step",
        lambda self, *arguments: (real(self, *arguments), widths.append(self.width))[0],
    )
    requests = [Request([5, n], 0.0, 40 if n == 1 else 9) for n in range(8)]
    found = answer_all(tiny, requests, rows=2, seed=[0])
    assert found == [alone(tiny, request.prompt, request.length) for request in requests]
    assert max(widths) == 44
    assert widths.index(44) < len(widths) - 1
    assert widths[-1] <= 20


def test_draws_have_the_targets_law(tiny):
    count, heat = 4000, 0.8
    found = answer_all(tiny, [Request(PROMPTS[2], heat, 1)] * count, rows=500, seed=[7])
    law = Sampler(heat).law(tiny.prefill(PROMPTS[2], 1).logits[-1])
    seen = torch.bincount(torch.tensor([said[0] for said in found]), minlength=97).double()
    likely = law * count > 5
    z = (seen - law * count)[likely] / (law * count * (1 - law))[likely].sqrt()
    assert likely.sum() > 10
    assert z.abs().max() < 4.5
    assert 0.5 < float((z**2).mean()) < 2


def test_rows_at_work_are_never_idle(tiny, monkeypatch):
    steps, real = [], Batch.step
    monkeypatch.setattr(
        Batch, "step", lambda self, tokens, at: steps.append(len(tokens)) or real(self, tokens, at)
    )
    told = []
    answers = answer_all(
        tiny, [Request([i], 0.0, 2 + i % 9) for i in range(40)], rows=8, seed=[0], told=told.append
    )
    assert sum(told) == sum(map(len, answers))
    assert sum(steps) == sum(len(said) - 1 for said in answers)  # the first token is the prefill's
    assert sum(steps) / len(steps) > 4


def test_prompts_are_prefilled_in_bounded_portions(tiny, monkeypatch):
    sizes, real = [], Batch.prefill
    monkeypatch.setattr(batch, "PREFILL_TOKENS", 30)
    monkeypatch.setattr(
        Batch,
        "prefill",
        lambda self, first, prompts: (
            sizes.append(sum(map(len, prompts))) or real(self, first, prompts)
        ),
    )
    answer_all(
        tiny, [Request(list(range(i, i + 12)), 0.0, 2) for i in range(10)], rows=10, seed=[0]
    )
    assert max(sizes) <= 30


def test_nothing_asked_is_nothing_answered(tiny):
    assert answer_all(tiny, [], rows=4, seed=[0]) == []
    assert list(answer_streams(tiny, [], rows=4)) == []


def talking(number, waves, heat=0.0):
    """A stream that asks what it was answered, again and again, each time with one prompt fewer."""
    said = [PROMPTS[(number + i) % len(PROMPTS)] for i in range(waves)]
    for wave in range(waves):
        answers = yield Wave(
            [Request(x, heat, 5 + 3 * i) for i, x in enumerate(said[wave:])], [number, wave]
        )
        said[wave:] = [x + y for x, y in zip(said[wave:], answers, strict=True)]
    return number, said


@pytest.mark.parametrize("heat", [0.0, 1.0])
@pytest.mark.parametrize(("rows", "ahead"), [(1, 1), (3, 2), (50, 5), (4, 50)])
def test_streams_come_to_what_each_comes_to_alone_and_in_their_order(tiny, rows, ahead, heat):
    lengths = [2, 0, 5, 1, 3, 0, 2, 4]

    def reply(wave):
        return answer_all(tiny, wave.requests, rows=9, seed=wave.seed)

    wanted = [driven(talking(n, waves, heat), reply) for n, waves in enumerate(lengths)]
    streams = (talking(n, waves, heat) for n, waves in enumerate(lengths))
    assert list(answer_streams(tiny, streams, rows=rows, ahead=ahead)) == wanted


def test_no_more_streams_are_begun_than_may_be_ahead(tiny):
    begun, out = [], []

    def noted(number):
        begun.append(number)
        assert len(begun) - len(out) <= 3
        return (yield from talking(number, 1 + number % 3))

    for number, _ in answer_streams(tiny, map(noted, range(9)), rows=4, ahead=3):
        out.append(number)
    assert out == begun == list(range(9))


def test_where_one_waits_for_its_last_answers_the_rows_of_others_are_at_work(tiny, monkeypatch):
    monkeypatch.setattr(TransformersTarget, "stop_ids", frozenset())
    steps, real = [], Batch.step
    monkeypatch.setattr(
        Batch, "step", lambda self, tokens, at: steps.append(len(tokens)) or real(self, tokens, at)
    )

    def uneven(number):
        for wave in range(3):
            yield Wave(
                [Request([number, wave, i], 0.0, 24 if i == 0 else 4) for i in range(4)], [number]
            )

    count = {}
    for ahead in (1, 4):
        steps.clear()
        assert len(list(answer_streams(tiny, map(uneven, range(8)), rows=4, ahead=ahead))) == 8
        count[ahead] = len(steps), sum(steps)
    assert count[1][1] == count[4][1]
    assert count[4][0] < 0.6 * count[1][0]


def test_what_goes_wrong_in_a_stream_is_heard_of(tiny):
    def broken():
        yield Wave([Request([1], 0.0, 2)], [0])
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        list(answer_streams(tiny, [talking(0, 3), broken()], rows=2, ahead=2))


@pytest.mark.parametrize(
    ("rows", "length"), [([[1, 2], [1, 2, 3]], 2), ([[1], [2]], 0), ([[4, 4]], 2), ([[1], []], 0)]
)
def test_common_prefixes(rows, length):
    assert common_prefix(rows) == length


def test_a_target_without_the_lean_forward_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(LeanForward, "fits", staticmethod(lambda model: False))
    target = TransformersTarget(random_model("llama"), tiny_tokenizer())
    with pytest.raises(BenchError, match="has no lean forward"):
        answer_all(target, [Request([1], 0.0, 1)], rows=1, seed=[0])

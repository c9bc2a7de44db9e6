"""The loop over real models gives what transformers' own `generate` does."""

from __future__ import annotations

import itertools

import pytest
import torch
from doubles import (
    ARCHITECTURES,
    SAMPLERS,
    WINDOWED,
    Clairvoyant,
    always_right,
    on_schedule,
    random_model,
    until,
    wide,
)

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.models.tiny import tiny_model

TREES_OF = ["llama", "qwen2", "qwen3", *WINDOWED]


def stock_greedy(model, prompt: list[int], count: int, stop_ids: list[int] | None) -> list[int]:
    ids = torch.tensor([prompt])
    options = {
        "do_sample": False,
        "max_new_tokens": count,
        "eos_token_id": stop_ids,
        "pad_token_id": 0,
    }
    out = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_vanilla_greedy_on_tiny_equals_generate(tiny, attention):
    stock = tiny_model()
    stock.set_attn_implementation(attention)
    stopped = 0
    for text, count in (
        ("hello", 1),
        ("u:what?<|end|>a:", 2),
        ("The quick brown fox", 80),
        ("a" * 50, 61),
    ):
        prompt = tiny.tokenizer(text)["input_ids"]
        free = generate(tiny, Vanilla(tiny), Sampler(), prompt, Limit(count)).tokens
        assert free == stock_greedy(stock, prompt, count, None)
        ends = frozenset(free[count // 2 : count // 2 + 1])
        ended = generate(tiny, Vanilla(tiny), Sampler(), prompt, Limit(count, ends)).tokens
        assert ended == stock_greedy(stock, prompt, count, list(ends)) == until(free, ends)
        stopped += len(ended) < count
    assert stopped


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_vanilla_greedy_equals_generate(name):
    stock = random_model(name)
    target = TransformersTarget(random_model(name), None)
    seen = set()
    for prompt in ([1], [5, 6, 7] * 9, list(range(20, 50))):
        tokens = generate(target, Vanilla(target), Sampler(), prompt, Limit(40)).tokens
        assert tokens == stock_greedy(stock, prompt, 40, None)
        seen |= set(tokens)
    assert len(seen) > 8


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("name", "sampler"),
    [  # each greedy, and each with another sampler
        *itertools.product(TREES_OF, SAMPLERS[:1]),
        *zip(TREES_OF, SAMPLERS[1:], strict=True),
    ],
    ids=str,
)
def test_a_wide_tree_changes_nothing(name, sampler):
    target = TransformersTarget(random_model(name), None)
    prompt = [5, 6, 7, 8]
    truth = generate(target, Vanilla(target), sampler, prompt, Limit(32)).tokens
    for shape in (always_right(6), on_schedule([0, 2, 1], 53), wide(5, 53)):
        drafter = Clairvoyant(prompt + truth, shape)
        generation = generate(target, drafter, sampler, prompt, Limit(25))
        assert generation.tokens == truth[:25]
        assert max(generation.committed) > 1


def test_a_draft_may_reach_past_the_end_of_the_context():
    target = TransformersTarget(random_model("llama", max_position_embeddings=40), None)
    prompt = [5, 6, 7, 8]
    truth = generate(target, Vanilla(target), Sampler(), prompt, Limit(36)).tokens
    drafter = Clairvoyant(prompt + truth + [1] * 100, always_right(30))
    generation = generate(target, drafter, Sampler(), prompt, Limit(36))
    assert generation.tokens == truth


def test_sampled_text_of_tiny_depends_on_the_seed(tiny):
    prompt = tiny.tokenizer("hello")["input_ids"]
    texts = [
        tuple(generate(tiny, Vanilla(tiny), Sampler(1.0, seed=s), prompt, Limit(20)).tokens)
        for s in (0, 1, 0)
    ]
    assert texts[0] == texts[2] != texts[1]

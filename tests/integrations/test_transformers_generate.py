"""transformers' own generate and prompt lookup as foreign decoders."""

import copy

import pytest

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.integrations.transformers_generate import StockGenerate, StockPromptLookup
from fspad_bench.util.errors import BenchError

STOCK = [StockGenerate, StockPromptLookup]
AGAIN = [40, 41, 42, 43, 44, 45] * 3


@pytest.mark.parametrize("stock", STOCK)
@pytest.mark.parametrize("length", [1, 2, 25])
def test_its_tokens_are_vanillas_and_only_decoding_is_timed(tiny, stock, length):
    limit = Limit(length, tiny.stop_ids)
    generation = stock(tiny).generate(AGAIN, Sampler(), limit)
    assert generation.tokens == generate(tiny, Vanilla(tiny), Sampler(), AGAIN, limit).tokens
    assert generation.prefill_seconds > 0
    assert generation.decode_seconds > 0
    assert generation.forwards == len(generation.committed)


def test_plain_steps_have_a_token_each(tiny):
    generation = StockGenerate(tiny).generate(AGAIN, Sampler(), Limit(25))
    assert generation.committed == [1] * 24


def test_lookup_saves_steps(tiny):
    generation = StockPromptLookup(tiny).generate(AGAIN, Sampler(), Limit(60))
    assert len(generation.tokens) == 60
    assert max(generation.committed) > 1
    assert 0 < len(generation.tokens) - sum(generation.committed) <= 11


@pytest.mark.parametrize("stock", STOCK)
def test_sampling_is_refused(tiny, stock):
    with pytest.raises(BenchError, match=f"{stock.__name__} is greedy"):
        stock(tiny).generate([40], Sampler(temperature=1.0), Limit(3))


def test_drafting_no_tokens_is_refused(tiny):
    with pytest.raises(BenchError, match="tokens=0 is out of range"):
        StockPromptLookup(tiny, tokens=0)


SETTINGS = [
    {"no_repeat_ngram_size": 2},
    {"repetition_penalty": 1.3},
    {"num_beams": 3},
    {"use_cache": False},
    {"do_sample": True, "temperature": 0.1, "top_k": 3, "top_p": 0.5},
    {"max_length": 5},
    {"max_new_tokens": 2},
    {"min_new_tokens": 30, "suppress_tokens": [40, 41, 42, 43]},
    {"cache_implementation": "static"},
    {"prompt_lookup_num_tokens": 4},
    {"forced_eos_token_id": 96, "exponential_decay_length_penalty": [1, 2.0]},
    {"stop_strings": ["a"], "guidance_scale": 2.0},
]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: next(iter(settings)))
@pytest.mark.parametrize("stock", STOCK)
def test_settings_of_the_target_change_neither_text_nor_steps(tiny, monkeypatch, stock, settings):
    limit = Limit(12, tiny.stop_ids)
    expected = stock(tiny).generate(AGAIN, Sampler(), limit)
    own = copy.deepcopy(tiny.model.generation_config)
    for name, value in settings.items():
        setattr(own, name, value)
    monkeypatch.setattr(tiny.model, "generation_config", own)
    monkeypatch.setattr(tiny.model.config, "use_cache", settings.get("use_cache", True))
    generation = stock(tiny).generate(AGAIN, Sampler(), limit)
    assert generation.tokens == expected.tokens
    assert generation.committed == expected.committed
    assert generation.tokens == generate(tiny, Vanilla(tiny), Sampler(), AGAIN, limit).tokens


def test_the_cache_is_used_whatever_the_target_says(tiny, monkeypatch):
    monkeypatch.setattr(tiny.model.generation_config, "use_cache", False)
    monkeypatch.setattr(tiny.model.config, "use_cache", False)
    stock = StockGenerate(tiny)
    lengths = []
    stock.model.register_forward_pre_hook(
        lambda module, arguments, given: lengths.append(given["input_ids"].shape[1]),
        with_kwargs=True,
    )
    stock.generate(AGAIN, Sampler(), Limit(6))
    assert lengths == [len(AGAIN), 1, 1, 1, 1, 1]


@pytest.mark.parametrize("tokens", [-1, 128, 10**9])
def test_drafts_of_absurd_length_are_refused(tiny, tokens):
    with pytest.raises(BenchError, match=f"tokens={tokens} is out of range"):
        StockPromptLookup(tiny, tokens=tokens)

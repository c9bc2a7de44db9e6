"""transformers' own generate and prompt lookup as foreign decoders."""

import pytest

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.errors import BenchError
from fspad_bench.integrations.transformers_generate import StockGenerate, StockPromptLookup

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

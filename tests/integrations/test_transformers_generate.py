"""transformers' own generate and prompt lookup as foreign decoders."""

import pytest

from fspad_bench.core.loop import Limit, generate
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.errors import BenchError
from fspad_bench.integrations.transformers_generate import StockGenerate, StockPromptLookup

STOCK = [StockGenerate, StockPromptLookup]
AGAIN = [40, 41, 42, 43, 44, 45] * 3


@pytest.mark.parametrize("stock", STOCK)
@pytest.mark.parametrize("length", [1, 2, 25])
def test_it_says_what_vanilla_says_and_times_only_the_decoding(tiny, stock, length):
    limit = Limit(length, tiny.stop_ids)
    made = stock(tiny).generate(AGAIN, Sampler(), limit)
    assert made.tokens == generate(tiny, Vanilla(tiny), Sampler(), AGAIN, limit).tokens
    assert made.prefill_seconds > 0
    assert made.decode_seconds > 0
    assert made.forwards == len(made.committed)


def test_plain_steps_have_a_token_each(tiny):
    made = StockGenerate(tiny).generate(AGAIN, Sampler(), Limit(25))
    assert made.committed == [1] * 24


def test_lookup_saves_steps(tiny):
    made = StockPromptLookup(tiny).generate(AGAIN, Sampler(), Limit(60))
    assert len(made.tokens) == 60
    assert max(made.committed) > 1
    assert 0 < len(made.tokens) - sum(made.committed) <= 11


@pytest.mark.parametrize("stock", STOCK)
def test_sampling_is_refused(tiny, stock):
    with pytest.raises(BenchError, match=f"{stock.__name__} is greedy"):
        stock(tiny).generate([40], Sampler(temperature=1.0), Limit(3))


def test_looking_up_nothing_is_refused(tiny):
    with pytest.raises(BenchError, match="tokens=0 is out of range"):
        StockPromptLookup(tiny, tokens=0)

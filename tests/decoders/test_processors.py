"""Every registered decoder under logits processors: vanilla's tokens, one by one."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.build import Decoder, build_decoder
from fspad_bench.engine.penalties import Penalties
from fspad_bench.util import registry
from fspad_bench.util.errors import BenchError

PROMPT = [*range(30, 40), *range(30, 40)]
LIMIT = Limit(24)
PENALTIES = Penalties(1.3, 0.5, 0.2, 5).processors


def grammar(input_ids, scores):
    """Three classes of tokens, none of which follows itself."""
    scores[0, int(input_ids[0, -1]) % 3 :: 3] = -torch.inf
    return scores


SAMPLERS = {
    "greedy": Sampler(processors=PENALTIES),
    "sampled": Sampler(0.8, top_p=0.95, min_p=0.01, seed=2, processors=(*PENALTIES, grammar)),
}


@pytest.fixture(scope="module")
def vanilla(tiny):
    decoder = build_decoder("vanilla", tiny)
    return {
        name: decoder.generate(tiny, sampler, PROMPT, LIMIT).tokens
        for name, sampler in SAMPLERS.items()
    }


@pytest.mark.parametrize("sampling", SAMPLERS)
@pytest.mark.parametrize("name", [n for n in registry.names(registry.DECODERS) if n != "vanilla"])
def test_every_decoder_gives_vanillas_tokens(name, sampling, tiny, vanilla):
    decoder = build_decoder(name, tiny)
    assert decoder.verification == "match"
    tokens = decoder.generate(tiny, SAMPLERS[sampling], PROMPT, LIMIT).tokens
    assert tokens == vanilla[sampling]


def test_the_processors_change_the_text(tiny, vanilla):
    decoder = build_decoder("vanilla", tiny)
    for name, sampler in SAMPLERS.items():
        plain = decoder.generate(tiny, replace(sampler, processors=()), PROMPT, LIMIT).tokens
        assert plain != vanilla[name]
    classes = [token % 3 for token in (PROMPT[-1], *vanilla["sampled"])]
    assert all(a != b for a, b in pairwise(classes))


def test_drafts_are_accepted_under_processors(tiny):
    decoder = build_decoder("fspad", tiny)
    committed = [
        decoder.generate(tiny, sampler, PROMPT, LIMIT).committed for sampler in SAMPLERS.values()
    ]
    assert all(max(steps) >= 3 for steps in committed)


def test_an_engine_of_its_own_is_refused_by_name(tiny):
    class Elsewhere:
        def generate(self, prompt, sampler, limit):
            raise AssertionError("it was asked")

    decoder = Decoder("elsewhere", tiny, engine=Elsewhere())
    for sampler in (SAMPLERS["greedy"], Sampler(1.0, min_p=0.1)):
        with pytest.raises(BenchError, match="elsewhere is an engine of its own"):
            decoder.generate(tiny, sampler, PROMPT, LIMIT)

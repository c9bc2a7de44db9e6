"""Heads of any architecture draft for one decoder, and what they draft is lossless."""

import pytest
from recording import vanilla_tokens

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.build import build_decoder
from fspad_bench.decoders.variants import AnyHead
from fspad_bench.drafts.network import architectures
from fspad_bench.util.errors import BenchError

PROMPT = list(range(30, 52))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", [n for n, kind in architectures().items() if kind.reads_states])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_architecture_drafts_losslessly(tiny, heads, name, temperature):
    sampler = Sampler(temperature, seed=4)
    limit = Limit(24)
    drafter = AnyHead(tiny, head=str(heads[name]), nodes=12, depth=3)
    assert drafter.head.network.architecture == name
    drafted = generate(tiny, drafter, sampler, PROMPT, limit)
    assert drafted.tokens == vanilla_tokens(tiny, sampler, PROMPT, limit)


def test_the_command_in_the_docstring_builds(tiny, heads):
    label = "wide=fspad_bench.decoders.variants:AnyHead"
    decoder = build_decoder(label, tiny, {"wide": {"head": str(heads["wide"])}})
    assert decoder.drafter.head.network.architecture == "wide"


def test_a_language_model_is_no_head(tiny, heads):
    with pytest.raises(BenchError, match="'draft_model' is a language model, not a head") as raised:
        AnyHead(tiny, head=str(heads["draft_model"]))
    assert raised.value.hint == "-D draft_model.model=FOLDER drafts with it"


def test_a_decoder_for_any_head_needs_one(tiny):
    with pytest.raises(BenchError, match="needs a head"):
        AnyHead(tiny)

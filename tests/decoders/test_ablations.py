"""Heads of any architecture draft for one decoder, and what they draft is lossless."""

import pytest

from fspad_bench.core.loop import Limit, generate
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.arm import Arm
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.drafts.network import ARMS
from fspad_bench.errors import BenchError

PROMPT = list(range(30, 52))


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_arm_drafts_losslessly(tiny, heads, arm, temperature):
    sampler, limit = Sampler(temperature, seed=4), Limit(24)
    decoder = Arm(tiny, head=str(heads[arm]), nodes=12, depth=3)
    assert decoder.network.shape.arm == arm
    assert generate(tiny, decoder, sampler, PROMPT, limit).tokens == (
        generate(tiny, Vanilla(tiny), sampler, PROMPT, limit).tokens
    )


def test_an_arm_without_a_head_is_an_error(tiny):
    with pytest.raises(BenchError, match="needs the head that it is"):
        Arm(tiny)

"""Generations before anything is measured: code is compiled, caches fill, clocks rise."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import product

from fspad_bench.benchmark.guards.watch import Watch
from fspad_bench.benchmark.prompts import Prompts
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.build import Decoder
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.util.progress import Progress

WARM_UP = (
    "Describe a walk along a river in autumn.",
    "List three uses of a paper clip, one a line.",
)
WARM_UP_TOKENS = 24


def warm_up_prompts(prompts: Prompts) -> list[list[int]]:
    return [prompts.ask(text) for text in WARM_UP]


def warm_up(
    target: TransformersTarget,
    prompts: Prompts,
    decoders: Sequence[Decoder],
    samplers: Sequence[Sampler],
    watch: Watch,
    tokens: int = WARM_UP_TOKENS,
) -> None:
    """Let every decoder generate a few tokens, in every way in which it will be measured.

    One that fails here fails again, on the record.
    """
    turns = list(product(warm_up_prompts(prompts), decoders, samplers))
    with Progress("warming up", len(turns)) as progress:
        for prompt, decoder, sampler in turns:
            with suppress(Exception), watch.turn(decoder):
                decoder.generate(target, sampler, prompt, Limit(tokens))
            progress.advance(note=decoder.label)

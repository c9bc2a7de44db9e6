"""Audit differences by a target of our own, which holds the served weights."""

from __future__ import annotations

import math

from fspad_bench.benchmark.evidence import distributions
from fspad_bench.core.sampling import Sampler
from fspad_bench.engine.penalties import Penalties
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.errors import BenchError
from fspad_bench.serving.certify.greedy import Scorer
from fspad_bench.serving.certify.plan import Sampling


def scorer_of(target: TransformersTarget) -> Scorer:
    """Return what scores the lead of one token over another, in one forward of the target."""
    vocabulary = target.model.get_output_embeddings().weight.shape[0]

    def lead(
        prompt: tuple[int, ...], output: tuple[int, ...], ours: int, theirs: int, settings: Sampling
    ) -> float:
        if max(*prompt, *output, ours, theirs) >= vocabulary:
            raise BenchError(
                f"the servers return token ids beyond the target's {vocabulary}",
                "give the --target that they serve",
            )
        penalties = Penalties(settings.repetition, settings.presence, settings.frequency)
        sampler = Sampler(1.0, processors=penalties.processors)
        *_, p = distributions(target, list(prompt), [*output, ours], sampler)
        tiny = 1e-300
        return math.log(max(tiny, float(p[ours]))) - math.log(max(tiny, float(p[theirs])))

    return lead

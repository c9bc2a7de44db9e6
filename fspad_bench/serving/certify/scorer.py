"""Audit differences by a target of our own, which holds the served weights."""

from __future__ import annotations

import math

from fspad_bench.benchmark.evidence import distributions
from fspad_bench.core.sampling import Sampler
from fspad_bench.engine.penalties import Penalties
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.serving.certify.greedy import Scorer
from fspad_bench.serving.certify.observation import END
from fspad_bench.serving.certify.plan import Sampling
from fspad_bench.util.errors import BenchError

TINY = 1e-300


def scorer_of(target: TransformersTarget) -> Scorer:
    """Return what scores the lead of one token over another, in one forward of the target.

    An end is the likeliest of the target's stop ids; of a target without any the lead is nan.
    """
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
        *_, p = distributions(target, list(prompt), [*output, max(ours, theirs)], sampler)

        def log_p(token: int) -> float:
            ids = target.stop_ids if token == END else {token}
            return max((math.log(max(TINY, float(p[i]))) for i in ids), default=math.nan)

        return log_p(ours) - log_p(theirs)

    return lead

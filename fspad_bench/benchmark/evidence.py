"""The evidence of rows whose tokens need not be vanilla's: the PIT of the very outputs that were
timed, so that a rule cannot behave for `certify` alone.

The target's distributions come from one stock forward over an output, after the clock: nothing of
the decoder takes part.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fspad_bench.benchmark.record import Pit, Sample
from fspad_bench.benchmark.uniform import offsets, transform
from fspad_bench.core.sampling import Dice, Sampler
from fspad_bench.engine.target import TransformersTarget

DIGITS = 7  # of a u in a record: far below any shift that a run can see


def evidence(
    target: TransformersTarget, prompt: list[int], sample: Sample, sampler: Sampler
) -> Pit:
    """Return u of every token of a sampled output."""
    dice = Dice(sampler.streamed(f"{sampler.stream}\nevidence").key, 0)
    rows = distributions(target, prompt, sample.tokens, sampler)
    u = [
        round(transform(p, token, dice), DIGITS)
        for p, token in zip(rows, sample.tokens, strict=True)
    ]
    places = offsets(sample.committed, len(sample.tokens))
    return Pit(sample.key, sample.sample, sample.turn, sample.round, u, places)


@torch.inference_mode()
def distributions(
    target: TransformersTarget, prompt: list[int], output: list[int], sampler: Sampler
) -> Iterator[Tensor]:
    """Yield the processed distribution `[V]` before each token of `output`."""
    ids = torch.tensor([[*prompt, *output[:-1]]], device=target.device)
    hidden = target.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    for row in target.lm_head(hidden[0, len(prompt) - 1 :]):  # [V]
        yield sampler.distribution(row)

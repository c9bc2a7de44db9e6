"""The evidence of outputs, looked at after the clock: the audit of one that differs from vanilla's,
and the PIT of one whose tokens need not be vanilla's.

- The PIT is of the very outputs that were timed, so that a rule cannot behave for `certify` alone.
  The target's distributions come from one stock forward over an output: nothing of the decoder
  takes part.
- Evidence that cannot be had, for want of memory for one, ends no run: the row says so.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fspad_bench.benchmark.audit import Auditor
from fspad_bench.benchmark.guards.watch import Watch
from fspad_bench.benchmark.record import Audit, Finding, Key, Pit, Sample
from fspad_bench.benchmark.uniform import offsets, transform
from fspad_bench.core.processors import output_logits
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Dice, Sampler
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.util.memory import free_unreachable, is_out_of_memory
from fspad_bench.util.strangers import described
from fspad_bench.util.terminal import note

DIGITS = 7  # of a u in a record: far below any shift that a run can see


class Examiner:
    """Looks at the outputs of one target, between turns."""

    def __init__(self, target: TransformersTarget, watch: Watch) -> None:
        self.target = target
        self.watch = watch
        self.auditor = Auditor(target)

    def entry(
        self,
        key: Key,
        prompt: list[int],
        sample: Sample,
        vanilla: Sample,
        sampler: Sampler,
        limit: Limit,
    ) -> Audit | Pit | Finding | None:
        """Return what the record says of an output beside its tokens; None where that is nothing.

        Of all evidence that a row lacks, the first is told.
        """
        differs = not vanilla.error and sample.tokens != vanilla.tokens
        if sample.error or (key.identical and not differs):
            return None
        try:
            if not key.identical:
                return evidence(self.target, prompt, sample, sampler)
            finding = self.auditor.audit(sampler, prompt, vanilla.tokens, sample.tokens, limit)
            return Audit(sample.key, sample.sample, sample.turn, sample.round, *finding)
        except Exception as error:
            reason = described(error)
            is_full = is_out_of_memory(error)
        if is_full:
            free_unreachable()
        what = "this difference could not be audited"
        if not key.identical:
            what = "the distribution of this output could not be tested"
        note(f"{key.decoder}: {sample.sample}: {what}: {reason}")
        is_new = self.watch.is_new(sample.key, "audit")
        return Finding(sample.key, "audit", f"{what}: {reason}") if is_new else None


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
    features = target.team.features(target.model, [*prompt, *output[:-1]])
    logits = target.lm_head(features[len(prompt) - 1 :])
    for row in output_logits(logits, sampler, prompt, output):  # [V]
        yield sampler.distribution(row)

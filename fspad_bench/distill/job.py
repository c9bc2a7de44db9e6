"""The use case of `distill`: from settings to a data set with its overlap report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fspad_bench.distill import overlap
from fspad_bench.distill.conversations import tokenizer_of
from fspad_bench.distill.imported import read_given
from fspad_bench.distill.lock import exclusive
from fspad_bench.distill.overlap import Prompts
from fspad_bench.distill.writer import SHARD, SLOTS, distill_given, distill_own
from fspad_bench.models import load
from fspad_bench.util.errors import BenchError


@dataclass(frozen=True)
class DistillJob:
    """Settings of a data set.

    - `given`: a source of given conversations (see `imported.read_given`); empty for the target's
      own, of which there will be `tokens` answer tokens.
    - `regenerate`: replace the answers of given conversations by the target's.
    - `prompts`: evaluation prompts for the overlap report, `task@source` -> texts.
    - `slots`: conversations generated at once.
    - `shard`: conversations per file.
    - `device`: as in `models.load.load_target`; `dtype`: by default `models.load.training_dtype`.
    """

    output: Path
    target: str = "smollm2-135m"
    tokens: int = 1_000_000
    given: str = ""
    regenerate: bool = False
    prompts: Prompts = field(default_factory=dict)
    slots: int = SLOTS
    shard: int = SHARD
    seed: int = 0
    dtype: str | None = None
    device: str = "auto"
    threads: int | None = None


class Distilled(NamedTuple):
    """A data set, the reasons why given conversations were left out, and the overlap report."""

    folder: Path
    left_out: list[str]
    overlap: dict[str, Any]

    def overlap_summary(self) -> Iterator[str]:
        return overlap.summary(self.overlap)


def run(job: DistillJob) -> Distilled:
    """Write the data set, or continue it. Raise BenchError for settings that do not fit."""
    if job.regenerate and not job.given:
        raise BenchError("--regenerate needs given conversations", "name them with --of")
    given = read_given(job.given) if job.given else None
    with exclusive(job.output):
        pass  # a folder in use is refused before the target is loaded
    if job.threads:
        torch.set_num_threads(job.threads)
    dtype = job.dtype or load.training_dtype(job.target, job.device)
    target = load.load_target(job.target, device=job.device, dtype=dtype)
    left_out: list[str] = []
    if given is None:
        folder = distill_own(
            target,
            job.output,
            tokens=job.tokens,
            seed=job.seed,
            slots=job.slots,
            shard=job.shard,
        )
    else:
        folder = distill_given(
            target,
            job.output,
            given,
            regenerate=job.regenerate,
            seed=job.seed,
            slots=job.slots,
            shard=job.shard,
        )
        left_out = given.left_out
    report = overlap.report(folder, tokenizer_of(target), job.prompts)
    return Distilled(folder, left_out, report)

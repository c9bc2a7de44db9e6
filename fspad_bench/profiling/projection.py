"""Projection: what the steps of a record would give at other costs.

- What was accepted stays as it was recorded: the same trees, the same tokens. Each step is charged
  anew: its forward by a cost model, its drafting and the rest by what they cost there.
- So a projection tells what another machine, precision, target size or batch does to a draft of
  this quality, and nothing about the draft's quality on another target.
- Trees that were sized by the costs of one machine are replayed as they are, although that other
  machine would size them anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fspad_bench.analysis.shares import step_times, steps_of
from fspad_bench.benchmark.guards.prefill import hidden_work
from fspad_bench.benchmark.record import VANILLA, Key, Records, Sample
from fspad_bench.benchmark.record_lines import lines
from fspad_bench.benchmark.repeat import plan_of
from fspad_bench.benchmark.rows import latest
from fspad_bench.benchmark.speeds import pairs_of, speedup
from fspad_bench.decoders.label import Label
from fspad_bench.profiling.cost_models import ForwardModel, Overhead
from fspad_bench.util.errors import BenchError


class Place(NamedTuple):
    """The fields that match rows of two records."""

    decoder: str
    task: str
    temperature: float


@dataclass(frozen=True)
class Case:
    """A decoder's generations in one setting, vanilla's of that setting, and the recorded speedup:
    nan where it is not known.
    """

    key: Key
    samples: Sequence[Sample]
    vanilla: Sequence[Sample]
    recorded: float

    @property
    def place(self) -> Place:
        return Place(self.key.decoder, self.key.task, self.key.temperature)

    @property
    def tokens_per_step(self) -> float:
        return _tokens(self.samples) / sum(len(sample.committed) for sample in self.samples)


def cases(records: Records) -> list[Case]:
    """Return the decoders of a record whose steps are known, beside the vanilla of their setting.

    Engines of their own are left out: their steps are not seen.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in records.keys}
    for sample in records.samples:
        samples[sample.key].append(sample)
    vanilla = {
        key.setting: samples[name] for name, key in records.keys.items() if key.decoder == VANILLA
    }
    every = [
        _case(key, samples[name], vanilla.get(key.setting, []))
        for name, key in records.keys.items()
        if key.decoder != VANILLA and key.verification != "foreign"
    ]
    return [case for case in every if _steps_are_known(case)]


def _case(key: Key, samples: Sequence[Sample], vanilla: Sequence[Sample]) -> Case:
    own = [sample for sample in latest(samples) if not sample.error]
    pairs = pairs_of(vanilla, own)
    recorded = math.nan if hidden_work(pairs) else speedup(pairs, prefill=False).value
    return Case(key, own, [s for s in latest(vanilla) if not s.error], recorded)


def _steps_are_known(case: Case) -> bool:
    """Whether both sides made steps, and the decoder's say how much they drafted."""
    if not (_tokens(case.samples) and _tokens(case.vanilla)):
        return False
    return all(len(sample.drafted) == len(sample.committed) for sample in case.samples)


def projected(
    case: Case, forwards: ForwardModel, overhead: Overhead, vanilla_overhead: Overhead
) -> float:
    """Return the speedup of a decoder's recorded steps at these costs."""
    decoder = _seconds(case.samples, forwards, overhead) / _tokens(case.samples)
    vanilla = _seconds(case.vanilla, forwards, vanilla_overhead) / _tokens(case.vanilla)
    return vanilla / decoder


def _tokens(samples: Sequence[Sample]) -> int:
    return sum(sum(sample.committed) for sample in samples)


def _seconds(samples: Sequence[Sample], forwards: ForwardModel, overhead: Overhead) -> float:
    """Return the decode seconds of generations whose every step is charged anew."""
    steps = [step for sample in samples for step in steps_of(sample)]
    beside = len(steps) * (overhead.draft + overhead.rest)
    return beside + sum(forwards.seconds(nodes, prefix) for nodes, prefix in steps)


@dataclass(frozen=True)
class Projection:
    """A row's speedup: recorded, at other costs, and measured there where that is known."""

    place: Place
    tokens_per_step: float
    recorded: float
    projected: float
    measured: float | None = None

    @property
    def shown(self) -> str:
        return Label.of(self.place.decoder).shown

    @property
    def error(self) -> float | None:
        """The distance of the projection from the measured speedup, as a share of it."""
        return None if self.measured is None else self.projected / self.measured - 1


def project(
    cases: Sequence[Case],
    forwards: ForwardModel,
    overheads: Mapping[Place, Overhead],
    vanilla_overheads: Mapping[Place, Overhead],
    measured: Mapping[Place, float],
) -> list[Projection]:
    """Project every case. `measured`: speedups of a run at those costs, for comparison."""
    return [
        Projection(
            case.place,
            case.tokens_per_step,
            case.recorded,
            projected(case, forwards, overheads[case.place], vanilla_overheads[case.place]),
            measured.get(case.place),
        )
        for case in cases
    ]


def at_roofline(
    cases: Sequence[Case],
    forwards: ForwardModel,
    draft_cost: float | None,
    measured: Mapping[Place, float],
) -> list[Projection]:
    """Project to another target and device.

    Drafting takes the given share of a forward of one node, or the share that it took when it was
    recorded; the rest of a step takes the seconds that it took then.
    """
    overheads = {}
    vanilla_overheads = {}
    for case in cases:
        share = recorded_draft_cost(case) if draft_cost is None else draft_cost
        one_node = forwards.seconds(1, _mean_prefix(case.vanilla))
        own = Overhead.of(case.samples) or Overhead()
        vanilla = Overhead.of(case.vanilla) or Overhead()
        overheads[case.place] = Overhead(share * one_node, own.rest)
        vanilla_overheads[case.place] = Overhead(0.0, vanilla.rest)
    return project(cases, forwards, overheads, vanilla_overheads, measured)


def recorded_draft_cost(case: Case) -> float:
    """Return the seconds of a step's drafting over those of vanilla's forward, as recorded.

    Raises BenchError where they were not timed.
    """
    own = step_times(case.samples)
    vanilla = step_times(case.vanilla)
    if not (own and own.parts and vanilla and vanilla.parts):
        raise BenchError(
            f"{case.key.decoder}: the record does not say what its drafting costs",
            "say it with --draft-cost, as a share of a forward of one node",
        )
    return own.parts["draft"] / vanilla.parts["forward"]


def _mean_prefix(samples: Sequence[Sample]) -> int:
    """Return the mean length of the text behind which these generations' forwards ran."""
    lengths = [sample.prompt_tokens + len(sample.tokens) // 2 for sample in samples]
    return round(sum(lengths) / len(lengths))


def recorded_options(paths: Sequence[Path]) -> dict[str, dict[str, str]]:
    """Return the options that decoders were given in the plans of record files.

    Raises BenchError where a plan cannot be read, or two of them give other options.
    """
    plans = [plan_of(path, next(lines(path)).get("plan")) for path in paths]
    for path, plan in zip(paths, plans, strict=True):
        if plan.options != plans[0].options:
            raise BenchError(
                f"{path}: its decoders have other options than those of {paths[0]}",
                "project one of the records at a time",
            )
    return plans[0].options

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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fspad_bench.analysis.shares import step_times, steps_of
from fspad_bench.benchmark.generations import generations_of
from fspad_bench.benchmark.record import PENALTIES, VANILLA, Key, Records, Sample
from fspad_bench.benchmark.record_lines import lines
from fspad_bench.benchmark.repeat import plan_of
from fspad_bench.benchmark.speeds import speedup
from fspad_bench.decoders.label import Label
from fspad_bench.profiling.cost_models import ForwardModel, Overhead
from fspad_bench.util.errors import BenchError

SAMPLING = ("top_p", "top_k", "min_p", *PENALTIES)
"""Fields of a key that decide, with the temperature, what is accepted."""
TOLD = ("target", "dtype", "device", "threads", "machine", *SAMPLING, "max_new_tokens")
"""Fields of a key that tell rows apart; others do only where these are equal."""


class Place(NamedTuple):
    """What a probe times: a decoder on a task at a temperature. Several rows may share it."""

    decoder: str
    task: str
    temperature: float


@dataclass(frozen=True)
class Case:
    """A decoder's generations in one setting, those of vanilla that were interleaved with them, and
    the recorded speedup: nan where it is not known.
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
    own = generations_of(key, samples, vanilla)
    recorded = math.nan if own.hidden_work else speedup(own.pairs, prefill=False).value
    return Case(key, [p.decoder for p in own.pairs], [p.vanilla for p in own.pairs], recorded)


def _steps_are_known(case: Case) -> bool:
    """Whether both sides made steps, and the decoder's say how much they drafted."""
    if not (_tokens(case.samples) and _tokens(case.vanilla)):
        return False
    return all(len(sample.drafted) == len(sample.committed) for sample in case.samples)


class Overheads(NamedTuple):
    """What the steps of a case cost beside their forwards: the decoder's, and vanilla's."""

    decoder: Overhead
    vanilla: Overhead


def projected(case: Case, forwards: ForwardModel, overheads: Overheads) -> float:
    """Return the speedup of a decoder's recorded steps at these costs."""
    decoder = _seconds(case.samples, forwards, overheads.decoder) / _tokens(case.samples)
    vanilla = _seconds(case.vanilla, forwards, overheads.vanilla) / _tokens(case.vanilla)
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
    """A row's speedup: recorded, at other costs, and measured there where that is known.

    `apart`: what tells the row from others of its decoder, task and temperature, field by field.
    """

    place: Place
    tokens_per_step: float
    recorded: float
    projected: float
    measured: float | None = None
    apart: dict[str, Any] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        label = Label.of(self.place.decoder).shown
        differing = ", ".join(f"{name}={value}" for name, value in self.apart.items())
        return f"{label} ({differing})" if differing else label

    @property
    def error(self) -> float | None:
        """The distance of the projection from the measured speedup, as a share of it."""
        if self.measured is None or math.isnan(self.measured):
            return None
        return self.projected / self.measured - 1


def project(
    cases: Sequence[Case],
    forwards: ForwardModel,
    overheads: Sequence[Overheads],
    measured: Sequence[float | None],
) -> list[Projection]:
    """Project every case at its own overheads.

    `measured`: its speedup in a run at those costs, None where there is none.
    """
    return [
        Projection(
            case.place,
            case.tokens_per_step,
            case.recorded,
            projected(case, forwards, own),
            there,
            apart(case, cases),
        )
        for case, own, there in zip(cases, overheads, measured, strict=True)
    ]


def apart(case: Case, cases: Sequence[Case]) -> dict[str, Any]:
    """Return the fields of a case's key in which other cases of its place differ from it."""
    others = [other.key for other in cases if other.place == case.place]
    differing = {
        name: value
        for name, value in asdict(case.key).items()
        if any(getattr(other, name) != value for other in others)
    }
    return {name: differing[name] for name in TOLD if name in differing} or differing


def measured_speedups(
    cases: Sequence[Case], against: Sequence[Case], target: str | None = None
) -> list[float | None]:
    """Return the recorded speedup of each case's counterpart, None where it has none.

    `target`: the one that `against` must be of, where that is not the case's own. Raises BenchError
    for a place that is there twice, for another target, and for other sampling.
    """
    counterparts: dict[Place, Case] = {}
    for row in against:
        if row.place in counterparts:
            differing = ", ".join(apart(row, against))
            raise BenchError(
                f"{_name(row)} has two rows to compare with, of other {differing}",
                "give one record with --against, of one target on one machine",
            )
        counterparts[row.place] = row
    speedups: list[float | None] = []
    for case in cases:
        there = counterparts.get(case.place)
        if there is not None:
            _check_alike(case, there, target or case.key.target)
        speedups.append(there.recorded if there and math.isfinite(there.recorded) else None)
    return speedups


def _check_alike(case: Case, there: Case, target: str) -> None:
    """Raise BenchError unless two rows are of one target and one way to sample."""
    wanted = {"target": target} | {name: getattr(case.key, name) for name in SAMPLING}
    for name, value in wanted.items():
        other = getattr(there.key, name)
        if other != value:
            raise BenchError(
                f"{_name(there)} was measured with {name}={other}, and is projected with "
                f"{name}={value}",
                "give a record of the same plan with --against",
            )


def _name(case: Case) -> str:
    label = Label.of(case.key.decoder).shown
    return f"{label} on {case.key.task}, T={case.key.temperature:g}"


def at_roofline(
    cases: Sequence[Case],
    forwards: ForwardModel,
    draft_cost: float | None,
    measured: Sequence[float | None],
) -> list[Projection]:
    """Project to another target and device.

    Drafting takes the given share of a forward of one node, or the share that it took when it was
    recorded; the rest of a step takes the seconds that it took then, and nothing unless those of
    vanilla's steps are known too.
    """
    overheads = []
    for case in cases:
        share = recorded_draft_cost(case) if draft_cost is None else draft_cost
        one_node = forwards.seconds(1, _mean_prefix(case.vanilla))
        own = Overhead.of(case.samples)
        vanilla = Overhead.of(case.vanilla)
        rests = (own.rest, vanilla.rest) if own and vanilla else (0.0, 0.0)
        overheads.append(Overheads(Overhead(share * one_node, rests[0]), Overhead(0.0, rests[1])))
    return project(cases, forwards, overheads, measured)


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
    headers = {path: header for path in paths if (header := next(lines(path), None))}
    plans = {path: plan_of(path, header.get("plan")) for path, header in headers.items()}
    (first, known), *others = plans.items()
    for path, plan in others:
        if plan.options != known.options:
            raise BenchError(
                f"{path}: its decoders have other options than those of {first}",
                "project one of the records at a time",
            )
    return known.options

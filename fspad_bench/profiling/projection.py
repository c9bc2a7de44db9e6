"""Projection: what the steps of a record would give at other costs.

- What was accepted stays as it was recorded: the same trees, the same tokens. Each step is charged
  anew: its forward by a cost model, its drafting and the rest by what they cost there.
- So a projection tells what another machine, precision, target size or batch does to a draft of
  this quality, and nothing about the draft's quality on another target.
- Trees that were sized by the costs of one machine are replayed as they are, although that other
  machine would size them anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fspad_bench.benchmark.record import VANILLA, Key, Records, Sample
from fspad_bench.benchmark.record_lines import lines
from fspad_bench.benchmark.rows import latest
from fspad_bench.benchmark.speeds import Pair, speedup
from fspad_bench.decoders.label import Label
from fspad_bench.errors import BenchError
from fspad_bench.profiling.cost_models import ForwardModel, Overhead


class Place(NamedTuple):
    """The fields that match rows of two records."""

    decoder: str
    task: str
    temperature: float


@dataclass(frozen=True)
class Case:
    """A decoder's generations in one setting, and vanilla's of the same prompts."""

    key: Key
    samples: Sequence[Sample]
    vanilla: Sequence[Sample]

    @property
    def place(self) -> Place:
        return Place(self.key.decoder, self.key.task, self.key.temperature)

    @property
    def tokens_per_step(self) -> float:
        return _tokens(self.samples) / sum(len(sample.committed) for sample in self.samples)

    @property
    def measured(self) -> float:
        """Return the recorded speedup; nan where it is not known."""
        partners = {sample.place: sample for sample in self.vanilla}
        pairs = [Pair(partners[s.place], s) for s in self.samples if s.place in partners]
        return speedup(pairs, prefill=False).value


def cases(records: Records) -> list[Case]:
    """Return the decoders of a record whose steps are known, beside the vanilla of their setting.

    Engines of their own are left out: their steps are not seen.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in records.keys}
    for sample in records.samples:
        samples[sample.key].append(sample)
    whole = {name: [s for s in latest(own) if not s.error] for name, own in samples.items()}
    vanilla = {
        key.setting: whole[name] for name, key in records.keys.items() if key.decoder == VANILLA
    }
    return [
        Case(key, whole[name], vanilla[key.setting])
        for name, key in records.keys.items()
        if key.decoder != VANILLA
        and key.verification != "foreign"
        and _steps_are_known(whole[name])
        and _steps_are_known(vanilla.get(key.setting, ()), drafts=False)
    ]


def _steps_are_known(samples: Sequence[Sample], *, drafts: bool = True) -> bool:
    """Whether there are steps, and with `drafts` whether all say how much was drafted."""
    complete = all(len(sample.drafted) == len(sample.committed) for sample in samples)
    return any(sample.committed for sample in samples) and (complete or not drafts)


def recorded_overhead(samples: Iterable[Sample]) -> Overhead:
    """Return what steps cost beside their forwards, on average, when they were recorded.

    Where a device ran whole steps their parts are not known, and count as nothing.
    """
    draft = 0.0
    rest = 0.0
    steps = 0
    for sample in samples:
        steps += len(sample.committed)
        if sample.draft_seconds is not None and sample.score_seconds:
            draft += sample.draft_seconds
            rest += sample.decode_seconds - sample.draft_seconds - sample.score_seconds
    return Overhead(draft / steps, max(0.0, rest / steps)) if steps else Overhead()


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
    beside = overhead.draft + overhead.rest
    total = 0.0
    for sample in samples:
        prefix = sample.prompt_tokens
        every = sample.drafted or [0] * len(sample.committed)  # vanilla drafts nothing
        for drafted, committed in zip(every, sample.committed, strict=True):
            total += forwards.seconds(1 + drafted, prefix) + beside
            prefix += committed
    return total


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
            case.measured,
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
        rest = recorded_overhead(case.samples).rest
        overheads[case.place] = Overhead(share * one_node, rest)
        vanilla_overheads[case.place] = Overhead(0.0, recorded_overhead(case.vanilla).rest)
    return project(cases, forwards, overheads, vanilla_overheads, measured)


def recorded_draft_cost(case: Case) -> float:
    """Return the seconds of a step's drafting over those of vanilla's forward, as recorded."""
    steps = sum(len(sample.committed) for sample in case.vanilla)
    seconds = sum(sample.score_seconds or sample.decode_seconds for sample in case.vanilla)
    return recorded_overhead(case.samples).draft * steps / seconds


def _mean_prefix(samples: Sequence[Sample]) -> int:
    """Return the mean length of the text behind which these generations' forwards ran."""
    lengths = [sample.prompt_tokens + len(sample.tokens) // 2 for sample in samples]
    return round(sum(lengths) / len(lengths))


def recorded_options(paths: Sequence[Path]) -> dict[str, dict[str, str]]:
    """Return the options that decoders were given in the plans of record files.

    Raises BenchError where two plans give a decoder different ones.
    """
    options: dict[str, dict[str, str]] = {}
    for path in paths:
        plan = next(lines(path))["plan"]
        for label in plan["decoders"]:
            given = plan["options"].get(label, {})
            if options.setdefault(label, given) != given:
                raise BenchError(
                    f"{path}: {label} has other options there than in the record before",
                    "project one of the records at a time",
                )
    return options

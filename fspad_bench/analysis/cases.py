"""The generations to explain: those of a decoder on a task, or on all tasks of one place.

- A group holds what was measured at one place with one way to sample: its cases can be compared.
- A case of all tasks pools their generations, where every task has some: it is no mean of the
  tasks. Of a task that was measured several times, it holds the measurement of the most prompts,
  the same one for all decoders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

from fspad_bench.benchmark.generations import generations_of
from fspad_bench.benchmark.looping import loops
from fspad_bench.benchmark.means import SAMPLING
from fspad_bench.benchmark.record import METHOD, VANILLA, Key, Records, Sample
from fspad_bench.benchmark.recorded_costs import recorded_costs
from fspad_bench.benchmark.speeds import Pair
from fspad_bench.benchmark.times import decoded
from fspad_bench.benchmark.titles import device_of, distribution, method, names_of, task_of
from fspad_bench.decoders.label import Label
from fspad_bench.util.errors import BenchError, near

ALL_TASKS = "all tasks"
OF_A_TASK = ("task", "data_source", "data_sha256", "card_sha256", "max_new_tokens")
LEFT_OUT = (*METHOD, *OF_A_TASK)
# fields that tell places apart, those that a title shows anyway left out
TOLD = tuple(
    field.name
    for field in fields(Key)
    if field.name not in (*LEFT_OUT, *SAMPLING, "target", "dtype", "device", "threads")
)
SHOWN = 40  # characters of a field's value
SHORT = 6  # of a hash


@dataclass(frozen=True)
class Case:
    """A decoder's generations without error, and their pairs with vanilla's that have a speed.

    `paired` counts all pairs, those of which one decoded nothing included. `hidden` says what ran
    before the decode clock, in words. `costs` are what the decoder's trees were sized by, as
    recorded. `gap` says why a case has no generations.
    """

    decoder: str
    task: str
    samples: list[Sample]
    pairs: list[Pair]
    paired: int
    hidden: str
    is_foreign: bool = False
    costs: dict[str, Any] | None = None
    gap: str = ""

    @property
    def is_vanilla(self) -> bool:
        return self.decoder == VANILLA

    @property
    def is_timed(self) -> bool:
        """Whether the decode clock saw all steps: not those of a foreign engine, nor where some of
        the work ran before it.
        """
        return not (self.is_foreign or self.hidden)


class Member(NamedTuple):
    """A case with the key of its generations."""

    key: Key
    case: Case


Measurement = list[Member]
"""The members of one task that were asked the same."""


@dataclass(frozen=True)
class Group:
    """The cases of one place and one way to sample, those of all tasks last."""

    place: str
    sampling: str
    cases: list[Case]

    @property
    def title(self) -> str:
        return f"{self.place} · {self.sampling}"

    @property
    def vanilla(self) -> list[Case]:
        return [case for case in self.cases if case.is_vanilla]


def groups(
    records: Records, wanted: Sequence[str] = (), *, without_loops: bool = False
) -> list[Group]:
    """Return the groups of records with vanilla and the `wanted` decoders, all where none is named.

    Raises BenchError for a decoder that the records do not hold.
    """
    rows = {name: asdict(key) for name, key in records.keys.items()}
    titles = names_of(list(rows.values()))
    names = {name: titles[method(row)] for name, row in rows.items()}
    chosen = _chosen(records, names, wanted)
    samples: dict[str, list[Sample]] = {name: [] for name in records.keys}
    for sample in records.samples:
        samples[sample.key].append(sample)
    places: dict[tuple[object, ...], list[Member]] = {}
    for name in chosen:
        key = records.keys[name]
        vanilla = samples[_vanilla(records, key)] if _vanilla(records, key) else []
        case = _case(names[name], key, samples[name], vanilla, without_loops=without_loops)
        member = Member(key, replace(case, costs=recorded_costs(records, key)))
        places.setdefault(_place(key), []).append(member)
    firsts = [members[0].key for members in places.values()]
    differing = [field for field in TOLD if len({str(getattr(key, field)) for key in firsts}) > 1]
    return [_group(members, differing) for members in places.values()]


def pooled(cases: Sequence[Case]) -> Case:
    """Return the cases of one decoder as one, which has pairs where each of them has some."""
    has_speeds = all(case.pairs for case in cases)
    is_paired = all(case.paired for case in cases)
    return Case(
        decoder=cases[0].decoder,
        task=ALL_TASKS,
        samples=[sample for case in cases for sample in case.samples],
        pairs=[pair for case in cases for pair in case.pairs] if has_speeds else [],
        paired=sum(case.paired for case in cases) if is_paired else 0,
        hidden=next((case.hidden for case in cases if case.hidden), ""),
        is_foreign=cases[0].is_foreign,
        costs=cases[0].costs,
    )


def _chosen(records: Records, names: dict[str, str], wanted: Sequence[str]) -> list[str]:
    """Return the keys of vanilla and of the wanted decoders, by their names in a table or by their
    labels.
    """
    known = {key: {names[key], Label.of(k.decoder).shown} for key, k in records.keys.items()}
    for name in wanted:
        if not any(name in own for own in known.values()):
            raise BenchError(
                f"no decoder '{name}' in these records", near(name, set().union(*known.values()))
            )
    return [
        key
        for key, own in known.items()
        if not wanted or own & set(wanted) or records.keys[key].decoder == VANILLA
    ]


def _place(key: Key) -> tuple[object, ...]:
    """Return the fields of a setting that are not the task's."""
    return tuple(getattr(key, f.name) for f in fields(key) if f.name not in LEFT_OUT)


def _vanilla(records: Records, key: Key) -> str:
    """Return the key of vanilla in the same setting, or ''."""
    same = (
        name
        for name, other in records.keys.items()
        if other.decoder == VANILLA and other.setting == key.setting
    )
    return next(same, "")


def _case(
    name: str,
    key: Key,
    samples: Sequence[Sample],
    vanilla: Sequence[Sample],
    *,
    without_loops: bool,
) -> Case:
    own, _, pairs, hidden = generations_of(key, samples, vanilla)
    if without_loops:
        looping = {pair.decoder.place for pair in pairs if loops(pair.vanilla.tokens)}
        looping |= {sample.place for sample in own if loops(sample.tokens)}
        own = [sample for sample in own if sample.place not in looping]
        pairs = [pair for pair in pairs if pair.decoder.place not in looping]
    timed = [pair for pair in pairs if decoded(pair.vanilla) and decoded(pair.decoder)]
    foreign = key.verification == "foreign"
    return Case(name, task_of(asdict(key)), own, timed, len(pairs), hidden, is_foreign=foreign)


def _group(members: Sequence[Member], differing: Sequence[str]) -> Group:
    """Return the cases of one place, whose `differing` fields tell it from the other places."""
    row = asdict(members[0].key)
    told = [f"{name}={str(row[name])[:SHOWN]}" for name in differing]
    place = " · ".join([row["target"], row["dtype"], device_of(row), *told])
    tasks = _measurements(members)
    cases = [
        replace(member.case, task=_task(measurement, measurements))
        for measurements in tasks
        for measurement in measurements
        for member in measurement
    ]
    return Group(place, distribution(row), cases + _pools(tasks))


def _measurements(members: Sequence[Member]) -> list[list[Measurement]]:
    """Return the measurements of each task: the members that were asked the same."""
    tasks: dict[str, dict[tuple[Any, ...], Measurement]] = {}
    for member in members:
        settings = tasks.setdefault(member.case.task, {})
        settings.setdefault(member.key.setting, []).append(member)
    return [list(settings.values()) for settings in tasks.values()]


def _pools(tasks: Sequence[Sequence[Measurement]]) -> list[Case]:
    """Return a case of all tasks for each decoder, nothing where there is one task."""
    if len(tasks) == 1:
        return []
    decoders: dict[str, list[Case]] = {
        member.case.decoder: []
        for measurements in tasks
        for measurement in measurements
        for member in measurement
    }
    for measurements in tasks:
        for member in max(measurements, key=_prompts):
            if member.case.samples:
                decoders[member.case.decoder].append(member.case)
    return [_pool(name, own, len(tasks)) for name, own in decoders.items()]


def _pool(decoder: str, cases: Sequence[Case], tasks: int) -> Case:
    """Return the case of all tasks, without generations unless each of so many tasks has some."""
    measured = len({case.task for case in cases})
    if measured == tasks:
        return pooled(cases)
    gap = f"not pooled over all tasks: measured on the questions of {measured} of {tasks}"
    return Case(decoder, ALL_TASKS, [], [], 0, "", gap=gap)


def _prompts(members: Measurement) -> int:
    return max(len({sample.sample for sample in member.case.samples}) for member in members)


def _task(own: Measurement, settings: Sequence[Measurement]) -> str:
    """Return a task's name, with what tells this measurement of it from the others."""
    parts = [own[0].case.task]
    if len({members[0].key.max_new_tokens for members in settings}) > 1:
        parts.append(f"{own[0].key.max_new_tokens} tokens")
    if len({members[0].key.data_sha256 for members in settings}) > 1:
        parts.append(f"{_prompts(own)} prompts ({own[0].key.data_sha256[:SHORT]})")
    if len({members[0].key.card_sha256 for members in settings}) > 1:
        parts.append(f"card {own[0].key.card_sha256[:SHORT]}")
    return ", ".join(parts)

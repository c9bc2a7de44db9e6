"""The figures of one row in two sets of records, each with what its prompts say of the change.

- Only prompts that both sides answered count; the turns of a question are one unit.
- Speedups are compared, not speeds: each side's own vanilla was interleaved with its decoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Generic, TypeVar

from fspad_bench.benchmark.matching import Match, Side, Turn
from fspad_bench.benchmark.paired import Change, change, count_p, pooled
from fspad_bench.benchmark.record import PENALTIES, VANILLA, Sample
from fspad_bench.benchmark.rows import Row
from fspad_bench.benchmark.speeds import FEWEST_PROMPTS, Pair, cost_of
from fspad_bench.benchmark.times import decoded
from fspad_bench.decoders.label import Label

SPEEDUP = "speedup"
STEPS = "tokens/step"
VERDICT = "verdict"
BETTER = "better"
WORSE = "worse"
CHANGED = "changed"  # neither better nor worse, or not known which
SAME = "same"
UNTESTED = "untested"
DISTRUSTED = ("unverified", "lossy")  # verdicts, the worst last
SHARES = ("accuracy", "em")  # scores that count prompts, in percent
RATIO_OF_COSTS = (1, -1, -1, 1)  # vanilla's seconds and tokens, the decoder's
RATIO = (1, -1)
OF_A_MEAN = (
    *("decoder", "target", "temperature", "top_p", "top_k", "min_p"),
    *(*PENALTIES, "seed", "data_source"),
)
Item = TypeVar("Item", Sample, Pair)


@dataclass(frozen=True)
class Line:
    """A figure of a row in A and in B.

    `change` is the paired comparison of a figure that has one, `p` its p-value, `corrected` the
    same for all figures looked at, and `least` the smallest change that is found with probability
    90%, as a share. `floor` is the change of the logarithm that counts as noise. `tasks`: of how
    many tasks this is the mean.
    """

    match: Match
    figure: str
    a: float | str | None
    b: float | str | None
    state: str = UNTESTED
    change: Change | None = None
    p: float | None = None
    corrected: float | None = None
    least: float | None = None
    floor: float = 0.0
    note: str = ""
    tasks: int = 1


class Shared(Generic[Item]):
    """The items of both sides on the same prompts: `a` and `b` hold a list a question."""

    def __init__(self, a: Mapping[Turn, list[Item]], b: Mapping[Turn, list[Item]]) -> None:
        self.turns = [turn for turn in a if turn in b]
        self.questions = max(len({turn.sample for turn in side}) for side in (a, b))
        self.a: list[list[Item]] = self._by_question(a)
        self.b: list[list[Item]] = self._by_question(b)

    def _by_question(self, side: Mapping[Turn, list[Item]]) -> list[list[Item]]:
        questions: dict[str, list[Item]] = {}
        for turn in self.turns:
            questions.setdefault(turn.sample, []).extend(side[turn])
        return list(questions.values())

    @property
    def note(self) -> str:
        """A note that says how many questions are shared, where that is not all."""
        if len(self.a) == self.questions:
            return ""
        return f"{len(self.a)} of {self.questions} prompts in common"


def is_vanilla(decoder: str) -> bool:
    """Whether a label is vanilla's, or that of a copy of it, such as `vanilla@again`."""
    return Label.of(decoder).decoder == VANILLA


def lines_of(a: Side, b: Side, match: Match, floor: float) -> Iterator[Line]:
    """Yield the lines of a row; `floor` is the change of a speedup's logarithm that is noise."""
    a_samples = a.samples(match.a)
    b_samples = b.samples(match.b)
    if not is_vanilla(match.a["decoder"]):
        yield _speedup(a, b, match, floor)
        is_sized = a.is_sized(match.a) or b.is_sized(match.b)
        sized = "trees sized by the machine" if is_sized else ""
        yield _steps(match, Shared(a_samples, b_samples), sized)
    outputs = _outputs(a_samples, b_samples)
    yield _verdict(match, outputs)
    yield from _scores(match, (_scored(a, match.a), _scored(b, match.b)), outputs)


def _speedup(a: Side, b: Side, match: Match, floor: float) -> Line:
    """Compare the speedups of decoding, or end to end where one side's decoding was not timed."""
    prefill = match.a["speedup"] is None or match.b["speedup"] is None
    shared = Shared(
        {turn: _timed(pairs, prefill) for turn, pairs in a.pairs(match.a).items()},
        {turn: _timed(pairs, prefill) for turn, pairs in b.pairs(match.b).items()},
    )
    parts = [
        (_costs(of_a, prefill), _costs(of_b, prefill))
        for of_a, of_b in zip(shared.a, shared.b, strict=True)
        if of_a and of_b
    ]
    notes = [shared.note, "end to end" if prefill else ""]
    notes += ["other work was running" if match.a["noisy"] or match.b["noisy"] else ""]
    return _tested(match, SPEEDUP, parts, RATIO_OF_COSTS, _joined(notes), floor)


def _timed(pairs: Sequence[Pair], prefill: bool) -> list[Pair]:
    """Return the pairs that have a speed: both decoded something after their prefill."""
    return [p for p in pairs if prefill or (decoded(p.vanilla) and decoded(p.decoder))]


def _costs(pairs: Sequence[Pair], prefill: bool) -> tuple[float, ...]:
    vanilla = cost_of([pair.vanilla for pair in pairs], prefill=prefill)
    decoder = cost_of([pair.decoder for pair in pairs], prefill=prefill)
    return (*vanilla, *decoder)


def _steps(match: Match, shared: Shared[Sample], sized: str) -> Line:
    parts = [
        (_committed(of_a), _committed(of_b))
        for of_a, of_b in zip(shared.a, shared.b, strict=True)
        if all(map(min, (_committed(of_a), _committed(of_b))))
    ]
    same = sum(_same_steps(of_a, of_b) for of_a, of_b in zip(shared.a, shared.b, strict=True))
    exact = f"same steps: {same} of {len(shared.a)}"
    return _tested(match, STEPS, parts, RATIO, _joined([shared.note, exact, sized]), 0.0)


def _committed(samples: Sequence[Sample]) -> tuple[float, ...]:
    committed = sum(sum(sample.committed) for sample in samples)
    return committed, sum(sample.forwards for sample in samples)


def _same_steps(a: Sequence[Sample], b: Sequence[Sample]) -> bool:
    """Whether both sides committed the same tokens in the same steps."""
    return _step_facts(a) == _step_facts(b)


def _step_facts(samples: Sequence[Sample]) -> set[tuple[object, ...]]:
    return {(s.turn, s.forwards, tuple(s.committed), tuple(s.tokens)) for s in samples}


def _tested(
    match: Match,
    figure: str,
    parts: Sequence[tuple[tuple[float, ...], tuple[float, ...]]],
    powers: Sequence[int],
    note: str,
    floor: float,
) -> Line:
    """Return the line of a figure that is a ratio of sums; of few prompts it is not tested."""
    usable = [(a, b) for a, b in parts if min(*a, *b) > 0]
    if not usable:
        return Line(match, figure, None, None, note=_joined([note, "not known"]))
    a = [line for line, _ in usable]
    b = [line for _, line in usable]
    values = (_ratio(a, powers), _ratio(b, powers))
    if len(usable) < FEWEST_PROMPTS:
        few = f"fewer than {FEWEST_PROMPTS} prompts"
        return Line(match, figure, *values, note=_joined([note, few]))
    tested = change(a, b, powers)
    if tested.is_none:
        return Line(match, figure, *values, SAME, change=tested, note=note)
    return Line(match, figure, *values, change=tested, p=tested.p, floor=floor, note=note)


def _ratio(parts: Sequence[Sequence[float]], powers: Sequence[int]) -> float:
    value = 1.0
    for column, power in zip(zip(*parts, strict=True), powers, strict=True):
        value *= sum(column) ** power
    return value


def mean_lines(lines: Sequence[Line]) -> Iterator[Line]:
    """Yield the mean over tasks of each decoder's figures, where several tasks were tested.

    It finds what no task alone shows. The means of A and B are geometric, as that of their ratio.
    """
    groups: dict[tuple[object, ...], list[Line]] = {}
    for line in lines:
        if line.change is not None:
            row = line.match.a
            place = (line.figure, *(row[name] for name in OF_A_MEAN), line.match.plain_options)
            groups.setdefault(place, []).append(line)
    for group in groups.values():
        if len({line.match.a["task"] for line in group}) == len(group) > 1:
            yield _mean_line(group)


def _mean_line(group: Sequence[Line]) -> Line:
    mean = pooled([line.change for line in group if line.change is not None])
    return Line(
        group[0].match,
        group[0].figure,
        _geometric([line.a for line in group]),
        _geometric([line.b for line in group]),
        state=SAME,
        change=mean,
        p=None if mean.is_none else mean.p,
        floor=max(line.floor for line in group),
        tasks=len(group),
    )


def _geometric(values: Sequence[float | str | None]) -> float:
    return geometric_mean([float(value) for value in values if value is not None])


# outputs


def _outputs(a: Mapping[Turn, list[Sample]], b: Mapping[Turn, list[Sample]]) -> str:
    """Say on how many prompts the outputs of both sides are the same, token for token."""
    turns = [turn for turn in a if turn in b]
    differing = sum(_texts(a[turn]) != _texts(b[turn]) for turn in turns)
    if not turns:
        return "no prompt in common"
    return f"{differing} of {len(turns)} outputs differ" if differing else "the same outputs"


def _texts(samples: Sequence[Sample]) -> set[tuple[int, ...]]:
    return {tuple(sample.tokens) for sample in samples}


def _verdict(match: Match, outputs: str) -> Line:
    a = _verdict_text(match.a["verdict"], match.a["errors"])
    b = _verdict_text(match.b["verdict"], match.b["errors"])
    return Line(match, VERDICT, a, b, _verdict_state(match), note=outputs)


def _verdict_text(verdict: str, errors: int) -> str:
    return f"{verdict}, {errors} failed" if errors else verdict


def _verdict_state(match: Match) -> str:
    """Rank a change: a verdict that is trusted less, or more failures, are worse."""
    a = (_rank(match.a["verdict"]), match.a["errors"])
    b = (_rank(match.b["verdict"]), match.b["errors"])
    if a == b:
        return SAME if match.a["verdict"] == match.b["verdict"] else CHANGED
    return WORSE if b[0] > a[0] or b[1] > a[1] else BETTER


def _rank(verdict: str) -> int:
    return DISTRUSTED.index(verdict) + 1 if verdict in DISTRUSTED else 0


def _scores(match: Match, scored: Sequence[int | None], outputs: str) -> Iterator[Line]:
    """Yield a line of the headline score of equal prompts.

    Only a share of prompts has a test, where both records say of how many.
    """
    metric = match.a["metric"]
    is_comparable = match.a["data_sha256"] == match.b["data_sha256"]
    if metric is None or metric != match.b["metric"] or not is_comparable:
        return
    a = match.a["score"]
    b = match.b["score"]
    p = _share_p(match, scored) if metric in SHARES else None
    state = SAME if a == b else UNTESTED
    yield Line(match, metric, a, b, state, p=None if a == b else p, note=outputs)


def _scored(side: Side, row: Row) -> int | None:
    """Return of how many prompts a row's score is, None where its record does not say it."""
    return side.merged.scored.get(row["record_key"])


def _share_p(match: Match, scored: Sequence[int | None]) -> float | None:
    a, b = scored
    if not (a and b):
        return None
    right = [round(row["score"] * total / 100) for row, total in zip(match, (a, b), strict=True)]
    return count_p(right[0], a, right[1], b)


def _joined(notes: Sequence[str]) -> str:
    return "; ".join(note for note in notes if note)

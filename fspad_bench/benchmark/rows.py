"""Rows of a table from the lines of records, as a pure function.

- A row belongs to one key: one decoder with its options in one setting.
- Its names in JSON are a contract: names are added, never renamed. What cannot be known is None.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

from fspad_bench.benchmark import claims
from fspad_bench.benchmark.guards.prefill import hidden_work
from fspad_bench.benchmark.record import (
    SINCE_SCHEMA_2,
    UNKNOWN_RULES,
    VANILLA,
    Audit,
    Finding,
    Key,
    Pit,
    Place,
    Records,
    Sample,
)
from fspad_bench.benchmark.stats import (
    Cost,
    Interval,
    agreement,
    ratio_interval,
    ratio_of_mean_speeds,
    speedup,
)
from fspad_bench.benchmark.times import decoded, times
from fspad_bench.benchmark.uniform import Uniformity, row_uniformity
from fspad_bench.benchmark.verdict import differing_prompts, verdict
from fspad_bench.util.machine import NOISY

Row = dict[str, Any]
FEWEST_PROMPTS = 5  # for an interval
IDENTITY = tuple(field.name for field in fields(Key))
ROUNDING = (
    "decoder",
    "options",
    "target_identity",
    "target_sha256",
    "dtype",
    "forward",
    "device",
    "threads",
    "machine",
    "version",
    "source_sha256",
    "torch",
)  # fields of a key that decide how a decoder's forwards round
NO_INTERVAL = Interval(math.nan, math.nan, math.nan)


class Pair(NamedTuple):
    """Generations of vanilla and of a decoder, of the same prompt and noise, interleaved with each
    other.
    """

    vanilla: Sample
    decoder: Sample

    @property
    def differs(self) -> bool:
        return self.vanilla.tokens != self.decoder.tokens


@dataclass(frozen=True)
class Evidence:
    """Everything that the records hold about one row.

    `audits` are those of the pairs that differ. `pooled` are the audits of every row that rounds
    as this one does. `pits` are the evidence of outputs that may differ, `findings` what guards
    hold against the row.
    """

    key: Key
    samples: list[Sample]
    errors: int
    pairs: list[Pair]
    audits: list[Audit]
    pooled: list[Audit]
    pits: list[Pit]
    findings: list[Finding]
    scores: dict[str, float]

    @cached_property
    def uniform(self) -> Uniformity | None:
        return row_uniformity(self.pits, self.key.dtype)

    @property
    def tokens(self) -> int:
        return sum(len(sample.tokens) for sample in self.samples)

    @property
    def divergences(self) -> int:
        return sum(pair.differs for pair in self.pairs)


def rows(records: Records) -> list[Row]:
    """Return one row a key, vanilla first in its setting, in the order of the record."""
    samples: dict[str, list[Sample]] = {name: [] for name in records.keys}
    for sample in records.samples:
        samples[sample.key].append(sample)
    settings: dict[tuple[Any, ...], list[str]] = {}
    for name, key in records.keys.items():
        settings.setdefault(key.setting, []).append(name)
    table = []
    for names in settings.values():
        vanilla = next((name for name in names if records.keys[name].decoder == VANILLA), None)
        partners = samples[vanilla] if vanilla else []
        table += [_row(_evidence(records, name, samples[name], partners)) for name in names]
    return table


def failed(table: Sequence[Row]) -> bool:
    """Return whether a run ends with exit code 1: a row is lossy, a generation failed, or the
    target was changed meanwhile.
    """
    return any(row["verdict"] == "lossy" or row["errors"] or _retargeted(row) for row in table)


def _retargeted(row: Row) -> bool:
    return any(finding["guard"] == "target" for finding in row["findings"])


def latest(samples: Iterable[Sample]) -> list[Sample]:
    """Return the last sample of each prompt and turn: a resumed unit measures vanilla again."""
    return list({(sample.sample, sample.turn): sample for sample in samples}.values())


def _evidence(
    records: Records, name: str, samples: Sequence[Sample], partners: Sequence[Sample]
) -> Evidence:
    key = records.keys[name]
    every = latest(samples)
    complete = [sample for sample in every if not sample.error]
    pairs = _pairs(partners, complete)
    differing = {pair.decoder.place for pair in pairs if pair.differs}
    rounds_equally = {
        other for other, other_key in records.keys.items() if _rounding(other_key) == _rounding(key)
    }
    return Evidence(
        key=key,
        samples=complete,
        errors=len(every) - len(complete),
        pairs=pairs,
        audits=[a for a in records.audits if a.key == name and a.place in differing],
        pooled=[a for a in records.audits if a.key in rounds_equally],
        pits=_latest_pits(records.pits, name, complete),
        findings=[finding for finding in records.findings if finding.key == name],
        scores=records.scores.get(name, {}),
    )


def _latest_pits(pits: Iterable[Pit], name: str, complete: Sequence[Sample]) -> list[Pit]:
    places = {sample.place for sample in complete}
    return list(
        {pit.place: pit for pit in pits if pit.key == name and pit.place in places}.values()
    )


def _pairs(vanilla: Sequence[Sample], decoder: Sequence[Sample]) -> list[Pair]:
    partners: dict[Place, Sample] = {s.place: s for s in vanilla if not s.error}
    return [Pair(partners[s.place], s) for s in decoder if s.place in partners]


def _rounding(key: Key) -> str:
    return json.dumps([getattr(key, name) for name in ROUNDING], sort_keys=True, default=str)


def _row(evidence: Evidence) -> Row:
    """Return the figures of a row. The groups below stand in the order of the contract."""
    return {
        **_identity(evidence.key),
        **_identical_output(evidence),
        **_evidence_figures(evidence),
        **_speedups(evidence),
        **_steps(evidence.samples),
        **times(evidence.samples),
        **_quality(evidence.scores),
        "noisy": _noisy(evidence.samples) or _noisy([pair.vanilla for pair in evidence.pairs]),
        "errors": evidence.errors,
        "max_regret": max((max(a.decoder_regrets) for a in evidence.audits), default=None),
        "margin_error": max((a.margin_error for a in evidence.audits), default=None),
        "differing_prompts": differing_prompts(evidence.pooled),
        "claimed_tokens_per_step": claims.tokens_per_step(evidence.samples),
        "claimed_speedup": claims.decode_speedup(evidence.pairs),
        "findings": [{"guard": f.guard, "text": f.text} for f in evidence.findings],
    }


def _identity(key: Key) -> Row:
    """Return the fields of a key; `reset` is the scope by its earlier name."""
    identity = {name: getattr(key, name) for name in IDENTITY}
    unrecorded = {name: None for name in SINCE_SCHEMA_2 if not identity[name]}
    return {**identity, **unrecorded, "reset": key.reset}


def _identical_output(evidence: Evidence) -> Row:
    return {
        "samples": len({sample.sample for sample in evidence.samples}),
        "tokens": evidence.tokens,
        "verdict": _verdict(evidence),
        "divergences": evidence.divergences if evidence.pairs else None,
        "same_tokens": _same_tokens(evidence.pairs),
    }


def _verdict(evidence: Evidence) -> str:
    key = evidence.key
    if any(finding.guard == "target" for finding in evidence.findings):
        return "unverified"  # vanilla was asked of the same changed target
    if evidence.uniform is not None and not evidence.uniform.holds:
        return "lossy"
    if evidence.divergences and not key.identical:
        return "unverified" if key.verification in UNKNOWN_RULES else "law"
    if not evidence.pairs:
        return "unverified"
    return verdict(
        evidence.divergences, evidence.tokens, evidence.audits, evidence.pooled, key.dtype
    )


def _same_tokens(pairs: Sequence[Pair]) -> float | None:
    """Return the share of vanilla's tokens that come before the first difference."""
    total = sum(len(pair.vanilla.tokens) for pair in pairs)
    if not total:
        return None
    return sum(agreement(pair.vanilla.tokens, pair.decoder.tokens) for pair in pairs) / total


def _evidence_figures(evidence: Evidence) -> Row:
    """Return the test of the outputs' own distribution; None where none was recorded."""
    uniform = evidence.uniform
    return {
        "pit_tokens": sum(len(pit.u) for pit in evidence.pits) if evidence.pits else None,
        "pit_p": uniform.p if uniform else None,
        "pit_shift": uniform.shift if uniform else None,
    }


def _speedups(evidence: Evidence) -> Row:
    """Return the speedups; that of decoding is unknown where work was hidden in the prefill.

    A foreign engine has a prefill of its own, whose work no vanilla here does.
    """
    pairs = evidence.pairs
    hidden = "" if evidence.key.verification == "foreign" else hidden_work(pairs)
    decode = NO_INTERVAL if hidden else _speedup(pairs, prefill=False)
    end_to_end = _speedup(pairs, prefill=True)
    return {
        "speedup": _known(decode.value),
        "speedup_low": _known(decode.low),
        "speedup_high": _known(decode.high),
        "speedup_end_to_end": _known(end_to_end.value),
        "speedup_end_to_end_low": _known(end_to_end.low),
        "speedup_end_to_end_high": _known(end_to_end.high),
        "hidden_work": hidden or None,
        "speedup_spec_bench": _spec_bench(pairs),
    }


def _speedup(pairs: Sequence[Pair], *, prefill: bool) -> Interval:
    """Return vanilla's seconds per token over the decoder's. The turns of a prompt are one unit of
    resampling.

    The speedup is unknown where a time is: an external engine may not report its decode time. A
    pair of which one decoded nothing after its prefill has no decode speed.
    """
    usable = [p for p in pairs if prefill or (decoded(p.vanilla) and decoded(p.decoder))]
    prompts = _by_question(usable)
    vanilla = [_cost([pair.vanilla for pair in turns], prefill=prefill) for turns in prompts]
    decoder = [_cost([pair.decoder for pair in turns], prefill=prefill) for turns in prompts]
    if not prompts or not all(cost.seconds and cost.tokens for cost in (*vanilla, *decoder)):
        return NO_INTERVAL
    return _if_enough(speedup(vanilla, decoder), len(prompts))


def _spec_bench(pairs: Sequence[Pair]) -> float | None:
    """Return Spec-Bench's figure: the ratio of the means over questions of tokens per second.

    As in its script a question's turns are summed first, and the prefill counts.
    """
    questions = _by_question(pairs)
    vanilla = [_cost([pair.vanilla for pair in turns], prefill=True) for turns in questions]
    decoder = [_cost([pair.decoder for pair in turns], prefill=True) for turns in questions]
    if not questions or not all(cost.seconds and cost.tokens for cost in (*vanilla, *decoder)):
        return None
    return ratio_of_mean_speeds(vanilla, decoder)


def _by_question(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Return the pairs of each question, all its turns together."""
    questions: dict[str, list[Pair]] = {}
    for pair in pairs:
        questions.setdefault(pair.decoder.sample, []).append(pair)
    return list(questions.values())


def _cost(samples: Sequence[Sample], *, prefill: bool) -> Cost:
    seconds = sum(s.decode_seconds + prefill * s.prefill_seconds for s in samples)
    return Cost(seconds, sum(len(s.tokens) + (s.overshoot or 0) for s in samples))


def _steps(samples: Sequence[Sample]) -> Row:
    steps = _tokens_per_step(samples)
    return {
        "tokens_per_step": _known(steps.value),
        "tokens_per_step_low": _known(steps.low),
        "tokens_per_step_high": _known(steps.high),
        "partial_forwards": sum(sample.partial_forwards for sample in samples),
    }


def _tokens_per_step(samples: Sequence[Sample]) -> Interval:
    """Return tokens per full forward of the target.

    The turns of a prompt are one unit of resampling.
    """
    prompts: dict[str, list[Sample]] = {}
    for sample in samples:
        prompts.setdefault(sample.sample, []).append(sample)
    counts = []
    for group in prompts.values():
        forwards = sum(sample.forwards for sample in group)
        committed = sum(sum(sample.committed) for sample in group)
        if forwards and committed:  # a foreign engine may tell one and not the other
            counts.append((committed, forwards))
    return _if_enough(ratio_interval(counts), len(counts)) if counts else NO_INTERVAL


def _if_enough(interval: Interval, prompts: int) -> Interval:
    """Drop the ends of an interval of fewer than `FEWEST_PROMPTS`: a bootstrap would make it far
    too narrow.
    """
    if prompts >= FEWEST_PROMPTS:
        return interval
    return Interval(interval.value, math.nan, math.nan)


def _quality(scores: dict[str, float]) -> Row:
    return {
        "metric": next(iter(scores), None),
        "score": next(iter(scores.values()), None),
        "scores": scores,
    }


def _noisy(samples: Sequence[Sample]) -> bool:
    """Return whether other work used more than `NOISY` cores, on average over the time of
    `samples`.
    """
    wall = sum(s.prefill_seconds + s.decode_seconds for s in samples)
    other = sum(s.other_load * (s.prefill_seconds + s.decode_seconds) for s in samples)
    return wall > 0 and other / wall > NOISY


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value

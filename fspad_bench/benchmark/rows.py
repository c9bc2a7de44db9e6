"""Rows of a table from the lines of records, as a pure function.

- A row belongs to one key: one decoder with its options in one setting.
- Its names in JSON are a contract: names are added, never renamed. What cannot be known is None.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from fspad_bench.benchmark import claims, distrust
from fspad_bench.benchmark.definitions import definitions
from fspad_bench.benchmark.generations import generations_of
from fspad_bench.benchmark.looping import loops
from fspad_bench.benchmark.noise import add_noise
from fspad_bench.benchmark.orders import add_orders
from fspad_bench.benchmark.record import (
    SINCE_SCHEMA_2,
    UNKNOWN_RULES,
    VANILLA,
    Audit,
    Finding,
    Key,
    Pit,
    Records,
    Sample,
)
from fspad_bench.benchmark.recorded_costs import FORWARD
from fspad_bench.benchmark.repeats import repeats_differ, spread
from fspad_bench.benchmark.speeds import Pair, intervals, named, pairs_of, spec_bench
from fspad_bench.benchmark.stats import Interval, agreement
from fspad_bench.benchmark.times import decoded, times
from fspad_bench.benchmark.uniform import Uniformity, row_uniformity
from fspad_bench.benchmark.verdict import differing_prompts, verdict, worst
from fspad_bench.util.machine import NOISY

Row = dict[str, Any]
IDENTITY = tuple(field.name for field in fields(Key))
ROUNDING = ("decoder", "options", *FORWARD)  # what decides how a decoder's forwards round


@dataclass(frozen=True)
class Evidence:
    """Everything that the records hold about one row, which they call `name` and which
    `runs` of them measured.

    `pairs` are those that figures are made of, a prompt's last; `hidden_work` says what of their
    decoding ran before the decode clock. `judged` are all that were ever interleaved, equal ones
    once: what a decoder did once it did, however often the prompt was asked again. `audits` are
    those of the judged pairs that differ. `pooled` are the audits of every row that rounds as this
    one does. `pits` are the evidence of outputs that may differ, `findings` what guards hold
    against the row.
    """

    name: str
    runs: int
    key: Key
    samples: list[Sample]
    errors: int
    pairs: list[Pair]
    hidden_work: str
    judged: list[Pair]
    audits: list[Audit]
    pooled: list[Audit]
    pits: list[Pit]
    findings: list[Finding]
    scores: dict[str, float]

    @cached_property
    def uniform(self) -> Uniformity | None:
        return row_uniformity(self.pits, self.key.dtype)

    @property
    def hides_work(self) -> bool:
        """Whether the decode clock missed some decoding, so that no figure of it is known."""
        return bool(self.hidden_work)

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        return intervals(self.samples, self.pairs, hidden=self.hides_work)

    @property
    def tokens(self) -> int:
        return sum(len(sample.tokens) for sample in self.samples)

    @property
    def repeats(self) -> list[int]:
        return sorted({pair.decoder.repeat for pair in self.judged})

    @property
    def divergences(self) -> int:
        return sum(pair.differs for pair in self.judged)


def rows(records: Records) -> list[Row]:
    """Return one row a key, vanilla first in its setting, in the order of the record."""
    samples: dict[str, list[Sample]] = {name: [] for name in records.keys}
    for sample in records.samples:
        samples[sample.key].append(sample)
    settings: dict[tuple[Any, ...], list[str]] = {}
    for name, key in records.keys.items():
        group = settings.setdefault(key.setting, [])
        group.insert(0 if key.decoder == VANILLA else len(group), name)
    table = []
    for names in settings.values():
        table += _setting_rows(records, names, samples)
    return table


def _setting_rows(
    records: Records, names: Sequence[str], samples: dict[str, list[Sample]]
) -> list[Row]:
    """Return the rows of one setting, and what is known of all of them together."""
    vanilla = next((name for name in names if records.keys[name].decoder == VANILLA), None)
    partners = samples[vanilla] if vanilla else []
    every = [_evidence(records, name, samples[name], partners) for name in names]
    group = [_row(evidence) for evidence in every]
    aa = pairs_of(partners, [sample for sample in records.aa if sample.key == vanilla])
    for row, evidence in zip(group, every, strict=True):
        own = {sample.place for sample in evidence.samples}
        add_noise(row, [pair for pair in aa if pair.decoder.place in own])
    add_orders(group, [evidence.samples for evidence in every])
    return group


def failed(table: Sequence[Row]) -> bool:
    """Return whether a run ends with exit code 1: a row is lossy, a generation failed, or the
    target was changed meanwhile.
    """
    return any(row["verdict"] == "lossy" or row["errors"] or _retargeted(row) for row in table)


def _retargeted(row: Row) -> bool:
    return any(finding["guard"] == "target" for finding in row["findings"])


def _evidence(
    records: Records, name: str, samples: Sequence[Sample], partners: Sequence[Sample]
) -> Evidence:
    key = records.keys[name]
    own = generations_of(key, samples, partners)
    judged = _distinct(pairs_of(partners, samples))
    differing = {pair.decoder.place for pair in judged if pair.differs}
    findings = [finding for finding in records.findings if finding.key == name]
    rounds_equally = {
        other for other, other_key in records.keys.items() if _rounding(other_key) == _rounding(key)
    }
    return Evidence(
        name=name,
        runs=records.runs[name] or 1,
        key=key,
        samples=own.samples,
        errors=own.errors,
        pairs=own.pairs,
        hidden_work=own.hidden_work,
        judged=judged,
        audits=[a for a in records.audits if a.key == name and a.place in differing],
        pooled=[a for a in records.audits if a.key in rounds_equally],
        pits=_latest_pits(records.pits, name, own.samples),
        findings=[*findings, *repeats_differ(key, [s for s in samples if not s.error])],
        scores=records.scores.get(name, {}),
    )


def _distinct(pairs: Iterable[Pair]) -> list[Pair]:
    """Return pairs of outputs, equal ones of one prompt, turn and repeat once."""

    def content(pair: Pair) -> tuple[Any, ...]:
        own = pair.decoder
        outputs = (tuple(pair.vanilla.tokens), tuple(own.tokens))
        return (own.sample, own.turn, own.repeat, *outputs)

    return list({content(pair): pair for pair in pairs}.values())


def _latest_pits(pits: Iterable[Pit], name: str, complete: Sequence[Sample]) -> list[Pit]:
    """Return the evidence of each output once: repeats have the same noise, so the same tokens."""
    places = {sample.place for sample in complete if not sample.repeat}
    return list(
        {pit.place: pit for pit in pits if pit.key == name and pit.place in places}.values()
    )


def _rounding(key: Key) -> str:
    return json.dumps([getattr(key, name) for name in ROUNDING], sort_keys=True, default=str)


def _row(evidence: Evidence) -> Row:
    """Return the figures of a row. The groups below stand in the order of the contract."""
    return {
        **_identity(evidence.key),
        **_identical_output(evidence),
        **_evidence_figures(evidence),
        **_speedups(evidence),
        **_steps(evidence),
        **times(evidence.samples, hidden=evidence.hides_work),
        **_quality(evidence.scores),
        "noisy": _noisy(evidence.samples) or _noisy([pair.vanilla for pair in evidence.pairs]),
        "errors": evidence.errors,
        "max_regret": max((max(a.decoder_regrets) for a in evidence.audits), default=None),
        "margin_error": max((a.margin_error for a in evidence.audits), default=None),
        "differing_prompts": differing_prompts(evidence.pooled),
        "claimed_tokens_per_step": claims.tokens_per_step(evidence.samples),
        "claimed_speedup": claims.decode_speedup(evidence.pairs),
        "claimed_acceptance": claims.acceptance(evidence.samples),
        "claimed_time_to_first_token": claims.time_to_first_token(evidence.samples),
        "findings": distrust.complaints(evidence.findings),
        **_without_loops(evidence),
        **_definitions(evidence),
        **spread(evidence.samples, evidence.pairs, hidden=evidence.hides_work),
        "record_key": evidence.name,
        "runs": evidence.runs,
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
        "divergences": evidence.divergences if evidence.judged else None,
        "judged": len(evidence.judged),
        "same_tokens": _same_tokens(evidence.judged),
    }


def _verdict(evidence: Evidence) -> str:
    key = evidence.key
    if any(finding.guard == "target" for finding in evidence.findings):
        return "unverified"  # vanilla was asked of the same changed target
    if evidence.uniform is not None and not evidence.uniform.holds:
        return "lossy"
    if evidence.divergences and not key.identical:
        return "unverified" if key.verification in UNKNOWN_RULES else "law"
    if not evidence.judged:
        return "unverified"
    return worst(_verdict_of_repeat(evidence, repeat) for repeat in evidence.repeats)


def _verdict_of_repeat(evidence: Evidence, repeat: int) -> str:
    """Judge each repeat as a run of its own: one near tie differs in every one of them."""
    pairs = [pair for pair in evidence.judged if pair.decoder.repeat == repeat]
    differing = {pair.decoder.place for pair in pairs if pair.differs}
    return verdict(
        len(differing),
        sum(len(sample.tokens) for sample in evidence.samples if sample.repeat == repeat),
        [audit for audit in evidence.audits if audit.place in differing],
        evidence.pooled,
        evidence.key.dtype,
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
    """Return the speedups; that of decoding is unknown where work was hidden in the prefill."""
    return {
        **named("speedup", evidence.intervals["speedup"]),
        **named("speedup_end_to_end", evidence.intervals["speedup_end_to_end"]),
        "hidden_work": evidence.hidden_work or None,
        **named("speedup_spec_bench", spec_bench(evidence.pairs)),
    }


def _steps(evidence: Evidence) -> Row:
    return {
        **named("tokens_per_step", evidence.intervals["tokens_per_step"]),
        "partial_forwards": sum(sample.partial_forwards for sample in evidence.samples),
        "drafted": _drafted(evidence),
    }


def _drafted(evidence: Evidence) -> int | None:
    """Return how many tokens were drafted; None without a generation, where one does not say it of
    its steps, and of a foreign engine.
    """
    if evidence.key.verification == "foreign" or not evidence.samples:
        return None
    for sample in evidence.samples:
        if len(sample.drafted) != len(sample.committed) or sum(sample.committed) < decoded(sample):
            return None
    return sum(sum(sample.drafted) for sample in evidence.samples)


def _without_loops(evidence: Evidence) -> Row:
    """Return how many outputs loop, and the figures of the others.

    A pair counts as looping where either of its outputs does.
    """
    own = {sample.place for sample in evidence.samples if loops(sample.tokens)}
    either = own | {p.decoder.place for p in evidence.pairs if loops(p.vanilla.tokens)}
    figures = evidence.intervals
    if either:
        samples = [sample for sample in evidence.samples if sample.place not in either]
        pairs = [pair for pair in evidence.pairs if pair.decoder.place not in either]
        figures = intervals(samples, pairs, hidden=evidence.hides_work)
    row: Row = {"outputs": len(evidence.samples), "looping": len(own)}
    for name, interval in figures.items():
        row |= named(f"{name}_without_loops", interval)
    return row


def _definitions(evidence: Evidence) -> Row:
    row: Row = {}
    pooled = evidence.intervals["tokens_per_step"]
    for name, interval in definitions(evidence.samples, pooled).items():
        row |= named(name, interval)
    return row


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

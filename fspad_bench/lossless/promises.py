"""Baselines: files that say what must hold of a decoder, and the check that it does.

    promises:
      - {target: tiny, task: gsm8k, limit: 4, max_new_tokens: 48, tokens_per_step: 1.9}

- Each entry is an expectation: a small run on bundled samples whose output is the target's, with at
  least so many tokens per step.
- Wall time is never expected: machines differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fspad_bench.benchmark.fields import check_fields
from fspad_bench.lossless.checks import Check
from fspad_bench.util.errors import BenchError, near
from fspad_bench.util.paths import data_folder
from fspad_bench.util.plain import LARGEST
from fspad_bench.util.text import text_file, yaml_value

IDENTICAL = ("exact", "tie")
REQUIRED = ("target", "task", "tokens_per_step")
LEAST = {
    "tokens_per_step": 0,
    "measured": 0,
    "temperature": 0,
    "limit": 1,
    "max_new_tokens": 1,
}
TEXTS = ("target", "task")
IDENTITY = "identity"  # the first check of an expectation that was run


@dataclass(frozen=True)
class Expectation:
    """An entry of a baseline.

    `tokens_per_step` is the least that must be reached, `measured` what was when the entry was
    written, and `steps` how many steps each output took then; `options` are the decoder's.
    """

    decoder: str
    target: str
    task: str
    tokens_per_step: float
    limit: int = 4
    max_new_tokens: int = 48
    temperature: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)
    measured: float | None = None
    steps: list[int] = field(default_factory=list)

    @property
    def subject(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        name = f"{self.decoder} ({options})" if options else self.decoder
        return f"{name} on {self.target}, {self.task}, T={self.temperature:g}"

    @property
    def setting(self) -> tuple[Any, ...]:
        """The settings of vanilla: expectations that agree in it share a run."""
        return self.target, self.task, self.limit, self.max_new_tokens, self.temperature

    def judge(self, row: dict[str, Any]) -> list[Check]:
        """Check the table row of the run that this expectation describes."""
        identical = row["verdict"] in IDENTICAL and not row["errors"]
        verdict = row["verdict"]
        if row["errors"]:
            verdict += f"; {row['errors']} generations failed: {row.get('error', '')}"
        reached = row["tokens_per_step"] or 0.0
        enough = reached >= self.tokens_per_step
        bound = f"at least {self.tokens_per_step:g}"
        if self.measured is not None:
            bound += f" ({self.measured:g} when written)"
        return [
            Check.of(IDENTITY, self.subject, identical, verdict, "exact"),
            Check.of("tokens per step", self.subject, enough, f"{reached:.3f}", bound),
        ]


def shipped_baselines() -> list[Path]:
    """Return the baseline files of this suite, at most one for a decoder."""
    return sorted(data_folder("baselines").glob("*.yaml"))


def selected(
    expectations: Sequence[Expectation], decoders: Sequence[str] | None, target: str | None
) -> list[Expectation]:
    """Return the expectations of these decoders on this target; None stands for all.

    Raises BenchError for a decoder without a baseline, and where nothing is left.
    """
    known = {entry.decoder for entry in expectations}
    wanted = known if decoders is None else set(decoders)
    for name in sorted(wanted - known):
        raise BenchError(f"no baseline defines '{name}'", near(name, known))
    wanted_here = [
        entry
        for entry in expectations
        if entry.decoder in wanted and target in (None, entry.target)
    ]
    if not wanted_here:
        raise BenchError(
            "no baseline matches these filters", "see baselines/*.yaml for all of them"
        )
    return wanted_here


def read_baseline(path: Path) -> list[Expectation]:
    """Return the expectations of a baseline file.

    Raises BenchError naming the file and the field at fault.
    """
    hint = "a baseline is a YAML file with decoder and promises"
    try:
        content = yaml_value(text_file(path))
    except ValueError as error:
        raise BenchError(f"cannot read {path}: {error}", hint) from error
    if not isinstance(content, dict) or not isinstance(content.get("decoder"), str):
        raise BenchError(
            f"{path} is not a baseline", "write `decoder: NAME` and `promises: [...]` in it"
        )
    entries = content.get("promises") or []
    if not isinstance(entries, list):
        raise BenchError(
            f"{path}: `promises` is a list, not {entries!r:.60}",
            "write one `- {target: ..., task: ...}` per line",
        )
    return [_expectation(path, content["decoder"], entry) for entry in entries]


def _expectation(path: Path, decoder: str, entry: Any) -> Expectation:
    names = [f.name for f in fields(Expectation) if f.name != "decoder"]
    if not isinstance(entry, dict):
        raise BenchError(
            f"{path}: an expectation is a mapping, not {entry!r:.60}", f"fields: {', '.join(names)}"
        )
    _check_fields(path, entry, names)
    try:
        check_fields(Expectation, entry)
    except ValueError as error:
        hint = f"write texts for {' and '.join(TEXTS)}, numbers for {', '.join(LEAST)}"
        raise BenchError(f"{path}: {error}", hint) from error
    _check_values(path, entry)
    return Expectation(decoder, **entry)


def _check_fields(path: Path, entry: dict[str, Any], names: Iterable[str]) -> None:
    for name in entry:
        if name not in names:
            raise BenchError(
                f"{path}: an expectation has no field '{name}'", near(str(name), names)
            )
    for name in REQUIRED:
        if name not in entry:
            raise BenchError(
                f"{path}: an expectation lacks '{name}'", f"fields: {', '.join(names)}"
            )
    options = entry.get("options", {})
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise BenchError(
            f"{path}: options are a mapping of names, not {options!r:.60}",
            "write a mapping like {depth: 3}",
        )


def _check_values(path: Path, entry: dict[str, Any]) -> None:
    """Raise BenchError for an empty text, and for a number that is not finite or too small."""
    for name in TEXTS:
        if not entry[name].strip():
            raise BenchError(f"{path}: '{name}' is empty", f"name a {name}")
    for name, least in LEAST.items():
        if entry.get(name) is not None and not least <= entry[name] <= LARGEST:
            raise BenchError(
                f"{path}: '{name}' is {entry[name]!r:.60}",
                f"give a number from {least} to {LARGEST}",
            )
    if not all(0 <= count <= LARGEST for count in entry.get("steps", [])):
        raise BenchError(
            f"{path}: 'steps' is {entry['steps']!r:.60}",
            "give a number of steps for each output, or let `check --update` write them",
        )

"""Records of runs: append-only JSON lines, separate from every table made of them.

- The first line is `run`: the plan, the machine, the versions, and the schema of the file.
- Then come a `costs` line for each decoder that sizes its trees by measured costs, a `key` line
  for each row key, a `sample` line for each generation, an `audit` line for each output that
  differs from vanilla's, a `pit` line for each output that may differ, a `finding` line for each
  complaint of a guard, a `score` line for each row, and `end` when all is done. An `aa` line is a
  `sample` of vanilla's second turn on a prompt: it belongs to no row.
- A crash leaves a readable file: a torn last line is dropped when the record is opened again.
- Any other line that cannot be read costs that line: it is left out and named (`damaged`). What
  only a newer version can read is refused, since it may change what other lines mean.
- Schema 1 had neither the hashes of sources, templates, tokenizers and cards nor the version of
  torch in its keys, and its options are as given, not as resolved. Its records are read; their
  keys leave those fields empty.
- Schemas 1 and 2 had no guards: no `pit` and `finding` lines, no forwards of a prefill, and of a
  foreign engine the seconds and steps that it claims stand where measured ones do.
- Schemas 1 to 3 did not say which nodes of a step's tree were accepted, nor how long verification
  took, and had no `aa` lines, no repeats and no categories; their findings name files in the text
  only.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from fspad_bench.benchmark.fields import check_fields, check_trees
from fspad_bench.benchmark.record_lines import REPAIR, LineError, content_of, raw_lines
from fspad_bench.util.errors import BenchError
from fspad_bench.util.plain import LONGEST_STEP, whole

SCHEMA = 4
VANILLA = "vanilla"
METHOD = ("decoder", "options", "verification", "scope")  # fields of a key that are no setting
PENALTIES: dict[str, float] = {
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "no_repeat_ngram_size": 0,
}  # fields of a key, each with the value that changes nothing
SCOPES = ("prompt", "run")
SINCE_SCHEMA_2 = (
    "source_sha256",
    "template_sha256",
    "tokenizer_sha256",
    "card_sha256",
    "torch",
    "target_sha256",
)
UNKNOWN_RULES = ("own", "foreign")  # rules of verification that only `certify` can test
UPGRADE = "install the version of fspad-bench that wrote it, or a newer one"


@dataclass(frozen=True)
class Key:
    """Everything that decides a row's figures: samples belong to one row when all fields are equal.

    `scope` is `prompt` for a decoder that starts anew with each prompt, `run` for one that learns
    across prompts.
    """

    target: str
    task: str
    decoder: str
    options: dict[str, Any]
    temperature: float
    top_p: float
    top_k: int
    seed: int
    max_new_tokens: int
    dtype: str
    forward: str
    device: str
    threads: int
    machine: str
    data_source: str
    data_sha256: str
    target_identity: str
    version: str
    verification: str = "match"
    scope: str = "prompt"
    source_sha256: str = ""
    template_sha256: str = ""
    tokenizer_sha256: str = ""
    card_sha256: str = ""
    torch: str = ""
    target_sha256: str = ""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0

    @classmethod
    def read(cls, content: dict[str, Any]) -> Key:
        """Return the key of a record's line.

        Schema 1 called the scope `reset`, which was always `per-prompt`.
        """
        content = dict(content)
        if "reset" in content:
            content["scope"] = content.pop("reset").removeprefix("per-")
        check_fields(cls, content)
        key = cls(**content)
        if key.scope not in SCOPES:
            raise ValueError(f"no scope is called {key.scope!r}")
        return key

    @property
    def reset(self) -> str:
        """When the decoder's state starts anew, in the words of schema 1."""
        return f"per-{self.scope}"

    @property
    def identical(self) -> bool:
        """Whether the output must be vanilla's own; otherwise at most its distribution is
        vanilla's.
        """
        return self.verification == "match" or self.temperature == 0

    @cached_property
    def hash(self) -> str:
        text = json.dumps(asdict(self), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def setting(self) -> tuple[Any, ...]:
        """The key without its decoder: rows of one setting share a table and its vanilla row."""
        return tuple(getattr(self, f.name) for f in fields(self) if f.name not in METHOD)


class Place(NamedTuple):
    """One turn of one question within one interleaved group of generations."""

    round: str
    sample: str
    turn: int


@dataclass(frozen=True)
class Sample:
    """One generation, or the error that prevented it. Generations with the same `round` were
    interleaved.

    `forwards` counts full forwards of the target, `partial_forwards` those that ran only some of
    its layers, `prefill_forwards` the full ones before the decode clock started (0: not known).
    `claims` are a foreign engine's own figures, `overshoot` the target's own tokens that it made
    beyond the limit in the same time. `depths`, `ranks` and `refused` say of each step which nodes
    of its tree were accepted (see `core.protocols.Generation`). `category` is the question's,
    where its data name one.
    """

    key: str
    sample: str
    turn: int
    round: str
    prompt_tokens: int = 0
    prompt_sha256: str = ""
    tokens: list[int] = field(default_factory=list)
    committed: list[int] = field(default_factory=list)
    drafted: list[int] = field(default_factory=list)
    forwards: int = 0
    partial_forwards: int = 0
    prefill_forwards: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    draft_seconds: float | None = None
    score_seconds: float | None = None
    verify_seconds: float | None = None
    depths: list[int] | None = None
    ranks: list[list[int]] | None = None
    refused: list[int] | None = None
    other_load: float = 0.0
    peak_memory: int | None = None
    overshoot: int | None = None
    error: str = ""
    category: str = ""
    repeat: int = 0
    claims: dict[str, Any] = field(default_factory=dict)
    prompt: str = ""
    text: str = ""

    @classmethod
    def read(cls, content: dict[str, Any]) -> Sample:
        """Return the sample of a record's line."""
        check_fields(cls, content)
        sample = cls(**content)
        sample._check()
        return sample

    def _check(self) -> None:
        """Raise ValueError for figures that no generation has."""
        times = (self.prefill_seconds, self.decode_seconds, self.other_load)
        if not all(0 <= time < math.inf for time in times):
            raise ValueError(f"a time that is none: {times}")
        if not self.error and not (self.tokens and sum(times[:2])):
            raise ValueError("neither tokens in some time nor an error")
        for number in (*self.tokens, self.forwards, self.partial_forwards, self.repeat):
            whole(number, "a sample")
        for number in (*self.committed, *self.drafted):
            whole(number, "a step", LONGEST_STEP)
        check_trees(len(self.committed), self.depths, self.ranks, self.refused)

    @property
    def place(self) -> Place:
        return Place(self.round, self.sample, self.turn)


@dataclass(frozen=True)
class Audit:
    """A pair of differing outputs, re-scored: regrets and vanilla's margin error, in logits (see
    `audit`).
    """

    key: str
    sample: str
    turn: int
    round: str
    divergence: int
    decoder_regrets: list[float]
    vanilla_regrets: list[float]
    margin_error: float

    @classmethod
    def read(cls, content: dict[str, Any]) -> Audit:
        """Return the audit of a record's line."""
        check_fields(cls, content)
        audit = cls(**content)
        if not (audit.decoder_regrets and audit.vanilla_regrets):
            raise ValueError("an audit of no tokens")
        return audit

    @property
    def place(self) -> Place:
        return Place(self.round, self.sample, self.turn)


@dataclass(frozen=True)
class Score:
    """A row's scores by the task's metric; the first is the headline.

    They are in percent, but for lm-eval's metrics of another scale. `scored`: the number of prompts
    that have answers, None in older records.
    """

    key: str
    scores: dict[str, float]
    scored: int | None = None


@dataclass(frozen=True)
class Pit:
    """Each token of a sampled output, transformed by the target's own distribution (see
    `uniform`), and its offset in its step.
    """

    key: str
    sample: str
    turn: int
    round: str
    u: list[float]
    offsets: list[int]

    @property
    def place(self) -> Place:
        return Place(self.round, self.sample, self.turn)


@dataclass(frozen=True)
class Finding:
    """An objection of a guard to a row, in words. `guard` is one of `watch.GUARDS`, or `repeats`,
    which a table finds.

    `files` are those that a complaint is about: a row names the files of all its complaints.
    """

    key: str
    guard: str
    text: str
    files: list[str] = field(default_factory=list)


@dataclass
class Records:
    """The content of one or more record files.

    `damaged` names each line that could not be read, and why; its facts are missing here. `runs`
    counts the files that hold generations of a key.
    """

    keys: dict[str, Key] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    aa: list[Sample] = field(default_factory=list)
    audits: list[Audit] = field(default_factory=list)
    pits: list[Pit] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    scored: dict[str, int | None] = field(default_factory=dict)
    costs: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    complete: bool = False
    damaged: list[str] = field(default_factory=list)
    runs: Counter[str] = field(default_factory=Counter)
    started: str = ""

    @classmethod
    def read(cls, *paths: Path) -> Records:
        """Read record files as one.

        Raises BenchError for a file that is no record, or that a newer version wrote.
        """
        records = cls()
        for path in paths:
            before = len(records.samples)
            for number, raw in raw_lines(path):
                records._read_line(raw, f"{path}:{number}", first=number == 1)
            records._leave_orphans_out(path, before)
            records.runs.update({sample.key for sample in records.samples[before:]})
        return records

    def _read_line(self, raw: bytes, where: str, *, first: bool) -> None:
        """Take a line, or name it among the damaged ones."""
        try:
            content = content_of(raw)
            self._take(content, first=first)
        except NewerSchemaError as error:
            raise BenchError(f"{where}: {error}", UPGRADE) from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            message = f"{where}: {error}"
            if not isinstance(error, LineError):
                message = f"{where}: not a line of schema {SCHEMA}: {error}"
            if first:
                raise BenchError(message, REPAIR) from error
            self.damaged.append(message)

    def _leave_orphans_out(self, path: Path, before: int) -> None:
        """Leave out the samples, from number `before` on, of a key whose own line is missing."""
        own = self.samples[before:]
        self.samples[before:] = [sample for sample in own if sample.key in self.keys]
        for key in sorted({sample.key for sample in own} - self.keys.keys()):
            count = sum(sample.key == key for sample in own)
            self.damaged.append(
                f"{path}: the line of the key {key} is missing: its {count} samples are left out"
            )

    def _take(self, content: dict[str, Any], *, first: bool) -> None:
        kind = content.pop("kind")
        self.complete = kind == "end"
        if first and kind != "run":
            raise ValueError("a record begins with a line of the kind 'run'")
        match kind:
            case "run":
                _check_schema(content["schema"])
                self.started = self.started or str(content.get("started", ""))
            case "key":
                name = content.pop("key")
                self.keys[name] = Key.read(content)
            case "sample":
                self.samples.append(Sample.read(content))
            case "aa":
                self.aa.append(Sample.read(content))
            case "audit":
                self.audits.append(Audit.read(content))
            case "pit":
                check_fields(Pit, content)
                self.pits.append(Pit(**content))
            case "finding":
                check_fields(Finding, content)
                self.findings.append(Finding(**content))
            case "score":
                check_fields(Score, content)
                score = Score(**content)
                self.scores[score.key] = score.scores
                self.scored[score.key] = score.scored
            case "costs":
                origin = content.get("origin", "")
                if not isinstance(content["seconds"], dict):
                    raise ValueError(f"'seconds' is {content['seconds']!r:.60}")
                self.costs.setdefault((content["decoder"], origin), content["seconds"])
            case "end":
                pass
            case _:
                raise NewerSchemaError(f"unknown kind of line '{kind}'")


class NewerSchemaError(Exception):
    """A record holds what only a newer version can read."""


def _check_schema(schema: object) -> None:
    if not isinstance(schema, int) or schema < 1:
        raise ValueError(f"no schema has the number {schema!r}")
    if schema > SCHEMA:
        raise NewerSchemaError(f"schema {schema} is newer than {SCHEMA}, the newest known here")

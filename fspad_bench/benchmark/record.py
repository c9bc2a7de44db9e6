"""Records of runs: append-only JSON lines, separate from every table made of them.

- The first line is `run`: the plan, the machine, the versions, and the schema of the file.
- Then come a `costs` line for each decoder that sizes its trees by measured costs, a `key` line
  for each row key, a `sample` line for each generation, an `audit` line for each output that
  differs from vanilla's, a `score` line for each row, and `end` when all is done.
- A crash leaves a readable file: a torn last line is dropped when the record is opened again.
- Schema 1 had neither the hashes of sources, templates, tokenizers and cards nor the version of
  torch in its keys, and its options are as given, not as resolved. Its records are read; their
  keys leave those fields empty.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from fspad_bench.errors import BenchError
from fspad_bench.util import locks

SCHEMA = 2
VANILLA = "vanilla"
METHOD = ("decoder", "options", "verification", "scope")  # fields of a key that are no setting
SCOPES = ("prompt", "run")
SINCE_SCHEMA_2 = ("source_sha256", "template_sha256", "tokenizer_sha256", "card_sha256", "torch")
UNKNOWN_RULES = ("own", "foreign")  # rules of verification that only `certify` can test
REPAIR = "a record is written by `fspad-bench run` and never edited: restore it, or move it away"
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

    @classmethod
    def read(cls, content: dict[str, Any]) -> Key:
        """Return the key of a record's line.

        Schema 1 called the scope `reset`, which was always `per-prompt`.
        """
        content = dict(content)
        if "reset" in content:
            content["scope"] = content.pop("reset").removeprefix("per-")
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

    @property
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
    its layers.
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
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    draft_seconds: float = 0.0
    score_seconds: float = 0.0
    other_load: float = 0.0
    peak_memory: int | None = None
    error: str = ""
    prompt: str = ""
    text: str = ""

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

    @property
    def place(self) -> Place:
        return Place(self.round, self.sample, self.turn)


@dataclass(frozen=True)
class Score:
    """A row's scores by the task's metric, in percent; the first is the headline."""

    key: str
    scores: dict[str, float]


class RecordFile:
    """A record being written. Every append is a whole line, on disk before the next generation
    starts.

    With a `header` the record is new, and its file appears with the first line: a plan that fails
    to load leaves nothing behind. One process at a time may write a record, which it holds by a
    lock file beside it.
    """

    def __init__(self, path: Path, header: dict[str, Any] | None = None) -> None:
        self.path = path
        self.header = header
        self.lock: FileLock | None = None
        self.known: set[str] = set()

    @classmethod
    def reopen(cls, path: Path) -> RecordFile:
        """Continue an interrupted record, dropping a torn last line."""
        record = cls(path)
        record.hold()
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
        record.known = {key.hash for key in Records.read(path).keys.values()}
        return record

    def hold(self) -> None:
        """Keep other processes from writing the record.

        Raises BenchError where one is writing it, or it cannot be written.
        """
        try:
            self.lock = locks.hold(Path(f"{self.path}.lock"))
        except Timeout as error:
            raise BenchError(
                f"another run is writing {self.path}",
                "wait for it, or give this one another --output",
            ) from error
        except OSError as error:
            raise BenchError(
                f"cannot write {self.path}: {error.strerror}", "give another --output"
            ) from error

    def release(self) -> None:
        """Let other processes write the record."""
        if self.lock:
            locks.drop(self.lock)
            self.lock = None

    def key(self, key: Key) -> str:
        """Return the key's hash; write its fields the first time."""
        if key.hash not in self.known:
            self.line({"kind": "key", "key": key.hash, **asdict(key)})
            self.known.add(key.hash)
        return key.hash

    def add(self, entry: Sample | Audit | Score) -> None:
        content = {name: value for name, value in asdict(entry).items() if value not in ("", None)}
        self.line({"kind": type(entry).__name__.lower(), **content})

    def costs(self, decoder: str, seconds: dict[str, Any]) -> None:
        """Write the costs by which a decoder sizes its trees."""
        self.line({"kind": "costs", "decoder": decoder, "seconds": seconds})

    def end(self) -> None:
        self.line({"kind": "end", "status": "complete"})

    def line(self, content: dict[str, Any]) -> None:
        """Append a line, after the header if that is not written yet."""
        if self.header is not None:
            header = self.header
            self.header = None
            self._append({"kind": "run", "schema": SCHEMA, **header})
            self.hold()
        self._append(content)

    def _append(self, content: dict[str, Any]) -> None:
        before = self.path.stat().st_size if self.path.exists() else 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(json.dumps(content, ensure_ascii=False, default=str).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError):
                os.truncate(self.path, before)
            raise BenchError(
                f"cannot write {self.path}: {error.strerror}",
                "free some space there, then give the same command again: it continues the run",
            ) from error


@dataclass
class Records:
    """The content of one or more record files."""

    keys: dict[str, Key] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    audits: list[Audit] = field(default_factory=list)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)
    complete: bool = False

    @classmethod
    def read(cls, *paths: Path) -> Records:
        """Read record files as one.

        Raises BenchError naming the file and the line that cannot be read.
        """
        records = cls()
        for path in paths:
            for number, content in enumerate(lines(path), start=1):
                try:
                    records._take(content, first=number == 1)
                except (AttributeError, KeyError, TypeError, ValueError) as error:
                    text = f"{path}:{number}: not a line of schema {SCHEMA}: {error}"
                    raise BenchError(text, REPAIR) from error
                except NewerSchemaError as error:
                    raise BenchError(f"{path}:{number}: {error}", UPGRADE) from error
        missing = {sample.key for sample in records.samples} - records.keys.keys()
        if missing:
            raise BenchError(f"{paths[-1]}: the line of the key {min(missing)} is missing", REPAIR)
        return records

    def _take(self, content: dict[str, Any], *, first: bool) -> None:
        kind = content.pop("kind")
        self.complete = kind == "end"
        if first and kind != "run":
            raise ValueError("a record begins with a line of the kind 'run'")
        match kind:
            case "run":
                _check_schema(content["schema"])
            case "key":
                name = content.pop("key")
                self.keys[name] = Key.read(content)
            case "sample":
                self.samples.append(Sample(**content))
            case "audit":
                self.audits.append(Audit(**content))
            case "score":
                self.scores[content["key"]] = content["scores"]
            case "costs":
                self.costs.setdefault(content["decoder"], content["seconds"])
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


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a record.

    A torn last line is skipped; any other unreadable line is a BenchError.
    """
    content = path.read_bytes().split(b"\n")  # bytes: a torn line may end within a character
    for number, text in enumerate(content[:-1], start=1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise BenchError(f"{path}:{number}: not a record line: {error}", REPAIR) from error
        if not isinstance(line, dict) or "kind" not in line:
            raise BenchError(f"{path}:{number}: not a record line", REPAIR)
        yield line

"""Facts of a run as append-only JSON lines, apart from every table made of them.

A file begins with a `run` line (what was asked, where, with which versions), then holds a `costs` line for each decoder
that sizes its trees by what a round costs, a `key` line for each row key met, a `sample` line a generation, an `audit`
line where an output differed from vanilla's, a `score` line a row, and an `end` line when all is done. A crash leaves a
readable file; a torn last line is dropped on the next opening.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import Any

from fspad_bench.errors import BenchError

SCHEMA = 1
METHOD = ("decoder", "options", "verification")  # of a key's fields, those that are no setting
UNKNOWN = ("own", "foreign")  # rules of verification that only `certify` can vouch for
REPAIR = "a record is written by `fspad-bench run` and never edited: restore it, or move it away"


@dataclass(frozen=True)
class Key:
    """All that decides a row's figures; two samples belong to the same row when every field is equal."""

    target: str
    target_identity: str
    task: str
    data_source: str
    data_sha256: str
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
    reset: str
    version: str
    verification: str = "match"

    @property
    def identical(self) -> bool:
        """Whether the output is meant to be vanilla's own; else it keeps the law at most."""
        return self.verification == "match" or not self.temperature

    @property
    def hash(self) -> str:
        return hashlib.sha256(
            json.dumps(asdict(self), sort_keys=True, default=str).encode()
        ).hexdigest()[:16]

    @property
    def setting(self) -> tuple[Any, ...]:
        """The key without its decoder: rows of one setting stand in one table, under its vanilla."""
        return tuple(getattr(self, f.name) for f in fields(self) if f.name not in METHOD)


@dataclass(frozen=True)
class Sample:
    """One generation, or the error that stood in its way. `round` ties together what was interleaved."""

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
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    draft_seconds: float = 0.0
    score_seconds: float = 0.0
    other_load: float = 0.0
    peak_memory: int | None = None
    error: str = ""
    prompt: str = ""
    text: str = ""


@dataclass(frozen=True)
class Audit:
    """The re-scoring of a pair that differed: regrets and vanilla's margin error, in logits (see lossless.audit)."""

    key: str
    sample: str
    turn: int
    round: str
    divergence: int
    decoder_regrets: list[float]
    vanilla_regrets: list[float]
    margin_error: float


@dataclass(frozen=True)
class Score:
    """A row's scores by the task's metric, in percent; the first is the headline."""

    key: str
    scores: dict[str, float]


KINDS = {"key": Key, "sample": Sample, "audit": Audit, "score": Score}


class RecordFile:
    """A record being written. Every append is a whole line, on disk before the next generation starts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.held = None
        self.known: set[str] = set()

    @classmethod
    def create(cls, path: Path, header: dict[str, Any]) -> RecordFile:
        record = cls(path)
        record.line({"kind": "run", "schema": SCHEMA, **header})
        return record

    @classmethod
    def reopen(cls, path: Path) -> RecordFile:
        """Go on with an interrupted record, dropping a torn last line."""
        record = cls(path)
        record.hold()
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
        record.known = {entry.hash for entry in Records.read(path).keys.values()}
        return record

    def hold(self) -> None:
        """Keep other processes from writing it, for as long as this one lives. Raises BenchError where one does."""
        self.held = self.path.open("ab")
        try:
            flock(self.held, LOCK_EX | LOCK_NB)
        except BlockingIOError as error:
            text = f"another run is writing {self.path}"
            raise BenchError(text, "wait for it, or give this one another --output") from error
        except OSError:  # a file system without locks
            self.release()

    def release(self) -> None:
        """Others may write it."""
        if self.held:
            self.held.close()

    def key(self, key: Key) -> str:
        """The key's hash; its fields are written when it is first met."""
        if key.hash not in self.known:
            self.line({"kind": "key", "key": key.hash, **asdict(key)})
            self.known.add(key.hash)
        return key.hash

    def add(self, entry: Sample | Audit | Score) -> None:
        kind = type(entry).__name__.lower()
        self.line({"kind": kind} | {k: v for k, v in asdict(entry).items() if v not in ("", None)})

    def end(self) -> None:
        self.line({"kind": "end", "status": "complete"})

    def line(self, content: dict[str, Any]) -> None:
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
                "make room there, then give the same command again: it goes on where it stopped",
            ) from error


@dataclass
class Records:
    """What one or more record files say."""

    headers: list[dict[str, Any]] = field(default_factory=list)
    keys: dict[str, Key] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    audits: list[Audit] = field(default_factory=list)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)
    complete: bool = False

    @classmethod
    def read(cls, *paths: Path) -> Records:
        records = cls()
        for path in paths:
            for content in lines(path):
                try:
                    records._take(content)
                except (KeyError, TypeError) as error:
                    raise BenchError(
                        f"{path} is not a record of schema {SCHEMA}: {error}", REPAIR
                    ) from error
        if lost := {sample.key for sample in records.samples} - records.keys.keys():
            raise BenchError(f"{paths[-1]}: the line of the key {min(lost)} is missing", REPAIR)
        return records

    def _take(self, content: dict[str, Any]) -> None:
        kind = content.pop("kind")
        self.complete = kind == "end"
        if kind == "run":
            self.headers.append(content)
        elif kind == "key":
            name = content.pop("key")
            self.keys[name] = Key(**content)
        elif kind == "sample":
            self.samples.append(Sample(**content))
        elif kind == "audit":
            self.audits.append(Audit(**content))
        elif kind == "score":
            self.scores[content["key"]] = content["scores"]
        elif kind == "costs":
            self.costs.setdefault(content["decoder"], content["seconds"])


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a record. A torn last line is passed over; anything else unreadable is a BenchError."""
    content = path.read_bytes().split(b"\n")  # a torn line may end within a character
    for number, line in enumerate(content[:-1], start=1):
        try:
            found = json.loads(line)
        except ValueError as error:
            raise BenchError(f"{path}:{number}: not a record line: {error}", REPAIR) from error
        if not isinstance(found, dict) or "kind" not in found:
            raise BenchError(f"{path}:{number}: not a record line", REPAIR)
        yield found

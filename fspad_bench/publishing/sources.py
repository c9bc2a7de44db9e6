"""Where rows come from: the files of records, how each was made, and the keys that it holds."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fspad_bench.benchmark.record import SINCE_SCHEMA_2, Key
from fspad_bench.benchmark.rows import IDENTITY, Row
from fspad_bench.util.text import file_bytes, json_value

SHORT = 12  # characters of a hash that names a row or a record in a link
HEADER = ("started", "commit", "system", "python")  # of a record's first line, shown as they are


@dataclass(frozen=True)
class Source:
    """A record file: its name and hash, what its first line says, the rows that it has lines of.

    `rows` holds the names of `row_name`.
    """

    name: str
    sha256: str
    command: str
    facts: dict[str, str]
    rows: frozenset[str]

    @property
    def id(self) -> str:
        return f"record-{self.sha256[:SHORT]}"


def row_name(row: Row) -> str:
    """Return the name of a row in links: a hash of what identifies it, the same on every page."""
    identity = json.dumps([row[name] for name in IDENTITY], sort_keys=True, default=str)
    return f"row-{hashlib.sha256(identity.encode()).hexdigest()[:SHORT]}"


def sources(paths: Iterable[Path]) -> list[Source]:
    """Return the sources of record files that `Records.read` has accepted."""
    return [_source(path) for path in paths]


def _source(path: Path) -> Source:
    content = file_bytes(path)
    header: dict[str, Any] = {}
    names = set()
    for line in _lines(content):
        if line.get("kind") == "run" and not header:
            header = line
        if line.get("kind") == "key":
            names.add(_name_of_key(line))
    return Source(
        name=path.name,
        sha256=hashlib.sha256(content).hexdigest(),
        command=_command(header),
        facts=_facts(header),
        rows=frozenset(names),
    )


def _lines(content: bytes) -> Iterator[dict[str, Any]]:
    """Yield the lines that can be read; `Records.read` has named the others."""
    for raw in content.split(b"\n")[:-1]:
        try:
            line = json_value(raw)
        except ValueError:
            continue
        if isinstance(line, dict):
            yield line


def _name_of_key(line: dict[str, Any]) -> str:
    """Return the name of a key's row; empty where the line is no key."""
    content = {name: value for name, value in line.items() if name not in ("kind", "key")}
    try:
        key = Key.read(content)
    except (AttributeError, TypeError, ValueError):
        return ""
    row = {name: getattr(key, name) for name in IDENTITY}
    return row_name(row | {name: None for name in SINCE_SCHEMA_2 if not row[name]})


def _command(header: dict[str, Any]) -> str:
    words = header.get("argv")
    if not isinstance(words, list):
        return ""
    return shlex.join(["fspad-bench", *map(str, words)])


def _facts(header: dict[str, Any]) -> dict[str, str]:
    facts = {name: str(header[name]) for name in HEADER if header.get(name)}
    if header.get("dirty"):
        facts["commit"] = f"{facts.get('commit', 'unknown')}, with changes"
    packages = header.get("packages")
    if isinstance(packages, dict):
        facts["packages"] = ", ".join(f"{name} {version}" for name, version in packages.items())
    return {"schema": str(header.get("schema", "")), **facts}

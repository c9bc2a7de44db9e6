"""The digest of a target's folder, remembered between runs: hashing 13 GB takes a minute.

- A digest is reused only while every file keeps its path, size, modification and change time and
  inode; the change time catches files replaced with their old modification time.
- Files changed within `SETTLED_SECONDS` of hashing are not remembered: a clock's tick may hide a
  further change.
- A cache that cannot be read or written costs time only: the folder is hashed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

from fspad_bench.util.paths import cache_home, write_atomically

SUFFIXES = {".json", ".safetensors", ".bin", ".gguf"}
SETTLED_SECONDS = 2.0

FileStates = list[tuple[str, int, int, int, int]]


def folder_digest(folder: Path) -> str:
    """Return the sha256 over the names and contents of a folder's configuration and weights."""
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    states = _states(files)
    known = _cache_file(folder, states)
    digest = _remembered(known)
    if digest is None:
        started = time.time()
        digest = _hash(files)
        if _are_settled(states, started) and _states(files) == states:
            _remember(known, folder, digest)
    return digest


def _hash(files: Sequence[Path]) -> str:
    total = hashlib.sha256()
    for path in files:
        total.update(path.name.encode())
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _states(files: Sequence[Path]) -> FileStates:
    """Return (name, size, modification time, change time, inode) of each file; times in ns."""
    states = []
    for path in files:
        stat = path.stat()
        states.append((path.name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino))
    return states


def _are_settled(states: FileStates, started: float) -> bool:
    latest = max(max(modified, changed) for _, _, modified, changed, _ in states)
    return latest / 1e9 < started - SETTLED_SECONDS


def _cache_file(folder: Path, states: FileStates) -> Path:
    key = json.dumps([str(folder.resolve()), states])
    return cache_home() / "digests" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


def _remembered(known: Path) -> str | None:
    try:
        digest = json.loads(known.read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    is_sha256 = isinstance(digest, str) and len(digest) == hashlib.sha256().digest_size * 2
    return digest if is_sha256 else None


def _remember(known: Path, folder: Path, digest: str) -> None:
    with contextlib.suppress(OSError):
        known.parent.mkdir(parents=True, exist_ok=True)
        facts = {"folder": str(folder.resolve()), "sha256": digest}
        write_atomically(known, json.dumps(facts) + "\n")

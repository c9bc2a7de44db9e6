"""The digests of a target's folder, remembered between runs: hashing 13 GB takes a minute.

- `folder_digest` identifies the weights with their configuration: a draft head fits these alone.
- `files_digest` identifies everything that decides what a target reads and says, tokenizer and
  chat template included: records, data sets and trainings are of one such state.
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
import re
import time
from collections.abc import Sequence
from pathlib import Path

from fspad_bench.util.paths import cache_home, write_atomically

SUFFIXES = {".json", ".safetensors", ".bin", ".gguf"}
TEXT_SUFFIXES = {".jinja", ".model", ".tiktoken", ".txt"}  # templates, merges, other tokenizers
TEMPLATES = "additional_chat_templates"
SETTLED_SECONDS = 2.0
SHA256 = re.compile("[0-9a-f]{64}")

FileStates = list[tuple[str, int, int, int, int]]


def folder_digest(folder: Path) -> str:
    """Return the sha256 over the names and contents of a folder's configuration and weights."""
    files = _files(folder, SUFFIXES)
    states = _states(files)
    known = _cache_file(folder, states)
    digest = _remembered(known, states)
    if digest is None:
        started = time.time()
        digest = _hash(files)
        if _are_settled(states, started) and _states(files) == states:
            _remember(known, folder, states, digest)
    return digest


def files_digest(folder: Path) -> str:
    """Return the sha256 over the names and contents of all files that decide a run."""
    texts = _files(folder, TEXT_SUFFIXES)
    if (folder / TEMPLATES).is_dir():
        texts += _files(folder / TEMPLATES, TEXT_SUFFIXES)
    total = hashlib.sha256(folder_digest(folder).encode())
    for path in texts:
        name = path.relative_to(folder).as_posix()
        total.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def _files(folder: Path, suffixes: set[str]) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix in suffixes and p.is_file())


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
    latest = max((max(modified, changed) for _, _, modified, changed, _ in states), default=0)
    return latest / 1e9 < started - SETTLED_SECONDS


def _cache_file(folder: Path, states: FileStates) -> Path:
    key = json.dumps([str(folder.resolve()), states])
    return cache_home() / "digests" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


def _remembered(known: Path, states: FileStates) -> str | None:
    """Return the digest of files in these states; None where it is not known, or damaged."""
    try:
        facts = json.loads(known.read_text(encoding="utf-8"))
        digest = facts["sha256"]
        is_of_files = facts["files"] == [list(state) for state in states]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    is_sha256 = isinstance(digest, str) and SHA256.fullmatch(digest) is not None
    return digest if is_of_files and is_sha256 else None


def _remember(known: Path, folder: Path, states: FileStates, digest: str) -> None:
    with contextlib.suppress(OSError):
        known.parent.mkdir(parents=True, exist_ok=True)
        facts = {"folder": str(folder.resolve()), "files": states, "sha256": digest}
        write_atomically(known, json.dumps(facts) + "\n")

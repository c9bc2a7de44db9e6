"""The shards of a data set: `shard-00000.jsonl`, `shard-00001.jsonl`, ..., one conversation a line.

- A shard is written completely or not at all, and its hash is kept in the manifest.
- A shard whose content is not what was written counts as missing. One of a manifest without its
  hash, of an earlier version, counts if every line is a conversation and there is one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from fspad_bench.util.errors import BenchError
from fspad_bench.util.paths import write_atomically
from fspad_bench.util.text import json_lines

MANIFEST = "manifest.json"
FILES = "files"
"""The manifest's key of the shards' hashes."""

SHARDS = "shards"
"""Its key of their number, which the manifest of a complete set alone states."""

NAME = re.compile(r"shard-(\d{5,})\.jsonl")
TYPICAL_ANSWER_TOKENS = 230  # per conversation, until there is a shard to count

DAMAGED = "give the same `fspad-bench distill` command again: it makes the shard anew"

Row = dict[str, Any]
Started = TypeVar("Started")


class Shards:
    """The written shards of a folder with their rows and answer tokens, and those in progress, in
    order.

    `damaged` names those that were written and are not whole any more, or gone.

    The set is `complete` with `tokens` answer tokens or, where that is None, with `shards` shards.
    A shard holds up to `size` conversations. `known` are the hashes of shards that were written
    earlier, by name.
    """

    def __init__(
        self,
        folder: Path,
        size: int,
        *,
        tokens: int | None = None,
        shards: int | None = None,
        known: Mapping[str, str] | None = None,
    ) -> None:
        goal = shards if tokens is None else tokens
        assert goal is not None
        self.folder = folder
        self.size = size
        self.counts_tokens = tokens is not None
        self.goal = goal
        self.hashes: dict[str, str] = {}
        self.answer_tokens: dict[str, int] = {}
        self.rows: dict[str, int] = {}
        self.damaged = set(known or ())
        check_names(folder, known or {})
        for path in shard_files(folder):
            self.damaged.add(path.name)
            if is_whole(path, (known or {}).get(path.name)):
                self._count(path)
        self.conversations_without_answer = 0  # since the last answer
        self._in_progress: deque[str] = deque()

    @property
    def progress(self) -> int:
        """Answer tokens, or shards, written so far; `goal` of them complete the set."""
        return sum(self.answer_tokens.values()) if self.counts_tokens else len(self.answer_tokens)

    @property
    def complete(self) -> bool:
        return self.progress >= self.goal and not self.damaged

    @property
    def _expected(self) -> float:
        """Expected progress once the shards in progress are written."""
        if not self.counts_tokens:
            return self.progress + len(self._in_progress)
        if self.answer_tokens:
            per_shard = self.progress / len(self.answer_tokens)
        else:
            per_shard = TYPICAL_ANSWER_TOKENS * self.size
        return self.progress + len(self._in_progress) * per_shard

    def start_missing(self, start: Callable[[int], Started]) -> Iterator[Started]:
        """Yield `start(number)` for missing shards, until those in progress should suffice."""
        self._in_progress.clear()
        for number in count():
            name = shard_name(number)
            if name in self.answer_tokens:
                continue
            is_enough = self._in_progress and self._expected >= self.goal
            if is_enough and self.damaged <= set(self._in_progress):
                return
            self._in_progress.append(name)
            yield start(number)

    def add(self, rows: list[Row]) -> None:
        """Write the rows of the first shard in progress."""
        path = self.folder / self._in_progress.popleft()
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
        if self._count(path):
            self.conversations_without_answer = 0
        else:
            self.conversations_without_answer += self.size

    def _count(self, path: Path) -> int:
        """Count a shard as written; return its answer tokens."""
        self.damaged.discard(path.name)
        self.hashes[path.name] = file_hash(path)
        self.rows[path.name] = path.read_bytes().count(b"\n")
        self.answer_tokens[path.name] = answer_tokens(path)
        return self.answer_tokens[path.name]


def shard_name(number: int) -> str:
    return f"shard-{number:05}.jsonl"


def shard_files(folder: Path) -> list[Path]:
    """Return the shards of a data set, in order."""
    return sorted(folder.glob("shard-*.jsonl"))


def check_names(folder: Path, known: Mapping[str, str]) -> None:
    """Raise BenchError for a shard that the data set cannot have written.

    Shards are written in the order of their numbers. What holds its rows stays where a manifest
    does not state its shards.
    """
    names = {path.name for path in shard_files(folder)} | known.keys()
    for name in sorted(names):
        found = NAME.fullmatch(name)
        is_next = found and int(found[1]) < len(names)
        if not is_next and (found is None or known or not is_whole(folder / name, None)):
            raise BenchError(
                f"{folder / name} is no shard of this data set", "move it away, or distill anew"
            )


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a shard. Raises BenchError for a line that is not JSON."""
    for _, row in json_lines(path, DAMAGED):
        yield row


def answer_tokens(path: Path) -> int:
    return sum(end - start for row in read_rows(path) for start, end in row["answers"])


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_whole(path: Path, known: str | None) -> bool:
    """Whether a shard holds what was written to it, by its hash or, without one, by its lines."""
    if known is not None:
        return file_hash(path) == known
    try:
        return answer_tokens(path) > 0
    except (BenchError, AttributeError, KeyError, TypeError, ValueError):
        return False


def check_shards(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raise BenchError for a shard that is not what the manifest says was written, or not in it.

    A set that was cut off may hold one shard more than its manifest, the next: a shard is written
    before its hash is.
    """
    hashes = known_hashes(manifest)
    following = "" if SHARDS in manifest else shard_name(len(hashes))
    for name, known in hashes.items():
        path = folder / name
        if not path.is_file() or file_hash(path) != known:
            raise BenchError(f"{path} is damaged or missing", DAMAGED)
    for path in shard_files(folder):
        is_next = path.name == following and is_whole(path, None)
        if hashes and path.name not in hashes and not is_next:
            raise BenchError(
                f"{path} is not in the data set's {MANIFEST}",
                "move it away, or give the same `fspad-bench distill` command again",
            )


def known_hashes(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the hashes of a manifest's shards, by name; none of a manifest without any."""
    files = manifest.get(FILES)
    return dict(files) if isinstance(files, dict) else {}

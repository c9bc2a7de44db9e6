"""The shards of a data set: `shard-00000.jsonl`, `shard-00001.jsonl`, ..., one conversation a line.

A shard is written completely or not at all.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from fspad_bench.util.paths import write_atomically

TYPICAL_ANSWER_TOKENS = 230  # per conversation, until there is a shard to count

Row = dict[str, Any]
Started = TypeVar("Started")


class Shards:
    """The written shards of a folder with their answer tokens, and those in progress, in order.

    The set is `complete` with `tokens` answer tokens or, where that is None, with `shards` shards.
    A shard holds up to `size` conversations.
    """

    def __init__(
        self, folder: Path, size: int, *, tokens: int | None = None, shards: int | None = None
    ) -> None:
        goal = shards if tokens is None else tokens
        assert goal is not None
        self.folder = folder
        self.size = size
        self.counts_tokens = tokens is not None
        self.goal = goal
        self.answer_tokens = {path.name: answer_tokens(path) for path in shard_files(folder)}
        self.conversations_without_answer = 0  # since the last answer
        self._in_progress: deque[str] = deque()

    @property
    def progress(self) -> int:
        """Answer tokens, or shards, written so far; `goal` of them complete the set."""
        return sum(self.answer_tokens.values()) if self.counts_tokens else len(self.answer_tokens)

    @property
    def complete(self) -> bool:
        return self.progress >= self.goal

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
            name = f"shard-{number:05}.jsonl"
            if name in self.answer_tokens:
                continue
            if self._in_progress and self._expected >= self.goal:
                return
            self._in_progress.append(name)
            yield start(number)

    def add(self, rows: list[Row]) -> None:
        """Write the rows of the first shard in progress."""
        path = self.folder / self._in_progress.popleft()
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
        tokens = answer_tokens(path)
        self.answer_tokens[path.name] = tokens
        if tokens:
            self.conversations_without_answer = 0
        else:
            self.conversations_without_answer += self.size


def shard_files(folder: Path) -> list[Path]:
    """Return the shards of a data set, in order."""
    return sorted(folder.glob("shard-*.jsonl"))


def read_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        yield from (json.loads(line) for line in file)


def answer_tokens(path: Path) -> int:
    return sum(end - start for row in read_rows(path) for start, end in row["answers"])

"""A data set as a folder: `shard-00000.jsonl`, ..., `manifest.json` and `overlap.json`.

A shard is written whole or not at all, and what it holds follows from the seed and its number; so an interrupted
`distill` goes on with the first shard that is missing. Several are at work at once and are written in their order, so
what there is of a data set never depends on when it was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from fspad_bench import __version__
from fspad_bench.distill import conversations as talk
from fspad_bench.distill import topics as kinds
from fspad_bench.distill.conversations import Talks
from fspad_bench.distill.imported import Given, rendered
from fspad_bench.engine.batch import Stream, answer_streams
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.errors import BenchError
from fspad_bench.models.chat import Chat, tokenizer_hash
from fspad_bench.util.paths import write_whole
from fspad_bench.util.progress import Progress

ROWS = 64
SHARD = 128
AHEAD = 3  # shards at work at once
USUAL = 230  # answer tokens of a conversation, until there are some to count
SILENT = 16  # conversations without an answer
MANIFEST = "manifest.json"
RECIPE = "recipe"
Row = dict[str, Any]


def distill_free(
    target: TransformersTarget,
    folder: Path,
    *,
    tokens: int,
    seed: int,
    rows: int = ROWS,
    shard: int = SHARD,
) -> Path:
    """The target's own conversations, until there are `tokens` answer tokens."""

    def make(number: int) -> Stream[list[Row]]:
        return Talks(target, seed=(seed, number)).free(shard)

    settings = {"of": "self", "seed": seed, "shard": shard, RECIPE: recipe()}
    return _write(target, folder, settings, make, rows, tokens)


def distill_given(
    target: TransformersTarget,
    folder: Path,
    given: Given,
    *,
    regenerate: bool,
    seed: int,
    rows: int = ROWS,
    shard: int = SHARD,
) -> Path:
    """Given conversations, as they stand or with the target's answers in place of theirs."""
    parts = [given.scripts[start : start + shard] for start in range(0, len(given.scripts), shard)]
    chat = Chat(target.tokenizer, target.stop_ids)

    def make(number: int) -> Stream[list[Row]]:
        if regenerate:
            made = yield from Talks(target, seed=(seed, number)).again(parts[number])
            if len(made) < len(parts[number]):
                given.left_out.append(
                    f"{len(parts[number]) - len(made)} of shard {number} had no room or no answer"
                )
            return made
        return list(rendered(chat, parts[number], given.left_out))

    settings = {"of": given.digest, "regenerate": regenerate, "seed": seed, "shard": shard}
    return _write(target, folder, settings, make, rows, None, shards=len(parts))


def _write(
    target: TransformersTarget,
    folder: Path,
    settings: dict[str, Any],
    make: Callable[[int], Stream[list[Row]]],
    rows: int,
    tokens: int | None,
    shards: int | None = None,
) -> Path:
    """Shard after shard until there are enough, of tokens or of shards."""
    who = {
        "target": target.name,
        "identity": target.identity,
        "tokenizer": tokenizer_hash(target.tokenizer),
    }
    shelf = Shelf(folder, settings["shard"], tokens, shards)
    settings = _claim(folder, who | settings, whole=bool(shelf.held) and shelf.whole)
    began = time.monotonic()
    made = 0

    with Progress(
        "shards" if tokens is None else "answer tokens", shelf.total, start=shelf.done
    ) as progress:

        def told(new: int) -> None:
            nonlocal made
            made += new
            progress.advance(0, f"{made / (time.monotonic() - began):.0f} tokens/s")

        while not shelf.whole:
            for found in answer_streams(
                target, shelf.begin(make), rows=rows, ahead=AHEAD, told=told
            ):
                before = shelf.done
                shelf.add(found)
                if tokens is not None and shelf.silent >= SILENT:
                    text = f"{target.name} says nothing: its last {shelf.silent} conversations hold no answer"
                    raise BenchError(text, "is it an instruct model?")
                progress.advance(
                    shelf.done - before, f"{made / (time.monotonic() - began):.0f} tokens/s"
                )
                if shelf.whole:
                    break
    facts = {
        "version": __version__,
        "shards": len(shelf.held),
        "answer_tokens": sum(shelf.held.values()),
    }
    if json.loads((folder / MANIFEST).read_text(encoding="utf-8")) != settings | facts:
        _save(folder / MANIFEST, settings | facts)
    return folder


class Shelf:
    """The shards of a folder, each with its answer tokens: those written, and those at work, in their order.

    It is `whole` with `tokens` answer tokens, or, where these are None, with so many `shards` of `size` conversations.
    """

    def __init__(self, folder: Path, size: int, tokens: int | None, shards: int | None) -> None:
        self.folder = folder
        self.size = size
        self.counts_tokens = tokens is not None
        self.total = shards if tokens is None else tokens
        self.held = {path.name: answer_tokens(path) for path in shard_files(folder)}
        self.silent = 0  # conversations since the last answer
        self._begun: deque[str] = deque()

    @property
    def done(self) -> int:
        """Of `total`."""
        return sum(self.held.values()) if self.counts_tokens else len(self.held)

    @property
    def whole(self) -> bool:
        return self.done >= self.total

    @property
    def _promised(self) -> float:
        """What there will be when all that has begun is written."""
        if not self.counts_tokens:
            return self.done + len(self._begun)
        usual = self.done / len(self.held) if self.held else USUAL * self.size
        return self.done + len(self._begun) * usual

    def begin(self, make: Callable[[int], Stream[list[Row]]]) -> Iterator[Stream[list[Row]]]:
        """The next shards that are missing, until those begun promise enough; at least one."""
        self._begun.clear()
        for number in count():
            name = f"shard-{number:05}.jsonl"
            if name in self.held:
                continue
            if self._begun and self._promised >= self.total:
                return
            self._begun.append(name)
            yield make(number)

    def add(self, found: list[Row]) -> None:
        """Write what the first of those begun came to."""
        path = self.folder / self._begun.popleft()
        write_whole(path, "".join(json.dumps(row) + "\n" for row in found))
        self.held[path.name] = answer_tokens(path)
        self.silent = 0 if self.held[path.name] else self.silent + self.size


def recipe() -> str:
    """A hash of all that decides what conversations are about and how they are drawn."""
    code = Path(talk.__file__).read_bytes() + Path(kinds.__file__).read_bytes()
    return hashlib.sha256(code).hexdigest()[:16]


def _claim(folder: Path, settings: dict[str, Any], *, whole: bool) -> dict[str, Any]:
    """Make the folder ours, or find that it is; returns the settings it was made by. Raises BenchError where it holds a
    data set made otherwise; one that is whole may be by an older recipe."""
    manifest = folder / MANIFEST
    if manifest.is_file():
        found = json.loads(manifest.read_text(encoding="utf-8"))
        other = [
            k
            for k, value in settings.items()
            if found.get(k) != value and not (whole and k == RECIPE)
        ]
        if other:
            text = f"{folder} holds a data set with another {other[0]}: {found.get(other[0])}, not {settings[other[0]]}"
            raise BenchError(text, "give another --output, or the settings it was begun with")
        return {name: found[name] for name in settings if name in found}
    if folder.exists() and not folder.is_dir():
        raise BenchError(f"{folder} is a file", "--output names a folder")
    if folder.exists() and any(folder.iterdir()):
        raise BenchError(f"{folder} is not empty and holds no data set", "give another --output")
    folder.mkdir(parents=True, exist_ok=True)
    _save(manifest, settings)
    return settings


def _save(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=2) + "\n")


def shard_files(folder: Path) -> list[Path]:
    """The shards of a data set, in order."""
    return sorted(folder.glob("shard-*.jsonl"))


def rows_of(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        yield from (json.loads(line) for line in file)


def answer_tokens(path: Path) -> int:
    return sum(end - start for row in rows_of(path) for start, end in row["answers"])

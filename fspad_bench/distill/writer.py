"""Write a data set: a folder of `shard-00000.jsonl`, ... and `manifest.json`.

- The content of a shard follows from the seed and its number, so an interrupted `distill` continues
  with the first missing shard. Several shards are in progress at once and are written in order: a
  data set never depends on when it was interrupted.
- The manifest holds the settings, and the hash of each shard. A data set continues only under the
  same settings; a shard that is not what was written is made again.
- One process writes at a time.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fspad_bench import __version__
from fspad_bench.distill.conversations import ConversationGenerator, recipe, tokenizer_of
from fspad_bench.distill.imported import Given, rendered
from fspad_bench.distill.lock import exclusive, has_content
from fspad_bench.distill.shards import (
    FILES,
    MANIFEST,
    SHARDS,
    Row,
    Shards,
    known_hashes,
    shard_name,
)
from fspad_bench.engine.batch import Stream, answer_streams
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.models.chat import Chat, vocabulary_hash
from fspad_bench.util.errors import BenchError
from fspad_bench.util.paths import write_atomically
from fspad_bench.util.progress import Progress
from fspad_bench.util.provenance import environment
from fspad_bench.util.terminal import note
from fspad_bench.util.text import json_file

SLOTS = 64
SHARD = 128
AHEAD = 3  # shards in progress at once, at the least
FILL = 2  # conversations in progress for each that the batch has room for: many wait for another
SILENT = 16  # conversations without an answer, after which a target is refused
WITHOUT_ROW = "refused by the chat template, without room, or without an answer"
RECIPE = "recipe"
DAMAGED = "delete the folder, or give another --output"
TARGET = "target_sha256"
SINCE = (TARGET, "dtype")  # settings that older manifests do not state
ENVIRONMENTS = "written_with"

StartShard = Callable[[int], Stream[list[Row]]]
Settings = dict[str, Any]


def distill_own(
    target: TransformersTarget,
    folder: Path,
    *,
    tokens: int,
    seed: int,
    slots: int = SLOTS,
    shard: int = SHARD,
) -> Path:
    """Write the target's own conversations until there are `tokens` answer tokens.

    `slots` conversations are generated at once, `shard` of them make a file.
    """

    def start(number: int) -> Stream[list[Row]]:
        return ConversationGenerator(target, seed=(seed, number)).generate(shard)

    settings = {"of": "self", "seed": seed, "shard": shard, RECIPE: recipe()}
    with exclusive(folder):
        shards = Shards(folder, shard, tokens=tokens, known=_known(folder))
        return _write(target, shards, settings, start, slots)


def distill_given(
    target: TransformersTarget,
    folder: Path,
    given: Given,
    *,
    regenerate: bool,
    seed: int,
    slots: int = SLOTS,
    shard: int = SHARD,
) -> Path:
    """Write given conversations, as they are or with the target's answers in place of theirs.

    Reasons why conversations are left out are appended to `given.left_out`: a call that continues a
    data set counts those of the shards that it found, too.
    """
    parts = [given.scripts[start : start + shard] for start in range(0, len(given.scripts), shard)]
    chat = Chat(tokenizer_of(target), target.stop_ids)
    refused: dict[int, list[str]] = {}  # shards of this call

    def start(number: int) -> Stream[list[Row]]:
        part = parts[number]
        refused[number] = []
        if not regenerate:
            return list(rendered(chat, part, refused[number]))
        generator = ConversationGenerator(target, seed=(seed, number))
        rows = yield from generator.regenerate(part)
        refused[number] += generator.left_out
        return rows

    settings = {"of": given.digest, "regenerate": regenerate, "seed": seed, "shard": shard}
    with exclusive(folder):
        shards = Shards(folder, shard, shards=len(parts), known=_known(folder))
        _write(target, shards, settings, start, slots)
        for number, part in enumerate(parts):
            name = shard_name(number)
            reasons = refused.get(number, [])
            others = len(part) - shards.rows[name] - len(reasons)
            given.left_out.extend(
                [*reasons, *[f"a conversation of {name}: {WITHOUT_ROW}"] * others]
            )
        if not any(shards.answer_tokens.values()):
            first = given.left_out[0] if given.left_out else "the target answers none of them"
            raise BenchError(
                f"no conversation could be used; {first}",
                "give conversations of this target's kind",
            )
        return folder


def _write(
    target: TransformersTarget, shards: Shards, settings: Settings, start: StartShard, slots: int
) -> Path:
    """Generate and write shards until the set is complete; the folder's lock is held."""
    of_target = {
        "target": target.name,
        "identity": target.identity,
        "tokenizer": vocabulary_hash(tokenizer_of(target)),
        TARGET: target.files_sha256,
        "dtype": str(target.dtype).removeprefix("torch."),
    }
    is_complete = bool(shards.answer_tokens) and shards.complete
    settings = _claim(shards.folder, of_target | settings, is_complete=is_complete)
    written = settings | {ENVIRONMENTS: _environments(shards.folder, is_complete=is_complete)}
    path = shards.folder / MANIFEST
    if not is_complete:
        _save(path, written | {FILES: shards.hashes})
    _generate(target, shards, start, slots, lambda: _save(path, written | {FILES: shards.hashes}))
    manifest = written | {
        "version": __version__,
        SHARDS: len(shards.answer_tokens),
        "answer_tokens": sum(shards.answer_tokens.values()),
        FILES: shards.hashes,
    }
    if _manifest(path) != manifest:
        _save(path, manifest)
    return shards.folder


def _generate(
    target: TransformersTarget,
    shards: Shards,
    start: StartShard,
    slots: int,
    on_shard: Callable[[], None],
) -> None:
    """Generate and write the missing shards; call `on_shard` after each."""
    title = "answer tokens" if shards.counts_tokens else "shards"
    ahead = _in_progress(slots, shards.size)
    with Progress(title, shards.goal, start=shards.progress) as progress:
        speed = _Speed()

        def on_tokens(count: int) -> None:
            speed.tokens += count
            progress.advance(0, str(speed))

        while not shards.complete:
            streams = shards.start_missing(start)
            for rows in answer_streams(
                target, streams, slots=slots, ahead=ahead, on_tokens=on_tokens
            ):
                before = shards.progress
                shards.add(rows)
                on_shard()
                progress.advance(shards.progress - before, str(speed))
                _check_answers(target, shards)
                if shards.complete:
                    break


def _in_progress(slots: int, shard: int) -> int:
    """Return how many shards of `shard` conversations keep `slots` of them busy.

    An interruption loses those in progress: small shards lose little.
    """
    return max(AHEAD, math.ceil(FILL * slots / shard))


class _Speed:
    """Generated tokens per second since the start."""

    def __init__(self) -> None:
        self.tokens = 0
        self.start = time.monotonic()

    def __str__(self) -> str:
        return f"{self.tokens / (time.monotonic() - self.start):.0f} tokens/s"


def _check_answers(target: TransformersTarget, shards: Shards) -> None:
    """Raise BenchError for a target that does not answer: its set would never be complete."""
    count = shards.conversations_without_answer
    if shards.counts_tokens and count >= SILENT:
        raise BenchError(
            f"{target.name} does not answer: its last {count} conversations hold no answer",
            "give an instruct model",
        )


def _claim(folder: Path, settings: Settings, *, is_complete: bool) -> Settings:
    """Write the manifest, or compare it; return the settings that the data set was started with.

    Raise BenchError where the folder holds something else, or a data set with other settings. A
    complete data set may have another recipe: nothing is added to it.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        if has_content(folder):
            raise BenchError(
                f"{folder} is not empty and holds no data set", "give another --output"
            )
        _save(manifest, settings)
        return settings
    earlier = _manifest(manifest)
    for name, value in settings.items():
        if name in SINCE and name not in earlier:
            continue
        if earlier.get(name) != value and not (is_complete and name == RECIPE):
            raise BenchError(
                f"{folder} holds a data set with another {name}: {earlier.get(name)}, not {value}",
                "give another --output, or the settings it was started with",
            )
    if is_complete:  # what an older manifest does not state stays unknown
        return {name: earlier[name] for name in settings if name in earlier}
    return {name: earlier.get(name, value) for name, value in settings.items()}


def _environments(folder: Path, *, is_complete: bool) -> list[Settings]:
    """Return the software and machines that have written to a data set, this one included.

    They round differently, so a data set of several is not what one of them would have written.
    """
    earlier = _manifest(folder / MANIFEST).get(ENVIRONMENTS, [])
    own = environment(torch.get_num_threads())
    if is_complete or own in earlier:
        return earlier
    if earlier:
        note(
            f"note: {folder} was begun with other software, threads or machine: "
            f"see {ENVIRONMENTS} in its {MANIFEST}"
        )
    return [*earlier, own]


def _known(folder: Path) -> dict[str, str]:
    """Return the hashes of the shards that were written to a folder earlier."""
    path = folder / MANIFEST
    return known_hashes(_manifest(path)) if path.is_file() else {}


def _manifest(path: Path) -> Settings:
    content = json_file(path, DAMAGED)
    if not isinstance(content, dict):
        raise BenchError(f"{path} is not a manifest", DAMAGED)
    return content


def _save(path: Path, content: Settings) -> None:
    write_atomically(path, json.dumps(content, indent=2) + "\n")

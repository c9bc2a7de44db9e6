"""Read training data: conversations as token ids.

- A line is `{"tokens": [ids], "answers": [[start, end], ...]}`, as `distill` writes it, or
  `{"prompt": [ids], "response": [ids]}`. `"held_out": true` marks a conversation that is never
  learned.
- Data are JSONL files, or folders whose `shard-*.jsonl` are read in order.
- Without marks about one conversation in `HELD_OUT_EVERY` is held out, by a hash of its tokens:
  more data, or the same data in another order, hold out the same conversations.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fspad_bench.distill.conversations import HELD_OUT_EVERY
from fspad_bench.util.errors import BenchError
from fspad_bench.util.text import file_bytes, json_value


@dataclass(frozen=True)
class Conversation:
    """Token ids of a templated conversation, and the spans `[start, end)` of its answers.

    `held_out`: never learned; None leaves that to the hash of its tokens.
    """

    tokens: list[int]
    answers: list[tuple[int, int]]
    held_out: bool | None = None

    def answer_tokens(self) -> int:
        return sum(end - start for start, end in self.answers)

    def whole(self) -> Conversation:
        """Return a copy in which all tokens after the first are one answer.

        A held-out conversation keeps its answers, so that held-out figures stay comparable.
        """
        return self if self.held_out else replace(self, answers=[(1, len(self.tokens))])


class DataFile(NamedTuple):
    """The usable conversations of a file."""

    path: Path
    conversations: list[Conversation]


def read_files(data: Sequence[Path], vocabulary_size: int, max_length: int) -> list[DataFile]:
    """Read JSONL files and folders of shards; cut conversations at `max_length` tokens.

    Conversations without an answer of two tokens before the cut are left out. If none is held out,
    the first one is. Raise BenchError naming the line that is wrong.
    """
    files = [
        DataFile(path, list(_usable(path, vocabulary_size, max_length)))
        for path in data_files(data)
    ]
    conversations = all_conversations(files)
    if not conversations:
        names = ", ".join(map(str, data))
        raise BenchError(
            f"{names} holds no usable conversation",
            "an answer must have two tokens or more, and follow a prompt",
        )
    if not any(conversation.held_out for conversation in conversations):
        first = next(file for file in files if file.conversations)
        first.conversations[0] = replace(first.conversations[0], held_out=True)
    return files


def all_conversations(files: Sequence[DataFile]) -> list[Conversation]:
    return [conversation for file in files for conversation in file.conversations]


def data_files(data: Sequence[Path]) -> list[Path]:
    """Return the files of training data, in order. Raise BenchError where there are none."""
    files = []
    for path in data:
        own = sorted(path.glob("shard-*.jsonl")) if path.is_dir() else [path]
        if not own or not own[0].is_file():
            raise BenchError(
                f"no such training data: {path}",
                "give a folder that `distill` wrote, or a JSONL file",
            )
        files += own
    return files


def data_hash(data: Sequence[Path]) -> str:
    """Return the sha256 of the files' bytes, in order."""
    digest = hashlib.sha256()
    for path in data_files(data):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def frequent_tokens(
    conversations: Sequence[Conversation], size: int, vocabulary_size: int
) -> Tensor:
    """Return the `size` most frequent tokens of the learned answers: ascending ids, `[S]` int64."""
    tokens = [
        token
        for conversation in conversations
        if not conversation.held_out
        for start, end in conversation.answers
        for token in conversation.tokens[start:end]
    ]
    ids = torch.tensor(tokens, dtype=torch.int64)  # float32 where there are none
    counts = torch.bincount(ids, minlength=vocabulary_size)
    by_count = counts.sort(descending=True, stable=True).indices
    return by_count[: min(size, vocabulary_size)].sort().values


def _usable(path: Path, vocabulary_size: int, max_length: int) -> Iterator[Conversation]:
    """Yield the conversations that keep an answer, each with `held_out` decided."""
    for whole in _read_lines(path, vocabulary_size):
        conversation = _cut(whole, max_length)
        if not conversation.answers:
            continue
        if conversation.held_out is None:
            # by the tokens before the cut, so that it does not depend on max_length
            checksum = zlib.crc32(np.array(whole.tokens, np.int64).tobytes())
            held_out = checksum % HELD_OUT_EVERY == 0
            conversation = replace(conversation, held_out=held_out)
        yield conversation


def _read_lines(path: Path, vocabulary_size: int) -> Iterator[Conversation]:
    for number, line in enumerate(file_bytes(path).splitlines(), start=1):
        try:
            yield _conversation(json_value(line), vocabulary_size)
        except (ValueError, KeyError, TypeError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise BenchError(
                f"{path}:{number}: not a conversation: {reason}",
                "`fspad-bench distill` writes such files",
            ) from error


def _conversation(row: dict[str, Any], vocabulary_size: int) -> Conversation:
    """Read a row. Raise ValueError, KeyError or TypeError where it is not a conversation."""
    if "tokens" in row:
        tokens = row["tokens"]
        answers = [(start, end) for start, end in row["answers"]]
    else:
        tokens = [*row["prompt"], *row["response"]]
        answers = [(len(row["prompt"]), len(tokens))]
    _check_tokens(tokens, vocabulary_size)
    _check_answers(answers, len(tokens))
    held_out = row.get("held_out")
    if not isinstance(held_out, bool | None):
        raise ValueError("held_out must be true or false")
    return Conversation(tokens, answers, held_out)


def _check_tokens(tokens: list[Any], vocabulary_size: int) -> None:
    if not isinstance(tokens, list) or not set(map(type, tokens)) <= {int}:
        raise ValueError("token ids must be whole numbers")
    if not all(0 <= token < vocabulary_size for token in tokens):
        raise ValueError(
            f"a token id outside the target's vocabulary of {vocabulary_size}; another tokenizer?"
        )


def _check_answers(answers: list[tuple[Any, Any]], length: int) -> None:
    bounds = [bound for span in answers for bound in span]
    if not set(map(type, bounds)) <= {int}:
        raise ValueError("answers must be pairs of whole numbers")
    if bounds and (bounds != sorted(bounds) or bounds[0] < 0 or bounds[-1] > length):
        spans = [list(span) for span in answers]
        raise ValueError(f"answers {spans} must be in order and lie in {length} tokens")


def _cut(conversation: Conversation, length: int) -> Conversation:
    """Cut the tokens; keep the answers of two tokens or more that follow a prompt."""
    spans = [(start, min(end, length)) for start, end in conversation.answers]
    answers = [(start, end) for start, end in spans if end - start >= 2 and start > 0]
    return replace(conversation, tokens=conversation.tokens[:length], answers=answers)


def nothing_learned(held_out: int) -> BenchError:
    """Return the error of conversations that are all held out."""
    what = f"all {held_out} usable conversations are held out"
    if held_out == 1:
        what = "one usable conversation is too few, because it is held out"
    return BenchError(what, "train on more")

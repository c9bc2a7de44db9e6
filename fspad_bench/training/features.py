"""Training data of a draft: conversations as token ids, and the target's features of them, computed once.

A conversation is `{"tokens": [ids], "answers": [[start, end], ...]}`, one a line, as `distill` writes it, or
`{"prompt": [ids], "response": [ids]}`; `"held_out": true` marks one that is never learned.

Row i of a sequence pairs (f_i, t_{i+1}) and learns f_{i+1} and the law of t_{i+2}; supervised are the rows whose
predicted token stands in an answer behind its first. The published code masks by the index of t_i instead, which
supervises up to two tokens past each answer; ours is shifted. What a draft learns is the target's law, which prompts
have too: `whole` supervises every row.

The store of a file is a folder of flat arrays, one entry a token, that training maps into memory; it resumes where it
stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from fspad_bench.engine.target import TransformersTarget
from fspad_bench.errors import BenchError
from fspad_bench.util.paths import write_whole
from fspad_bench.util.progress import Progress

HELD_OUT_EVERY = 33  # of about so many conversations one is never learned
CHUNK_TOKENS = 2048
LAW_ROWS = 64  # keeps the logits of a chunk within the processor's cache


@dataclass(frozen=True)
class Conversation:
    """Token ids of a templated conversation, and the spans `[start, end)` of the assistant's answers.

    `held_out` says that it is never learned; None leaves that to its place in the data.
    """

    tokens: list[int]
    answers: list[tuple[int, int]]
    held_out: bool | None = None

    def answer_tokens(self) -> int:
        return sum(end - start for start, end in self.answers)

    def whole(self) -> Conversation:
        """The same with all of it supervised, as if one answer to its first token; held out, it stays as it is."""
        return self if self.held_out else replace(self, answers=[(1, len(self.tokens))])


def read_conversations(data: Sequence[Path], vocab: int, max_length: int) -> list[Conversation]:
    """Every usable conversation of JSONL files, or of folders' shards, cut at `max_length`.

    One whose answers are empty or lie behind the cut is left out. Held out are those so marked; of those with no mark
    about every 33rd, by what they say, so that more data, or the same in another order, holds out the same; and the
    first, where that is none. Raises BenchError naming the line that is wrong.
    """
    return [
        conversation for _, part in read_files(data, vocab, max_length) for conversation in part
    ]


def read_files(
    data: Sequence[Path], vocab: int, max_length: int
) -> list[tuple[Path, list[Conversation]]]:
    """The same, file by file."""
    found = [(path, list(_usable(path, vocab, max_length))) for path in data_files(data)]
    filled = [part for _, part in found if part]
    if not filled:
        named = ", ".join(map(str, data))
        raise BenchError(
            f"{named} holds no usable conversation",
            "an answer needs two tokens or more, behind a prompt",
        )
    if not any(conversation.held_out for part in filled for conversation in part):
        filled[0][0] = replace(filled[0][0], held_out=True)
    return found


def _usable(path: Path, vocab: int, max_length: int) -> Iterator[Conversation]:
    for row in _rows(path, vocab):
        conversation = _cut(row, max_length)
        if conversation.answers:
            if conversation.held_out is None:
                said = zlib.crc32(np.array(row.tokens, np.int64).tobytes())
                conversation = replace(conversation, held_out=said % HELD_OUT_EVERY == 0)
            yield conversation


def data_files(data: Sequence[Path]) -> list[Path]:
    """The files of training data, in order. Raises BenchError where there are none."""
    found = []
    for given in data:
        files = sorted(given.glob("shard-*.jsonl")) if given.is_dir() else [given]
        if not files or not files[0].is_file():
            raise BenchError(
                f"no such training data: {given}", "a folder that `distill` wrote, or a JSONL file"
            )
        found += files
    return found


def _rows(path: Path, vocab: int) -> Iterator[Conversation]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield _conversation(json.loads(line), vocab)
            except (ValueError, KeyError, TypeError) as error:
                reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
                raise BenchError(
                    f"{path}:{number}: not a conversation: {reason}",
                    "`fspad-bench distill` writes such files",
                ) from error


def _conversation(row: dict[str, Any], vocab: int) -> Conversation:
    """Raises ValueError, KeyError or TypeError where a row is none."""
    if "tokens" in row:
        tokens = row["tokens"]
        answers = [(start, end) for start, end in row["answers"]]
    else:
        tokens = [*row["prompt"], *row["response"]]
        answers = [(len(row["prompt"]), len(tokens))]
    if not all(isinstance(token, int) for token in tokens):
        raise ValueError("token ids are whole numbers")
    if not all(0 <= token < vocab for token in tokens):
        raise ValueError(
            f"a token id outside the target's vocabulary of {vocab}; another tokenizer?"
        )
    ends = [place for span in answers for place in span]
    if not all(isinstance(place, int) for place in ends):
        raise ValueError("answers are pairs of whole numbers")
    if ends and (ends != sorted(ends) or ends[0] < 0 or ends[-1] > len(tokens)):
        raise ValueError(
            f"answers {row['answers']} do not lie one after the other in {len(tokens)} tokens"
        )
    held_out = row.get("held_out")
    if not isinstance(held_out, bool | None):
        raise ValueError("held_out is true or false")
    return Conversation(tokens, answers, held_out)


def _cut(conversation: Conversation, length: int) -> Conversation:
    spans = [(start, min(end, length)) for start, end in conversation.answers]
    answers = [(start, end) for start, end in spans if end - start >= 2 and start]
    return replace(conversation, tokens=conversation.tokens[:length], answers=answers)


def frequent_tokens(conversations: list[Conversation], size: int, vocab: int) -> Tensor:
    """The `size` most frequent tokens of the answers that are learned, ascending ids, `[S]` int64."""
    learned = [c for c in conversations if not c.held_out]
    said = torch.tensor(
        [token for c in learned for start, end in c.answers for token in c.tokens[start:end]]
    )
    counts = torch.bincount(said, minlength=vocab)
    order = counts.sort(descending=True, stable=True).indices
    return order[: min(size, vocab)].sort().values


class Batch(NamedTuple):
    """Sequences of one training step, padded on the right.

    ids `[B, L]`, features `[B, L, d]` bfloat16, supervised rows `[B, L]` bool; behind each of those N rows the
    log-sum-exp of the target's logits and its first choice (a full-vocabulary id), `[N]` each.
    `vocabulary [S]` are the ids that a draft can say of this text, where that is settled.
    """

    ids: Tensor
    features: Tensor
    rows: Tensor
    normaliser: Tensor
    choice: Tensor
    vocabulary: Tensor | None = None


def ids_and_rows(conversations: list[Conversation]) -> tuple[Tensor, Tensor]:
    """Their ids and supervised rows, `[B, L]` each: row i learns the law of token i + 2."""
    ids = pad([conversation.tokens for conversation in conversations])
    rows = torch.zeros(ids.shape, dtype=torch.bool)
    for b, conversation in enumerate(conversations):
        for start, end in conversation.answers:
            rows[b, start - 1 : end - 2] = True
    return ids, rows


class LiveFeatures:
    """Features computed anew whenever they are asked for: nothing on disk, a forward of the target a step.

    For a GPU, where a store of every feature would be larger than it is fast.
    """

    def __init__(self, target: TransformersTarget, conversations: list[Conversation]) -> None:
        self.target = target
        self.conversations = conversations
        self.lengths = [len(conversation.tokens) for conversation in conversations]

    @torch.no_grad()
    def load(self, group: Sequence[int]) -> Batch:
        """Sequences with what the target says of them."""
        ids, rows = ids_and_rows([self.conversations[s] for s in group])
        ids = ids.to(self.target.device)
        rows = rows.to(self.target.device)
        features = self.target.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        behind = features[:, 1:][rows[:, :-1]]
        return Batch(
            ids, features.to(torch.bfloat16), rows, *_laws(behind, self.target, LAW_ROWS * 64)
        )


class StoredFeatures:
    """Features on disk, those of each file in a store of its own: a data set that grows keeps what it has."""

    def __init__(self, stores: Sequence[FeatureStore]) -> None:
        self.stores = stores
        self.conversations = [
            conversation for store in stores for conversation in store.conversations
        ]
        self.lengths = [len(conversation.tokens) for conversation in self.conversations]
        self.places = [(store, s) for store in stores for s in range(len(store.conversations))]

    def fill(self, target: TransformersTarget) -> None:
        """Run the target over every sequence that no earlier call has finished."""
        total, ready = (
            sum(each)
            for each in zip(*((len(s.groups), s.ready()) for s in self.stores), strict=True)
        )
        with Progress("features", total, start=ready) as progress:
            for store in self.stores:
                store.fill(target, progress.advance)

    def load(self, group: Sequence[int]) -> Batch:
        """Sequences with what the target said of them."""
        ids, rows = ids_and_rows([self.conversations[s] for s in group])
        parts = [store.rows(place) for store, place in (self.places[s] for s in group)]
        features = torch.nn.utils.rnn.pad_sequence([part[0] for part in parts], batch_first=True)
        return Batch(ids, features, rows, *(torch.cat([part[i] for part in parts]) for i in (1, 2)))


Features = LiveFeatures | StoredFeatures


class FeatureStore:
    """Of one file's sequences, per token: the target's feature, and of the law after it the log-sum-exp and the first
    choice. `starts[s]` is where sequence s begins. Nothing here depends on a draft's vocabulary or what it learns."""

    def __init__(self, folder: Path, conversations: list[Conversation], d: int) -> None:
        self.folder = folder
        self.conversations = conversations
        lengths = [len(conversation.tokens) for conversation in conversations]
        self.groups = list(by_length(lengths, CHUNK_TOKENS))
        self.starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        total = int(self.starts[-1])
        folder.mkdir(parents=True, exist_ok=True)
        self.done = folder / "done"
        self.lock = FileLock(f"{folder}.lock")
        with self.lock:
            self.features = self._map("features", np.int16, (total, d))  # bfloat16 by its bits
            self.normaliser = self._map("normaliser", np.float32, (total,))
            self.choice = self._map("choice", np.int32, (total,))

    def _map(self, name: str, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
        if not shape[0]:
            return np.empty(shape, dtype)
        path = self.folder / f"{name}.bin"
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if not (path.exists() and path.stat().st_size == size):
            self.done.unlink(missing_ok=True)  # what was done is gone
            with path.open("wb") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(
                        file.fileno(), 0, size
                    )  # a full disk is an error here, and a crash once mapped
                else:
                    file.truncate(size)
        return np.memmap(path, dtype, "r+", shape=shape)

    def ready(self) -> int:
        """How many groups have been computed."""
        return int(self.done.read_text()) if self.done.exists() else 0

    @torch.inference_mode()
    def fill(self, target: TransformersTarget, told: Callable[[], None] = lambda: None) -> None:
        """Run the target over every sequence that nobody has finished; `told` after each group."""
        with self.lock:
            for number in range(self.ready(), len(self.groups)):
                self._compute(target, self.groups[number])
                for array in (self.features, self.normaliser, self.choice):
                    array.flush()
                write_whole(self.done, str(number + 1))
                told()

    def _compute(self, target: TransformersTarget, group: list[int]) -> None:
        ids = pad([self.conversations[s].tokens for s in group]).to(target.device)
        hidden = target.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        for features, s in zip(hidden, group, strict=True):
            begin, end = self.starts[s : s + 2]
            features = features[: end - begin]
            self.features[begin:end] = bits_of(features)
            found = _laws(features, target, LAW_ROWS)
            self.normaliser[begin:end], self.choice[begin:end] = (
                part.cpu().numpy() for part in found
            )

    def rows(self, s: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of a sequence the features `[L, d]`, and behind its supervised rows log-sum-exps and choices."""
        spans = self.conversations[s].answers
        places = (
            np.concatenate([np.arange(start, end - 1) for start, end in spans]) + self.starts[s]
        )
        features = from_bits(self.features[self.starts[s] : self.starts[s + 1]])
        choice = torch.from_numpy(self.choice[places].astype(np.int64))
        return features, torch.from_numpy(self.normaliser[places]), choice


def _laws(features: Tensor, target: TransformersTarget, at_once: int) -> list[Tensor]:
    """features `[N, d]` -> the log-sum-exp of the logits and the most likely token, `[N]` each, part by part."""
    found = []
    for part in features.split(at_once):
        logits = torch.nn.functional.linear(part, target.lm_head.weight)
        found.append((logits.float().logsumexp(-1), logits.max(-1).indices))
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def by_length(lengths: list[int], budget: int) -> Iterator[list[int]]:
    """Indices grouped so that each group, padded, has at most `budget` tokens (a longer sequence stands alone)."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if group and (len(group) + 1) * lengths[index] > budget:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def pad(rows: list[list[int]]) -> Tensor:
    """Right-padded with token 0: under causal attention what is behind a row cannot touch it."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def bits_of(x: Tensor) -> np.ndarray:
    return x.to(torch.bfloat16).view(torch.int16).cpu().numpy()


def from_bits(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x)).view(torch.bfloat16)


def data_hash(data: Sequence[Path]) -> str:
    """Of all files' bytes, in order."""
    digest = hashlib.sha256()
    for path in data_files(data):
        digest.update(path.read_bytes())
    return digest.hexdigest()

"""The target's features of conversations, from which a draft network learns.

- Position i of a sequence pairs (f_i, t_{i+1}) and predicts f_{i+1} and the distribution of
  t_{i+2}. It is supervised when t_{i+2} lies in an answer, after the answer's first token.
- The published code masks by the index of t_i instead, which supervises up to two tokens past each
  answer.
- A network may read other hidden states than the final one (`Shape.capture`). They are kept beside
  the features, side by side for each token.
- `StoredFeatures` computes features once and keeps them on disk; `LiveFeatures` computes them at
  every step.
- The store of a file is a folder of flat arrays, one entry per token, that training maps into
  memory. An interrupted store continues where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from fspad_bench.engine.target import TransformersTarget
from fspad_bench.training.conversations import Conversation, DataFile, data_hash
from fspad_bench.util.errors import BenchError
from fspad_bench.util.paths import cache_home, write_atomically
from fspad_bench.util.progress import Progress

STORE_FORMAT = 2  # stores of another format are computed anew
CHUNK_TOKENS = 2048
STORED_LOGITS = 256  # positions whose logits are computed at once on a processor
LIVE_LOGITS = 4096  # on a GPU the memory is the bound

Array = np.ndarray[Any, np.dtype[Any]]
CAPTURED = "-captured-"  # in a store's name, before the states that it holds besides features
STATES = ("features", "captured")  # parts of a batch that are hidden states


class Batch(NamedTuple):
    """Sequences of one training step, padded on the right.

    - `ids [B, L]`, `features [B, L, d]` bfloat16, or of the type that a training multiplies.
    - `supervised [B, L]` bool: the N positions with something to learn.
    - `normaliser [N]`, `choice [N]`: of the target's distribution after each supervised position's
      next token, the log-sum-exp of its logits and the id of its first choice.
    - `captured [B, L, k d]`, of the same type: the hidden states that the network reads; None where
      those are the features.
    """

    ids: Tensor
    features: Tensor
    supervised: Tensor
    normaliser: Tensor
    choice: Tensor
    captured: Tensor | None = None

    @property
    def states(self) -> Tensor:
        """The states that the network reads, as a session with its `capture` hands it out."""
        return self.features if self.captured is None else self.captured

    def to(self, device: torch.device, numbers: torch.dtype) -> Batch:
        """Return the batch on a device, its hidden states in a type of numbers."""
        moved = {name: part.to(device) for name, part in self._asdict().items() if part is not None}
        states = {name: moved[name].to(numbers) for name in STATES if name in moved}
        return self._replace(**moved | states)


class LiveFeatures:
    """Features computed at every load: nothing on disk, one forward of the target per step.

    For a GPU, where reading a store of every feature would be slower than computing them.
    """

    def __init__(
        self,
        target: TransformersTarget,
        conversations: list[Conversation],
        capture: Sequence[int] = (),
    ) -> None:
        self.target = target
        self.capture = capture
        self.conversations = conversations
        self.lengths = [len(conversation.tokens) for conversation in conversations]

    @torch.no_grad()
    def load(self, group: Sequence[int]) -> Batch:
        """Return the batch of these sequences."""
        ids, supervised = ids_and_supervised([self.conversations[s] for s in group])
        ids = ids.to(self.target.device)
        supervised = supervised.to(self.target.device)
        features, captured = _hidden_states(self.target, ids, self.capture)
        next_features = features[:, 1:][supervised[:, :-1]]
        normaliser, choice = _distributions(next_features, self.target, LIVE_LOGITS)
        captured = None if captured is None else captured.to(torch.bfloat16)
        return Batch(ids, features.to(torch.bfloat16), supervised, normaliser, choice, captured)


class StoredFeatures:
    """Features on disk, one store per file: a data set that grows keeps its features.

    `with_captured`: hand out the captured hidden states too, where the stores hold any.
    """

    def __init__(self, stores: Sequence[FeatureStore], with_captured: bool = True) -> None:
        self.stores = stores
        self.with_captured = with_captured
        self.conversations = [c for store in stores for c in store.conversations]
        self.lengths = [len(conversation.tokens) for conversation in self.conversations]
        self.locations = [(store, s) for store in stores for s in range(len(store.conversations))]

    def fill(self, target: TransformersTarget) -> None:
        """Run the target over every sequence whose features are missing."""
        total = sum(len(store.groups) for store in self.stores)
        ready = sum(store.ready() for store in self.stores)
        with Progress("features", total, start=ready) as progress:
            for store in self.stores:
                store.fill(target, progress.advance)

    def load(self, group: Sequence[int]) -> Batch:
        """Return the batch of these sequences."""
        ids, supervised = ids_and_supervised([self.conversations[s] for s in group])
        sequences = [store.load(s) for store, s in (self.locations[s] for s in group)]
        features = pad_sequence([own.features for own in sequences], batch_first=True)
        normaliser = torch.cat([own.normaliser for own in sequences])
        choice = torch.cat([own.choice for own in sequences])
        states = [own.captured for own in sequences if own.captured is not None]
        has_captured = self.with_captured and bool(states)
        captured = pad_sequence(states, batch_first=True) if has_captured else None
        return Batch(ids, features, supervised, normaliser, choice, captured)


Features = LiveFeatures | StoredFeatures


class SequenceFeatures(NamedTuple):
    """`features [L, d]`; `normaliser [N]` and `choice [N]` at the supervised positions.

    `captured [L, k d]`: the captured hidden states, if there are any.
    """

    features: Tensor
    normaliser: Tensor
    choice: Tensor
    captured: Tensor | None = None


class FeatureStore:
    """The features of one file's sequences, with log-sum-exp and first choice after each token.

    Sequence s has the entries from `starts[s]` to `starts[s + 1]`. Nothing here depends on a
    draft's vocabulary or on which positions are supervised.

    `done` holds the number of groups computed and a digest of them, so that arrays of another store
    or edited ones are computed anew. Of the features, which are large, it covers each sequence's
    first and last.
    """

    def __init__(
        self,
        folder: Path,
        conversations: list[Conversation],
        d: int,
        capture: Sequence[int] = (),
    ) -> None:
        self.folder = folder
        self.capture = tuple(capture)
        self.conversations = conversations
        lengths = [len(conversation.tokens) for conversation in conversations]
        self.groups = list(by_length(lengths, CHUNK_TOKENS))
        self.starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        total = int(self.starts[-1])
        folder.mkdir(parents=True, exist_ok=True)
        self.done = folder / "done"
        self.lock = FileLock(f"{folder}.lock")
        with self.lock:
            self.features = self._map("features", np.int16, (total, d))  # the bits of bfloat16
            self.captured = self._map("captured", np.int16, (total, len(self.capture) * d))
            self.normaliser = self._map("normaliser", np.float32, (total,))
            self.choice = self._map("choice", np.int32, (total,))

    def _map(self, name: str, dtype: type[np.generic], shape: tuple[int, ...]) -> Array:
        """Map an array of the store into memory; create it where it is missing."""
        if not all(shape):
            return np.empty(shape, dtype)
        path = self.folder / f"{name}.bin"
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if not (path.exists() and path.stat().st_size == size):
            self.done.unlink(missing_ok=True)
            _allocate(path, size)
        return np.memmap(path, dtype, "r+", shape=shape)

    def ready(self) -> int:
        """Return the number of groups that have been computed; 0 where that cannot be known."""
        try:
            number, digest = self.done.read_text(encoding="utf-8").split()
            count = int(number)
        except (OSError, ValueError):
            return 0
        if not 0 < count <= len(self.groups):
            return 0
        return count if self._digest(self.groups[:count]).hexdigest() == digest else 0

    def _digest(self, groups: Sequence[list[int]]) -> hashlib._Hash:
        """Return a hash over the store's name and the arrays' entries of these groups."""
        digest = hashlib.sha256(self.folder.name.encode())
        for group in groups:
            self._extend(digest, group)
        return digest

    def _extend(self, digest: hashlib._Hash, group: list[int]) -> None:
        for s in group:
            begin = self.starts[s]
            end = self.starts[s + 1]
            for entries in (self.normaliser[begin:end], self.choice[begin:end]):
                digest.update(entries.tobytes())
            for states in (self.features, self.captured):
                digest.update(states[[begin, end - 1]].tobytes())

    @torch.inference_mode()
    def fill(
        self, target: TransformersTarget, on_progress: Callable[[], None] = lambda: None
    ) -> None:
        """Compute the groups that are missing; call `on_progress` after each."""
        with self.lock:
            first = self.ready()
            digest = self._digest(self.groups[:first])
            for number in range(first, len(self.groups)):
                self._compute(target, self.groups[number])
                self._extend(digest, self.groups[number])
                for array in (self.features, self.captured, self.normaliser, self.choice):
                    if isinstance(array, np.memmap):
                        array.flush()
                write_atomically(self.done, f"{number + 1} {digest.hexdigest()}")
                on_progress()

    def _compute(self, target: TransformersTarget, group: list[int]) -> None:
        ids = pad([self.conversations[s].tokens for s in group]).to(target.device)
        hidden, captured = _hidden_states(target, ids, self.capture)
        for row, s in enumerate(group):
            begin = self.starts[s]
            end = self.starts[s + 1]
            features = hidden[row, : end - begin]
            normaliser, choice = _distributions(features, target, STORED_LOGITS)
            self.features[begin:end] = _bits(features)
            if captured is not None:
                self.captured[begin:end] = _bits(captured[row, : end - begin])
            self.normaliser[begin:end] = normaliser.cpu().numpy()
            self.choice[begin:end] = choice.cpu().numpy()

    def load(self, s: int) -> SequenceFeatures:
        """Return the features of one sequence."""
        start = self.starts[s]
        end = self.starts[s + 1]
        # position i is supervised by the distribution after token i + 1, whose entry is i + 1
        supervised = [np.arange(a, b - 1) for a, b in self.conversations[s].answers]
        entries = start + np.concatenate(supervised)
        return SequenceFeatures(
            _from_bits(self.features[start:end]),
            torch.from_numpy(self.normaliser[entries]),
            torch.from_numpy(self.choice[entries].astype(np.int64)),
            _from_bits(self.captured[start:end]) if self.capture else None,
        )


def cached_features(
    target: TransformersTarget,
    files: Sequence[DataFile],
    max_length: int,
    capture: Sequence[int] = (),
) -> StoredFeatures:
    """Return features kept in the user's cache, computing those that are missing.

    A store is named by everything that decides its content. One with captured states serves a
    network that reads none, too. Raise BenchError where the cache cannot be written to.
    """
    root = cache_home() / "features"
    try:
        stores = [_store(root, target, file, max_length, tuple(capture)) for file in files]
        features = StoredFeatures(stores, with_captured=bool(capture))
        features.fill(target)
    except OSError as error:
        raise BenchError(
            f"cannot keep features in {root}: {error}",
            "free space, set FSPAD_BENCH_CACHE, or train with --live",
        ) from error
    return features


def _store(
    root: Path,
    target: TransformersTarget,
    file: DataFile,
    max_length: int,
    capture: tuple[int, ...],
) -> FeatureStore:
    """Return the store of a file, or a filled one that holds captured states besides."""
    d = target.config.hidden_size
    name = _store_name(target, file.path, max_length)
    if not capture:
        for folder in sorted(root.glob(f"{name}{CAPTURED}*[0-9]")):
            states = tuple(int(state) for state in folder.name.split(CAPTURED)[1].split("-"))
            richer = FeatureStore(folder, file.conversations, d, states)
            if richer.ready() == len(richer.groups):
                return richer
        return FeatureStore(root / name, file.conversations, d)
    folder = root / (name + CAPTURED + "-".join(map(str, capture)))
    return FeatureStore(folder, file.conversations, d, capture)


def _store_name(target: TransformersTarget, path: Path, max_length: int) -> str:
    of_target = [target.identity, target.files_sha256, str(target.dtype)]
    key = [STORE_FORMAT, data_hash([path]), *of_target, max_length]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]


def _allocate(path: Path, size: int) -> None:
    """Create a file of `size` bytes.

    They are reserved where possible: on a full disk a mapped file would crash later.
    """
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


def _hidden_states(
    target: TransformersTarget, ids: Tensor, capture: Sequence[int]
) -> tuple[Tensor, Tensor | None]:
    """Return the final hidden states of ids `[B, L]`, and the captured ones side by side, if any.

    `[B, L, d]` and `[B, L, k d]`.
    """
    out = target.model.base_model(
        input_ids=ids, use_cache=False, output_hidden_states=bool(capture)
    )
    states = [out.hidden_states[index] for index in capture]
    return out.last_hidden_state, torch.cat(states, dim=-1) if states else None


def _distributions(
    features: Tensor, target: TransformersTarget, at_once: int
) -> tuple[Tensor, Tensor]:
    """Return log-sum-exp of the logits and most likely token, `[N]` each.

    features `[N, d]`; logits are computed for `at_once` positions at a time.
    """
    normaliser = []
    choice = []
    for part in features.split(at_once):
        logits = F.linear(part, target.lm_head.weight)
        normaliser.append(logits.float().logsumexp(-1))
        choice.append(logits.max(-1).indices)
    return torch.cat(normaliser), torch.cat(choice)


def ids_and_supervised(conversations: list[Conversation]) -> tuple[Tensor, Tensor]:
    """Return token ids and supervised positions, `[B, L]` each."""
    ids = pad([conversation.tokens for conversation in conversations])
    supervised = torch.zeros(ids.shape, dtype=torch.bool)
    for b, conversation in enumerate(conversations):
        for start, end in conversation.answers:
            supervised[b, start - 1 : end - 2] = True
    return ids, supervised


def supervised_count(features: Features, group: Sequence[int], first: int = 0) -> int:
    """Return the number of supervised positions of these sequences, from position `first` on."""
    spans = [span for s in group for span in features.conversations[s].answers]
    return sum(max(0, end - 2 - max(start - 1, first)) for start, end in spans)


def by_length(lengths: list[int], budget: int) -> Iterator[list[int]]:
    """Yield groups of indices of similar lengths: padded, a group has at most `budget` tokens.

    A sequence that is longer than `budget` is a group of its own.
    """
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if group and (len(group) + 1) * lengths[index] > budget:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def pad(sequences: list[list[int]]) -> Tensor:
    """Pad with token 0 on the right.

    Under causal attention padding cannot affect the tokens before it.
    """
    return pad_sequence([torch.tensor(tokens) for tokens in sequences], batch_first=True)


def _bits(x: Tensor) -> Array:
    return x.to(torch.bfloat16).view(torch.int16).cpu().numpy()


def _from_bits(x: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x)).view(torch.bfloat16)

"""The target's features of conversations, from which a draft network learns.

- Position i of a sequence pairs (f_i, t_{i+1}) and predicts f_{i+1} and the distribution of
  t_{i+2}. It is supervised when t_{i+2} lies in an answer, after the answer's first token.
- The published code masks by the index of t_i instead, which supervises up to two tokens past each
  answer.
- A network may read other hidden states than the final one (`Shape.capture`). They are kept beside
  the features, side by side for each token.
- `StoredFeatures` computes features once and keeps them on disk; `LiveFeatures` computes them at
  every step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fspad_bench.engine.target import TransformersTarget
from fspad_bench.training.conversations import Conversation, DataFile, data_hash
from fspad_bench.training.feature_store import (
    FeatureStore,
    distributions,
    hidden_states,
    pad,
)
from fspad_bench.util.errors import BenchError
from fspad_bench.util.paths import cache_home
from fspad_bench.util.progress import Progress

STORE_FORMAT = 2  # stores of another format are computed anew
LIVE_LOGITS = 4096  # on a GPU the memory is the bound

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
        features, captured = hidden_states(self.target, ids, self.capture)
        next_features = features[:, 1:][supervised[:, :-1]]
        normaliser, choice = distributions(next_features, self.target, LIVE_LOGITS)
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

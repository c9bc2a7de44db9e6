"""A file's features on disk, and how they are computed.

The store of a file is a folder of flat arrays, one entry per token, that training maps into memory.
An interrupted store continues where it stopped.
"""

from __future__ import annotations

import hashlib
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
from fspad_bench.training.conversations import Conversation
from fspad_bench.util.paths import write_atomically

CHUNK_TOKENS = 2048
STORED_LOGITS = 256  # positions whose logits are computed at once on a processor

Array = np.ndarray[Any, np.dtype[Any]]


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
        hidden, captured = hidden_states(target, ids, self.capture)
        for row, s in enumerate(group):
            begin = self.starts[s]
            end = self.starts[s + 1]
            features = hidden[row, : end - begin]
            normaliser, choice = distributions(features, target, STORED_LOGITS)
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


def hidden_states(
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


def distributions(
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


def _allocate(path: Path, size: int) -> None:
    """Create a file of `size` bytes.

    They are reserved where possible: on a full disk a mapped file would crash later.
    """
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


def _bits(x: Tensor) -> Array:
    return x.to(torch.bfloat16).view(torch.int16).cpu().numpy()


def _from_bits(x: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x)).view(torch.bfloat16)

"""A session: one sequence's KV state over a target.

- `prefill` starts a sequence; `extend` scores more tokens, again and again, whose entries are
  pending; `commit` keeps a path of them and drops the others; `rollback` drops them all. A tree
  scored level by level gives the logits of the same tree scored at once.
- A session may run some of a target's layers only (`layers`), hand out hidden states (`capture`),
  and read the entries of another session of the same target (`share`): its own entries are pending
  behind them until they are rolled back. It may look back, and go on from an earlier token.
- Writing past the last slot, extending before a prefill, and writing over another session's pending
  entries raise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from fspad_bench.core.protocols import ALL, LayerPlan
from fspad_bench.core.tree import Tree, extend_ancestry
from fspad_bench.engine.attention import Pending
from fspad_bench.engine.cache import KVCache
from fspad_bench.util.errors import BenchError

LARGEST_TREE = 128  # pending entries of a session


class Scores(NamedTuple):
    """The result of a forward for its tokens: `logits [N, V]` and `features [N, d]`.

    A prefill has the logits of its last token alone, `[1, V]`. With k captured layers, features are
    `[N, k d]`.
    """

    logits: Tensor
    features: Tensor


class Model(Protocol):
    """A session's view of the target that opened it (`target.TransformersTarget`)."""

    forwards: int

    @property
    def logits(self) -> Callable[[Tensor], Tensor]: ...
    def prefill(
        self, tokens: Sequence[int], cache: KVCache, layers: LayerPlan, capture: tuple[int, ...]
    ) -> tuple[Tensor, list[Tensor]]: ...
    def extend(
        self,
        tokens: Sequence[int],
        pending: Pending,
        cache: KVCache,
        layers: LayerPlan,
        capture: tuple[int, ...],
    ) -> tuple[Tensor, list[Tensor]]: ...
    def check_tokens(self, tokens: Sequence[int], guess: str) -> None: ...
    def release(self, cache: KVCache) -> None: ...
    def synchronize(self) -> None: ...


class Session:
    """One sequence over a target, opened by `TransformersTarget.session`.

    As a context manager it hands its cache back at the end.
    """

    def __init__(
        self,
        target: Model,
        cache: KVCache,
        *,
        layers: LayerPlan = ALL,
        capture: Sequence[int] = (),
        share: Session | None = None,
    ) -> None:
        self.target = target
        self.cache = cache
        self.layers = layers
        self.capture = tuple(capture)
        self.share = share
        self.prefilled = False
        self.closed = False
        self._length = 0
        self._hidden = 0
        self._forget_pending()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Drop pending entries and hand the cache back: nothing more can run here."""
        if self.closed:
            return
        self.rollback()
        self.closed = True
        if self.share is None:
            self.cache.writer = None  # a sharing session, where its drafter failed in a draft
            self.target.release(self.cache)

    @property
    def length(self) -> int:
        """Committed entries; a sharing session has those of the session that it shares, but for
        those that it looks back over.
        """
        return self._length if self.share is None else self.share.length - self._hidden

    @property
    def pending(self) -> int:
        return len(self._parents)

    @torch.inference_mode()
    def prefill(self, tokens: Sequence[int]) -> Scores:
        """Start the sequence anew.

        Raises BenchError for no tokens and for tokens the target does not have, RuntimeError for
        more of them than there are slots, and in a session that shares another's entries or is
        closed.
        """
        if self.share is not None:
            raise RuntimeError("a sharing session reads the entries of another: prefill that one")
        self._check_open()
        if not tokens:
            raise BenchError("the prompt is empty", "a target needs at least one token to continue")
        self.target.check_tokens(tokens, "the prompt was made with another tokenizer")
        self.rollback()
        self._check_room(0, len(tokens))
        features, captured = self.target.prefill(tokens, self.cache, self.layers, self.capture)
        self._length = len(tokens)
        self.prefilled = True
        return self._scores(features, captured, last_only=True)

    @torch.inference_mode()
    def extend(self, tokens: Sequence[int], parents: Sequence[int]) -> Scores:
        """Score tokens as pending entries; `parents` number the pending entries so far, -1 is the
        last committed.

        Raises ValueError where a parent does not precede its child, BenchError for tokens the
        target does not have and for more than `LARGEST_TREE` pending entries, RuntimeError before a
        prefill or past the last slot.
        """
        pending = self.announce(tokens, parents)
        features, captured = self.target.extend(
            tokens, pending, self.cache, self.layers, self.capture
        )
        return self._scores(features, captured)

    def announce(self, tokens: Sequence[int], parents: Sequence[int]) -> Pending:
        """Note tokens as pending whose entries a forward is about to write; raises as `extend`."""
        self._check_extension(tokens, parents)
        hidden = self._hidden
        behind = [parent + hidden if parent >= 0 else parent for parent in parents]
        extend_ancestry(self._ancestry, behind)
        self._parents += parents
        self.cache.writer = self
        return Pending(self.length, self._ancestry, len(tokens))

    def score(self, tree: Tree) -> Scores:
        """Extend by a whole tree. Raises RuntimeError where entries are pending already."""
        if self._parents:
            raise RuntimeError("score before the last tree was committed or rolled back")
        return self.extend(tree.tokens, tree.parents)

    @torch.inference_mode()
    def commit(self, path: Sequence[int]) -> None:
        """Keep these pending entries and drop the others.

        Raises ValueError unless they are a path from the top.
        """
        if self.share is not None:
            raise RuntimeError("a sharing session commits nothing: roll it back")
        for node, parent in zip(path, [-1, *path], strict=False):
            if not 0 <= node < len(self._parents) or self._parents[node] != parent:
                raise ValueError(f"{list(path)} is no path of the pending entries")
        self.cache.keep(self._length, path)
        self._length += len(path)
        self._forget_pending()

    def rollback(self) -> None:
        """Drop all pending entries."""
        self._forget_pending()

    def rewind(self, length: int) -> None:
        """Forget pending entries and all committed ones from `length` on."""
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot rewind {self._length} entries to {length}")
        self.rollback()
        self._length = length

    def look_back(self, count: int) -> None:
        """Let a sharing session go on before the last `count` entries that it shares: it neither
        sees them nor writes over them, and they count as pending ones.

        Raises ValueError for more than there are, and RuntimeError in a session that shares none.
        """
        if self.share is None:
            raise RuntimeError("only a sharing session looks back")
        if not 0 <= count <= self.share.length:
            raise ValueError(f"cannot look back over {count} of {self.share.length} entries")
        self._hidden = count
        self.rollback()

    def advance(self, count: int) -> None:
        """Count the one forward of a step that ran whole on the device and kept `count` entries."""
        self.target.forwards += 1
        self._length += count

    def _check_extension(self, tokens: Sequence[int], parents: Sequence[int]) -> None:
        self._check_open()
        first = len(self._parents)
        if not (self.prefilled if self.share is None else self.share.prefilled):
            raise RuntimeError("extend before a prefill")
        if self.cache.writer not in (None, self):
            raise RuntimeError("another session has pending entries in this cache: roll it back")
        if len(tokens) != len(parents) or not tokens:
            raise ValueError(f"{len(tokens)} tokens with {len(parents)} parents")
        if any(not -1 <= parent < first + i for i, parent in enumerate(parents)):
            raise ValueError(f"a parent must precede its child: {list(parents)}")
        total = self._hidden + first + len(tokens)
        if total > LARGEST_TREE:
            raise BenchError(f"a tree of {total} nodes is too large", f"at most {LARGEST_TREE}")
        self.target.check_tokens(tokens, "the draft was made for another target")
        self._check_room(self.length + self._hidden + first, len(tokens))

    def _check_open(self) -> None:
        """Raise RuntimeError once the cache may be another session's."""
        if self.closed or (self.share is not None and self.share.closed):
            raise RuntimeError("the session is closed")

    def _check_room(self, start: int, count: int) -> None:
        if start + count > self.cache.slots:
            raise RuntimeError(
                f"{start + count} entries do not fit a session of {self.cache.slots} slots: "
                "open it with a larger capacity"
            )

    def _scores(
        self, features: Tensor, captured: list[Tensor], *, last_only: bool = False
    ) -> Scores:
        logits = self.target.logits(features[-1:] if last_only else features)
        return Scores(logits, torch.cat(captured, dim=-1) if captured else features)

    def _forget_pending(self) -> None:
        # each of the hidden ones is seen by itself alone
        self._ancestry: list[int] = [1 << entry for entry in range(self._hidden)]
        self._parents: list[int] = []
        if self.cache.writer is self:
            self.cache.writer = None

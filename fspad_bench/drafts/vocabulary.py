"""The draft vocabulary: the frequent tokens of a head, and those of the text at hand.

- A product with the target's whole vocabulary would cost a small draft more than all else, so a
  head can draft some thousands of tokens (as in FR-Spec, Zhao et al. 2025, arXiv 2502.14856).
- What an answer takes from its prompt, names above all, is often not among them. So the text's own
  tokens, some ten to a hundred that the head lacks, join them while a prompt is answered: their
  rows of the LM head are the target's, like those of any other token. In training a batch's own
  tokens join.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fspad_bench.engine.cpu.linear import Matrix


class Vocabulary:
    """`base_ids [S]`: ascending ids of the target's `size` tokens.

    With `prompted` those of a text join them.
    """

    def __init__(self, base_ids: Tensor, size: int, *, prompted: bool) -> None:
        self.base_ids = base_ids
        self.size = size
        self.prompted = prompted
        self.base_set = frozenset(base_ids.tolist())
        self.is_base = torch.zeros(size, dtype=torch.bool, device=base_ids.device)
        self.is_base[base_ids] = True

    def new_ids(self, tokens: Iterable[int]) -> set[int]:
        """Return which of these tokens of a text join the base ids."""
        return set(tokens) - self.base_set if self.prompted else set()

    def of(self, ids: Tensor) -> Tensor:
        """Return all ids that can be drafted for texts with these tokens, the base ids first.

        `[S]`.
        """
        if not self.prompted:
            return self.base_ids
        unique = ids.unique()
        return torch.cat([self.base_ids, unique[~self.is_base[unique]]])

    def index(self, vocabulary: Tensor) -> Tensor:
        """Return the place of each of the target's tokens in `vocabulary`, -1 where it has none.

        `[size]`.
        """
        index = torch.full((self.size,), -1, device=vocabulary.device)
        places = torch.arange(len(vocabulary), device=vocabulary.device)
        return index.scatter_(0, vocabulary, places)

    def covers(self, choice: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
        """Whether a draft can propose what follows these rows, `[N]`.

        Row i of a sequence, `rows [B, L - 1]`, is followed by token i + 2, here by `choice [N]`;
        what comes only later in `ids [B, L]` has not joined yet.
        """
        covered = self.is_base[choice]
        if not self.prompted:
            return covered
        others = (~covered).nonzero()[:, 0]
        sequence, last = (part[others] for part in rows.nonzero(as_tuple=True))
        places = torch.arange(ids.shape[1], device=ids.device)
        joined = (ids[sequence] == choice[others, None]) & (places <= last[:, None] + 1)
        return covered.index_put((others,), joined.any(-1))


class JoinedTokens:
    """The tokens of a text that join a vocabulary while it is answered.

    `ids [V_draft]`: all that can be drafted now, the base ids first. `lm_head [V, d]` is the
    target's: a token that joins has its row.
    """

    def __init__(self, vocabulary: Vocabulary, lm_head: Tensor) -> None:
        self.vocabulary = vocabulary
        self.lm_head = lm_head.detach()
        self.reset()

    def twin(self) -> JoinedTokens:
        """Return the same for another text."""
        return JoinedTokens(self.vocabulary, self.lm_head)

    def reset(self) -> None:
        """Start a text."""
        self.new_ids: set[int] = set()
        self.ids = self.vocabulary.base_ids
        self.rows: Matrix | None = None

    def extend(self, tokens: Iterable[int]) -> None:
        """Let these tokens of the text be drafted too."""
        if new := self.vocabulary.new_ids(tokens) - self.new_ids:
            self.new_ids |= new
            ids = torch.tensor(sorted(self.new_ids), device=self.vocabulary.base_ids.device)
            self.ids = torch.cat([self.vocabulary.base_ids, ids])
            self.rows = Matrix(self.lm_head[ids])

    def complete(self, logits: Tensor, h: Tensor) -> Tensor:
        """Return the logits over `ids` from those over the base ids `[N, S]`, of h `[N, d]`."""
        return torch.cat([logits, self.rows(h)], dim=-1) if self.rows else logits

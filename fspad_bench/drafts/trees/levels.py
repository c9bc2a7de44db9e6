"""A draft that predicts a tree level by level: what builders of trees ask of a draft network and of
a language model alike.

Under sampling the target will choose the argmax of its logits + T * G, with noise G that is known
beforehand (Daliri et al. 2024, arXiv 2408.07978). A draft that adds the very noise of a position to
its own logits, `coupled`, meets the target's choice far more often than by its logits alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from fspad_bench.core.protocols import Context
from fspad_bench.drafts.cache import extend_visibility
from fspad_bench.drafts.draft import Draft
from fspad_bench.engine.cpu.leading import Leaders, Noise, leading


class Levels(Protocol):
    """The logits of a draft, one level of a tree after the other.

    `ids [V_draft]`: the target's ids of the tokens that it can propose.
    """

    @property
    def ids(self) -> Tensor: ...

    def absorb(self) -> Tensor:
        """Return the logits `[1, V_draft]` of what follows the last committed token."""

    def expand(self, tokens: Sequence[int], rows: Sequence[int]) -> Tensor:
        """Draft a whole level: return the logits `[K, V_draft]` of what follows each of K nodes.

        `rows` number the nodes of the level before, in the order in which they were expanded; the
        root is the only one of its level.
        """


class HeadLevels:
    """The levels of a head: a node's row is its *parent's* h_feature and its own token."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft

    @property
    def ids(self) -> Tensor:
        return self.draft.ids

    def absorb(self) -> Tensor:
        self.level = 0
        self.ancestors: Tensor | None = None
        self.out = self.draft.absorb()
        return self.draft.logits(self.out)

    def expand(self, tokens: Sequence[int], rows: Sequence[int]) -> Tensor:
        device = self.out.h_feature.device
        parents = torch.tensor(rows, device=device)
        self.ancestors = extend_visibility(self.ancestors, parents)
        self.out = self.draft.expand(
            torch.tensor(tokens, device=device), parents, self.ancestors, self.level
        )
        self.level += 1
        return self.draft.logits(self.out)


def leading_children(
    logits: Tensor, ids: Tensor, context: Context, level: int, count: int
) -> Leaders:
    """Return the `count` likeliest children at `level` of each row of logits `[K, V_draft]`, whose
    columns are `ids`, by their `coupled` scores.
    """
    if context.greedy:
        return leading(logits, ids, count)
    noise = Noise.at(context.sampler, context.position + level)
    if noise is None:
        return leading(coupled(logits, ids, context, level), ids, count)
    return leading(logits, ids, count, noise)


def coupled(logits: Tensor, ids: Tensor, context: Context, level: int) -> Tensor:
    """Return logits + T * G of the position that children at `level` stand at; at T = 0 the logits
    alone.
    """
    sampler = context.sampler
    assert sampler is not None
    if sampler.greedy:
        return logits
    return logits + sampler.temperature * sampler.noise(context.position + level, ids)

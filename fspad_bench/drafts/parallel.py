"""Networks that predict all levels of a tree at once, from the target's last state alone.

A level does not see which tokens were drafted above it, so all nodes of a level have the same
children: the tree is cut from the product of the levels' candidates. There is no decoder layer and
no cache.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from torch import Tensor

from fspad_bench.drafts.draft import Draft
from fspad_bench.drafts.head import Head
from fspad_bench.drafts.network import DraftOutput, HeadNetwork
from fspad_bench.drafts.shape import Shape
from fspad_bench.engine.target import TransformersTarget


class ParallelNetwork(HeadNetwork):
    """`shape.levels` predictions of one state f."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        if shape.levels < 1:
            raise ValueError(f"its shape states {shape.levels} levels")

    @abstractmethod
    def level(self, f: Tensor, level: int) -> Tensor:
        """Return h_logit `[..., d]` of level 0, 1, ... below a root that read f `[..., d]`."""

    def packed(self) -> Callable[[Tensor, int], Tensor]:
        """Return `level` over packed weights, where it can be."""
        return self.level

    def forward(self, e: Tensor, states: Tensor, rows: Tensor) -> DraftOutput:
        h = self.level(self.read(states)[rows], 0)
        return DraftOutput(h, h)

    def unrolled(self, e: Tensor, states: Tensor, steps: int) -> list[DraftOutput]:
        f = self.read(states)
        outputs = [self.level(f.roll(level, dims=-2), level) for level in range(steps)]
        return [DraftOutput(h, h) for h in outputs]


class ParallelDraft(Draft):
    """Such a network at work. `h_feature` of every row is the root's f."""

    def __init__(self, target: TransformersTarget, head: Head, *, prompted: bool = True) -> None:
        super().__init__(target, head, prompted=prompted)
        assert isinstance(head.network, ParallelNetwork)
        self.network = head.network
        self.level = head.network.packed()

    def absorb(self) -> DraftOutput:
        self.f = self.network.read(self.features[-1:])
        self.length += len(self.tokens)
        self.absorbed = True
        return DraftOutput(self.level(self.f, 0), self.f)

    def expand(self, tokens: Tensor, parents: Tensor, ancestors: Tensor, level: int) -> DraftOutput:
        last = self.network.shape.levels - 1  # beyond it only costs are measured
        h = self.level(self.f, min(level + 1, last))
        return DraftOutput(h.expand(len(tokens), -1), self.f.expand(len(tokens), -1))

    def rewind(self, length: int) -> None:
        self.length = length

    def logits(self, out: DraftOutput) -> Tensor:
        """Return the logits of one row for all: they are the same."""
        count = len(out.h_logit)
        return super().logits(DraftOutput(out.h_logit[:1], out.h_feature[:1])).repeat(count, 1)

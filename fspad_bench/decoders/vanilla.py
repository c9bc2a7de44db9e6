"""Vanilla decoding, the baseline: a tree of one node in the same loop as everything else."""

from __future__ import annotations

from fspad_bench.core.protocols import Context, Drafter, Target
from fspad_bench.core.tree import Tree
from fspad_bench.engine.device_loop import NoDraft


class Vanilla(Drafter):
    """One token a step."""

    def __init__(self, target: Target) -> None:
        pass

    def propose(self, context: Context, budget: int) -> Tree:
        return Tree.root(context.tokens[-1])

    def device_drafter(self) -> NoDraft:
        return NoDraft()

"""Vanilla decoding, the baseline: a tree of one node in the same loop as everything else."""

from __future__ import annotations

from fspad_bench.core.loop import Context, Scores, Step, Target
from fspad_bench.core.tree import Tree
from fspad_bench.engine.device_loop import Alone


class Vanilla:
    """One token a step."""

    grower = Alone()

    def __init__(self, target: Target) -> None:
        pass

    def begin(self, context: Context, scores: Scores) -> None:
        pass

    def propose(self, context: Context, budget: int) -> Tree:
        return Tree.root(context.tokens[-1])

    def observe(self, step: Step) -> None:
        pass

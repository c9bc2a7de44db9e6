"""GSD, graph-structured speculative decoding (Gong et al. 2024, arXiv 2407.16207).

A language model drafts a tree level by level, and where branches repeat each other they are merged
into a graph (`drafts.trees.graph`), so that a repeated run of tokens is drafted once. Its
parameters give the paper's two baselines too: `n_tree=1` is a chain (SSD), `repeat=-1` a tree
(TSD).

Verified by `match`: what follows a merged node was drafted after another text, so its probability
on the new path is not known, and a rule that used it would be wrong. The draft model forgets such
nodes and reads the tokens committed there anew.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fspad_bench.core.protocols import Context
from fspad_bench.core.tree import Tree
from fspad_bench.drafts.language_network import trained_model
from fspad_bench.drafts.model_drafter import ModelDrafter
from fspad_bench.drafts.trees.graph import NEVER, GraphShape, draft_graph
from fspad_bench.engine.target import LARGEST_TREE, TransformersTarget
from fspad_bench.models.draft_model import load_draft_model
from fspad_bench.util.errors import BenchError

NODES = 24


class Gsd(ModelDrafter):
    """A graph drafted by a causal language model, unrolled into a tree.

    model   a preset, folder or hub id whose tokenizer is the target's; a draft model that `train`
            made for the target, by folder or hub id; `shipped`: the package's own of these;
            `self`: the target without a share `skip` of its layers, evenly spread.
    n_tree, repeat, prob_threshold, sibling_threshold, length, nodes
            see `drafts.trees.graph.GraphShape`.
    depth   of the unrolled tree, which may be deeper than what was drafted.
    tree    see `SizedDrafter`; empty, it is fixed where `nodes` is given.
    """

    def __init__(
        self,
        target: TransformersTarget,
        *,
        model: str = "self",
        skip: float = 0.25,
        n_tree: int = 3,
        repeat: int = 1,
        prob_threshold: float = 0.3,
        sibling_threshold: float = 0.3,
        length: int = 5,
        nodes: int | None = None,
        depth: int = 8,
        tree: str = "",
    ) -> None:
        size = NODES if nodes is None else nodes
        self.shape = GraphShape(n_tree, repeat, prob_threshold, sibling_threshold, length, size)
        self.depth = depth
        check_shape(self.shape, depth)
        own = trained_model(model, target) or load_draft_model(model, target)
        super().__init__(target, model=own, skip=skip, tree=tree, nodes=nodes)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), **asdict(self.shape), "depth": self.depth}

    def drafted(self, context: Context, levels: int, budget: int) -> Tree:
        graph = draft_graph(self.draft, context, self.shape, levels)
        return graph.unrolled(min(self.depth, budget))


def check_shape(shape: GraphShape, depth: int) -> None:
    """Raise BenchError for parameters out of range."""
    if min(shape.n_tree, shape.length, depth) < 1 or not 2 <= shape.nodes <= LARGEST_TREE:
        raise BenchError(
            f"gsd takes n_tree, length, depth >= 1 and 2 <= nodes <= {LARGEST_TREE}, not "
            f"n_tree={shape.n_tree}, length={shape.length}, depth={depth}, nodes={shape.nodes}",
            "gsd@chain, gsd@tree and gsd@graph have parameters that fit",
        )
    if shape.repeat < NEVER:
        raise BenchError(f"gsd.repeat={shape.repeat}", "0 or more tokens, or -1 to merge nothing")
    for name in ("prob_threshold", "sibling_threshold"):
        value = getattr(shape, name)
        if not 0 <= value <= 1:
            raise BenchError(f"gsd.{name}={value:g} is out of range", "it lies between 0 and 1")

"""Drafting with a smaller language model (Leviathan et al. 2023, arXiv 2211.17192; Chen et al.
2023, arXiv 2302.01318), or with some of the target's own layers (Zhang et al. 2024, arXiv
2309.08168).

The draft model reads the text with a cache of its own and continues it, as a chain or as EAGLE-2's
dynamic tree over its probabilities (`drafts.trees.dynamic`), until it is no longer confident. At
T > 0 it drafts with the noise of each position; its drafts are verified by `match`. Of the target
itself (`model=self`) an evenly spread share of the layers is left out; the others read the target's
cache, so that only the last token is run before the first level.
"""

from __future__ import annotations

from typing import Any, Literal

from fspad_bench.core.protocols import Context
from fspad_bench.core.tree import Tree
from fspad_bench.drafts.head import Head
from fspad_bench.drafts.language_network import trained_model
from fspad_bench.drafts.model_drafter import ModelDrafter
from fspad_bench.drafts.sizing.policy import ConfidentTree
from fspad_bench.drafts.trees.dynamic import dynamic_tree
from fspad_bench.engine.target import LARGEST_TREE, TransformersTarget
from fspad_bench.models.draft_model import load_draft_model
from fspad_bench.util.errors import BenchError

NODES = 12


class DraftModel(ModelDrafter):
    """A tree or chain drafted by a causal language model.

    model   a preset, folder or hub id whose tokenizer is the target's; a draft model that `train`
            made for the target, by folder or hub id; `shipped`: the package's own of these;
            `self`: the target without a share `skip` of its layers, evenly spread.
    shape   `chain`, or `tree`: `top_k` paths a level, each with `top_k` children, of which the most
            likely make a tree of `nodes` with the root.
    length  levels, unless no path at a level has a chance of at least `stop`.
    tree    see `SizedDrafter`; empty, it is fixed where `nodes` is given.
    """

    def __init__(
        self,
        target: TransformersTarget,
        *,
        model: str | Head = "self",
        skip: float = 0.25,
        shape: Literal["chain", "tree"] = "tree",
        length: int = 5,
        nodes: int | None = None,
        top_k: int = 3,
        stop: float = 0.3,
        tree: str = "",
    ) -> None:
        size = NODES if nodes is None else nodes
        if shape == "chain":
            if nodes is not None:
                raise BenchError(
                    f"draft_model.nodes={nodes} is of a tree, and a chain has length + 1",
                    "give length",
                )
            size = length + 1
            top_k = 1
        check_sizes(length=length, nodes=size, top_k=top_k, stop=stop)
        own: Head | TransformersTarget
        if isinstance(model, Head):
            own = model
        else:
            own = trained_model(model, target) or load_draft_model(model, target)
        super().__init__(target, model=own, skip=skip, tree=tree, nodes=nodes)
        self.top_k = min(top_k, len(self.draft.ids))
        self.policy = ConfidentTree(size, length, stop)
        self.shape = shape

    def settings(self) -> dict[str, Any]:
        return {
            **super().settings(),
            "shape": self.shape,
            "length": self.policy.depth,
            "nodes": self.policy.nodes,
            "top_k": self.top_k,
            "stop": self.policy.stop,
        }

    def drafted(self, context: Context, levels: int, budget: int) -> Tree:
        return dynamic_tree(
            self.draft,
            context,
            policy=self.policy,
            budget=levels,
            top_k=self.top_k,
            with_noise=True,
        ).tree


def check_sizes(*, length: int, nodes: int, top_k: int, stop: float) -> None:
    """Raise BenchError for a tree that no session holds, of the target or of the draft model."""
    if length < 1 or top_k < 1 or not 2 <= nodes <= LARGEST_TREE:
        raise BenchError(
            f"draft_model takes length, top_k >= 1 and 2 <= nodes <= {LARGEST_TREE}, "
            f"not length={length}, top_k={top_k}, nodes={nodes}",
            "a chain has length + 1 nodes",
        )
    if 1 + (length - 1) * top_k > LARGEST_TREE:
        raise BenchError(
            f"length={length} levels of top_k={top_k} are {1 + (length - 1) * top_k} tokens to "
            f"draft, and a draft model holds {LARGEST_TREE}",
            "lower length or top_k",
        )
    if not 0 <= stop <= 1:
        raise BenchError(f"draft_model.stop={stop:g} is no chance", "it lies between 0 and 1")

"""A drafter with a draft network: what EAGLE and FSPAD share, down to their options.

Which children a node gets is the business of `dynamic` (EAGLE-2's tree, by default ranked with the very noise that
the target's choice will meet) or of `sampled` (drawn, for the rules of verification that need a law).
"""

from __future__ import annotations

from pathlib import Path

import torch

from fspad_bench.decoding import Context
from fspad_bench.drafts.draft import Draft
from fspad_bench.drafts.dynamic import dynamic_tree
from fspad_bench.drafts.head import Head, load_head, shipped
from fspad_bench.drafts.sampled import sampled_tree
from fspad_bench.errors import BenchError, near
from fspad_bench.target import LARGEST_TREE, TransformersTarget
from fspad_bench.tree import Tree
from fspad_bench.verification import rule

DRAFTING = ("coupled", "ranked", "sampled")


class HeadDrafter(Draft):
    """`nodes` in a tree, root included; `depth` drafted tokens on its deepest path; `top_k` a level and a node.

    `drafting` says how children are chosen: `coupled` ranks them by their logits plus the noise of their position,
    `ranked` by their logits alone, `sampled` draws them. Empty, it is what suits `verify`: coupled for `match`,
    sampled for the rules that need a law.
    """

    def __init__(
        self,
        target: TransformersTarget,
        head: Head,
        *,
        nodes: int = 8,
        depth: int = 2,
        top_k: int = 4,
        verify: str = "match",
        drafting: str = "",
    ) -> None:
        if not (2 <= nodes <= LARGEST_TREE and depth >= 1 and top_k >= 1):
            text = f"nodes={nodes}, depth={depth}, top_k={top_k} is out of range"
            raise BenchError(text, f"2 <= nodes <= {LARGEST_TREE}, depth >= 1, top_k >= 1")
        self.verify, self.drafting = rule(verify), drafting or ("coupled" if verify == "match" else "sampled")
        if self.drafting not in DRAFTING:
            raise BenchError(f"unknown drafting '{drafting}'", near(drafting, DRAFTING))
        if self.drafting == "coupled" and verify != "match":
            raise BenchError(
                f"verify={verify} makes no use of coupled drafts: its choices do not follow the target's noise",
                "use drafting=sampled or drafting=ranked",
            )
        super().__init__(target, head)
        self.nodes, self.depth, self.top_k = nodes, depth, min(top_k, len(self.vocabulary))
        self.files = {"head": head.sha256}

    @torch.inference_mode()
    def propose(self, context: Context, budget: int) -> Tree:
        depth = min(self.depth, budget)
        if depth < 1:
            return Tree.root(context.tokens[-1])
        if self.drafting == "sampled":
            return sampled_tree(self, context, nodes=self.nodes, depth=depth, top_k=self.top_k)
        coupled = self.drafting == "coupled" and context.sampler.temperature > 0
        return dynamic_tree(self, context, nodes=self.nodes, depth=depth, top_k=self.top_k, coupled=coupled)


def find_head(head: str, decoder: str, target: TransformersTarget) -> Head:
    """The head a user named, or the one shipped for this target. Raises BenchError where there is none."""
    if head:
        return load_head(Path(head).expanduser(), target, decoder)
    folder = shipped(decoder, target.name)
    if not folder.is_dir():
        raise BenchError(
            f"no {decoder} head is shipped for target '{target.name}'",
            f"`fspad-bench train --decoder {decoder} --target {target.name}` makes one for -D {decoder}.head=FOLDER",
        )
    return load_head(folder, target, decoder)

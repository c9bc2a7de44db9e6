"""FSPAD (arXiv 2408.15562): feature sampling before the draft layer, its feature and logit outputs split after it,
on the same dynamic tree as EAGLE-2. Drafting reads logits from h_logit and feeds back h_feature."""

from __future__ import annotations

from fspad_bench.drafts.drafter import HeadDrafter, find_head
from fspad_bench.target import TransformersTarget


class Fspad(HeadDrafter):
    """`head` is a trained head's folder, or empty for the shipped one; the other options are `HeadDrafter`'s."""

    def __init__(
        self,
        target: TransformersTarget,
        *,
        head: str = "",
        tree: str = "",
        nodes: int = 0,
        depth: int = 0,
        top_k: int = 4,
        verify: str = "match",
        drafting: str = "",
        vocabulary: str = "prompt",
    ) -> None:
        shape = {
            "tree": tree,
            "nodes": nodes,
            "depth": depth,
            "top_k": top_k,
            "verify": verify,
            "drafting": drafting,
            "vocabulary": vocabulary,
        }
        super().__init__(target, find_head(head, "fspad", target), **shape)

"""EAGLE's draft network with EAGLE-2's dynamic tree: features predicted from feature and embedding, one vector for
both feature and logits (arXiv 2401.15077, 2406.16858)."""

from __future__ import annotations

from fspad_bench.drafts.drafter import HeadDrafter, find_head
from fspad_bench.target import TransformersTarget


class Eagle(HeadDrafter):
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
        super().__init__(target, find_head(head, "eagle", target), **shape)

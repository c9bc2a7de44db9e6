"""A draft head of whatever architecture it was trained as, on EAGLE-2's dynamic tree: for ablations.

fspad-bench run --decoder wide=fspad_bench.decoders.arm:Arm -D wide.head=FOLDER --task all
"""

from __future__ import annotations

from pathlib import Path

from fspad_bench.drafts.drafter import HeadDrafter
from fspad_bench.drafts.head import load_head
from fspad_bench.errors import BenchError
from fspad_bench.target import TransformersTarget


class Arm(HeadDrafter):
    """`head` is a trained head's folder; the other options are `HeadDrafter`'s."""

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
        if not head:
            raise BenchError("an arm needs the head that it is", "-D NAME.head=FOLDER")
        shape = {
            "tree": tree,
            "nodes": nodes,
            "depth": depth,
            "top_k": top_k,
            "verify": verify,
            "drafting": drafting,
            "vocabulary": vocabulary,
        }
        super().__init__(target, load_head(Path(head).expanduser(), target), **shape)

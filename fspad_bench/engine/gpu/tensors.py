"""What kernels read and return: a sampler's law, a tree's nodes and a walk, all as tensors on the device.

A graph that was captured once reads their new contents at every replay, so nothing that changes between rounds may be
a Python number here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fspad_bench.core.sampling import Sampler, signed
from fspad_bench.core.tree import Tree


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True)
class Law:
    """`words` int32 `[3]`: the two halves of the noise's key, and top-k (0: no cut). `numbers` float32 `[2]`:
    temperature and top-p. Greedy where not `sampled`; top-k leaves tokens out where `few`, top-p where `nucleus`."""

    words: Tensor
    numbers: Tensor
    sampled: bool
    few: bool
    nucleus: bool

    @classmethod
    def of(cls, sampler: Sampler, device: torch.device) -> Law:
        key = [signed(half) for half in sampler.key]
        words = torch.tensor([*key, sampler.top_k], dtype=torch.int32, device=device)
        numbers = torch.tensor(
            [sampler.temperature, sampler.top_p], dtype=torch.float32, device=device
        )
        return cls(
            words, numbers, bool(sampler.temperature), bool(sampler.top_k), sampler.top_p < 1
        )

    @property
    def kind(self) -> tuple[bool, bool, bool]:
        """What decides which kernels run: a graph is captured for each."""
        return self.sampled, self.few, self.nucleus


class Nodes(NamedTuple):
    """A tree of N nodes, dead ones among them: tokens, parents, depths int32 `[N]`, bits int64 `[N, ceil(N / 64)]`.

    A dead node fills up a shape: its token is -1, its depth -1, its parent the root, and it sees only itself and the
    prefix.
    """

    tokens: Tensor
    parents: Tensor
    depths: Tensor
    bits: Tensor

    @classmethod
    def of(cls, tree: Tree, device: torch.device, size: int = 0) -> Nodes:
        """A tree's, filled up with dead nodes to `size`."""
        live = len(tree)
        size = max(size, len(tree))
        dead = size - live
        parents = [*tree.parents, *[0] * dead]
        bits = Tree([*tree.tokens, *range(-dead, 0)], parents).bits
        for node in range(live, size):
            bits[node] &= ~bits[0]  # its parent's bits aside, only its own
        columns = torch.tensor(
            [[*tree.tokens, *[-1] * dead], parents, [*tree.depths, *[-1] * dead]], dtype=torch.int32
        )
        return cls(*columns.to(device), bits.to(device))


class Walk(NamedTuple):
    """The accepted nodes, root first, in the first `count` places of `path` int32 `[N]`, and the token after them."""

    path: Tensor
    count: Tensor
    bonus: Tensor

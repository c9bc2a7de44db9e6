"""The inputs and outputs of the kernels as tensors on the device: a sampler, a tree, a walk.

A captured CUDA graph reads their current contents at every replay. What changes between steps is
therefore a tensor; a Python number would be frozen at capture.
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
    """Return whether Triton's kernels run in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True)
class SamplerTensors:
    """A sampler on the device.

    words: int32 `[3]`, the two halves of the noise's key, and top-k (0: off).
    numbers: float32 `[2]`, temperature and top-p.
    sampled: false means greedy.
    has_top_k, has_top_p: whether each can leave tokens out.
    """

    words: Tensor
    numbers: Tensor
    sampled: bool
    has_top_k: bool
    has_top_p: bool

    @classmethod
    def of(cls, sampler: Sampler, device: torch.device) -> SamplerTensors:
        key = [signed(half) for half in sampler.key]
        words = torch.tensor([*key, sampler.top_k], dtype=torch.int32, device=device)
        numbers = torch.tensor(
            [sampler.temperature, sampler.top_p], dtype=torch.float32, device=device
        )
        return cls(
            words,
            numbers,
            sampled=bool(sampler.temperature),
            has_top_k=bool(sampler.top_k),
            has_top_p=sampler.top_p < 1,
        )

    @property
    def kind(self) -> tuple[bool, bool, bool]:
        """The flags that decide which kernels are launched; each kind has a graph of its own."""
        return self.sampled, self.has_top_k, self.has_top_p


class Nodes(NamedTuple):
    """A tree of N nodes: tokens, parents, depths int32 `[N]`, bits int64 `[N, ceil(N / 64)]`.

    A padding node fills a fixed shape. Its token is -1, its depth -1, its parent the root, and it
    sees only the prefix and itself.
    """

    tokens: Tensor
    parents: Tensor
    depths: Tensor
    bits: Tensor

    @classmethod
    def of(cls, tree: Tree, device: torch.device, size: int = 0) -> Nodes:
        """Return the tree's nodes, followed by padding nodes up to `size`."""
        count = len(tree)
        size = max(size, count)
        padding = size - count
        parents = [*tree.parents, *[0] * padding]
        # Siblings need different tokens, so padding nodes have negative ones while bits are made.
        bits = Tree([*tree.tokens, *range(-padding, 0)], parents).bits
        for node in range(count, size):
            bits[node] &= ~bits[0]  # does not see the root, its parent
        columns = torch.tensor(
            [[*tree.tokens, *[-1] * padding], parents, [*tree.depths, *[-1] * padding]],
            dtype=torch.int32,
        )
        tokens, parent, depths = columns.to(device)
        return cls(tokens, parent, depths, bits.to(device))


class Walk(NamedTuple):
    """The accepted nodes and the token that follows them.

    path: int32 `[N]`, the accepted nodes, root first, in its first `count` places.
    count, bonus: scalars.
    """

    path: Tensor
    count: Tensor  # type: ignore[assignment]  # not the method of tuples
    bonus: Tensor

    def broken(self, logits: Tensor) -> Tensor:
        """Return 1 where the logits `[N, V]` after an accepted node are not finite, else 0.

        An int32 scalar on the device: who reads the path reads it along. Places of the path past
        `count` name the root, which is accepted too.
        """
        best = logits.amax(-1)[self.path]
        return ((best - best).sum() != 0).to(torch.int32)  # NaN unless all are finite; few launches

"""The GPU's kernels behind the engine's seams.

An attention backend, a rule of verification, a cache's compaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from fspad_bench.core.processors import NodeLogits
from fspad_bench.core.sampling import NotFiniteError, Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import Accepted, Chooser, NodeRule, Rule, match
from fspad_bench.engine.attention import Attend, HeadShape, Pending, TorchAttention
from fspad_bench.engine.cache import Compact, KVCache
from fspad_bench.engine.gpu import Kernels
from fspad_bench.engine.gpu.reference import lineage
from fspad_bench.engine.gpu.tensors import Nodes, SamplerTensors, Walk


class KernelAttention(TorchAttention):
    """Tree attention by a kernel.

    A node attends to the prefix and to what its ancestor bits name.
    """

    def __init__(self, shape: HeadShape, kernels: Kernels) -> None:
        super().__init__(shape)
        self.kernels = kernels
        self.name = kernels.name

    def tree(self, cache: KVCache, pending: Pending) -> Attend:
        device = cache.entries.device
        length = torch.tensor([pending.prefix], dtype=torch.int32, device=device)
        slots = torch.arange(pending.start, pending.start + pending.new, device=device)
        return self.at(cache, pending.bits.to(device), length, slots)

    def at(self, cache: KVCache, bits: Tensor, length: Tensor, slots: Tensor) -> Attend:
        """Write new entries to `slots [N]`; they are the last N of the R pending ones, whose `bits`
        are `[R, W]`.

        `length` int32 `[1]`: committed entries. A node's depth, by which windows go, is the number
        of its ancestors. All are tensors, so that a captured graph reads
        their new contents.
        """
        earlier = len(bits) - len(slots)
        depths = lineage(bits).sum(-1, dtype=torch.int32) - 1 if any(self.shape.windows) else None

        def attend(layer: int, projections: Tensor, rope: Tensor) -> Tensor:
            q, k, v = self.rotated(projections, rope)
            keys = cache.keys[layer]
            values = cache.values[layer]
            keys.index_copy_(1, slots, k)
            values.index_copy_(1, slots, v)
            if earlier:  # the kernel wants a query for each pending entry
                q = F.pad(q, (0, 0, earlier, 0))
            window = self.shape.window(layer)
            seen = self.kernels.attend(
                q, keys, values, bits, length, self.shape.scaling, window, depths
            )
            return seen[:, earlier:].transpose(0, 1).flatten(1)

        return attend


def kernel_compaction(kernels: Kernels) -> Compact:
    """Return the compaction of a cache in one launch."""

    def compact(entries: Tensor, start: int, path: Sequence[int]) -> None:
        words = torch.tensor([start, len(path), *path], dtype=torch.int32, device=entries.device)
        kernels.compact(entries, words[:1], Walk(words[2:], words[1], words[2]))

    return compact


def device_rule(rule: Rule, kernels: Kernels | None) -> Rule:
    """Return `match` as the kernels carry it out, sampling all nodes at once.

    Any other rule as it is.
    """
    if rule is not match or kernels is None:
        return rule

    def match_on_device(
        tree: Tree, logits: Tensor | NodeLogits, sampler: Chooser, position: int
    ) -> Accepted:
        if not isinstance(sampler, Sampler) or sampler.on_host or isinstance(logits, NodeLogits):
            return match(tree, logits, sampler, position)
        nodes = Nodes.of(tree, logits.device)
        at = torch.tensor([position], dtype=torch.int32, device=logits.device)
        settings = _tensors(sampler, logits.device)
        walk = kernels.walk(nodes, kernels.choose(logits, nodes.depths, at, settings))
        first = [walk.count.view(1), walk.bonus.view(1).int(), walk.broken(logits).view(1)]
        count, bonus, broken, *path = torch.cat([*first, walk.path]).tolist()
        if broken:
            raise NotFiniteError(position)
        return Accepted(path[:count], bonus)

    return NodeRule(match_on_device)


@lru_cache(maxsize=256)  # requests that may be decoded together
def _tensors(sampler: Sampler, device: torch.device) -> SamplerTensors:
    """Return the sampler's settings on the device, copied once a generation."""
    return SamplerTensors.of(sampler, device)

"""The forward of a tree as captured graphs, for the decoders whose steps the host runs.

- The host launches one kernel after the other, which takes a small target ten times as long as its
  work. A graph is launched once. Vanilla's steps are captured, so every other decoder's must be.
- A graph has one shape. Trees are filled up with padding nodes, each seen by itself alone, to the
  next of `SIZES`; a node's features do not depend on them.
- Inputs lie in one buffer that a step overwrites in one copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fspad_bench.core.protocols import LayerPlan
from fspad_bench.core.tree import WORD
from fspad_bench.engine.attention import Pending
from fspad_bench.engine.cache import KVCache
from fspad_bench.engine.forward import FusedForward
from fspad_bench.engine.gpu.backend import KernelAttention
from fspad_bench.engine.gpu.replay import Replay

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
GRAPHS = 64  # of one cache; then the one that was used longest ago makes room


class Shape(NamedTuple):
    """All that a graph fixes: new nodes, pending ones before them, layers, captured layers."""

    nodes: int
    earlier: int
    layers: LayerPlan
    capture: tuple[int, ...]

    @property
    def pending(self) -> int:
        return self.earlier + self.nodes


class TreeForward:
    """Runs the trees of a target with kernels; the graphs of one cache at a time."""

    def __init__(self, fused: FusedForward, attention: KernelAttention) -> None:
        self.fused = fused
        self.attention = attention
        self.entries: Tensor | None = None
        self.graphs: dict[Shape, Graph] = {}

    def __call__(
        self,
        tokens: Sequence[int],
        pending: Pending,
        cache: KVCache,
        layers: LayerPlan,
        capture: tuple[int, ...],
    ) -> tuple[Tensor, list[Tensor]] | None:
        """Return features `[N, d]` and captured hidden states.

        None where padding would not fit the cache.
        """
        if self.entries is not cache.entries:  # a graph writes to the cache it was captured with
            self.entries = cache.entries
            self.graphs.clear()
        nodes = next(size for size in SIZES if size >= len(tokens))
        earlier = len(pending.ancestry) - pending.new
        shape = Shape(nodes, earlier, layers, capture)
        if pending.prefix + shape.pending > cache.slots:
            return None
        if shape not in self.graphs:
            if len(self.graphs) == GRAPHS:
                del self.graphs[next(iter(self.graphs))]
            self._open(shape, cache, pending.prefix)
        graph = self.graphs.pop(shape)
        self.graphs[shape] = graph  # the last: used most recently
        return graph(tokens, pending)

    def _open(self, shape: Shape, cache: KVCache, prefix: int) -> None:
        """Build the graph of a shape.

        The first whole tree captures those of all sizes, in a warm-up rather than on the clock.
        """
        self.graphs[shape] = Graph(self.fused, self.attention, cache, shape)
        if cache.entries.device.type != "cuda" or shape.earlier or not shape.layers.whole:
            return
        for size in SIZES:
            other = shape._replace(nodes=size)
            room = len(self.graphs) < GRAPHS and prefix + size <= cache.slots
            if room and other not in self.graphs:
                self.graphs[other] = Graph(self.fused, self.attention, cache, other)
                self.graphs[other].capture(prefix)


class Graph:
    """The forward of one shape."""

    def __init__(
        self, fused: FusedForward, attention: KernelAttention, cache: KVCache, shape: Shape
    ) -> None:
        self.fused = fused
        self.attention = attention
        self.cache = cache
        self.shape = shape
        self.rope = fused.rope.below(cache.slots)  # held: the table may be replaced by a longer one
        width = -(-shape.pending // WORD)
        sizes = [shape.nodes] * 3 + [shape.pending * width, 1]
        self.words = torch.zeros(sum(sizes), dtype=torch.int64, device=cache.entries.device)
        self.tokens, self.positions, self.slots, bits, self.length = self.words.split(sizes)
        self.bits = bits.view(shape.pending, width)
        self.replay = Replay(self._run, cache.entries.device)

    def __call__(self, tokens: Sequence[int], pending: Pending) -> tuple[Tensor, list[Tensor]]:
        """Run these nodes. The result is the caller's own."""
        missing = self.shape.nodes - len(tokens)
        total = len(pending.ancestry)
        alone = [1 << node for node in range(total, total + missing)]
        padded = Pending(pending.prefix, [*pending.ancestry, *alone], self.shape.nodes)
        first = pending.start
        words = [
            torch.tensor([*tokens, *[0] * missing]),
            torch.tensor(padded.positions()),
            torch.arange(first, first + self.shape.nodes),
            padded.bits.flatten(),
            torch.tensor([pending.prefix]),
        ]
        self.words.copy_(torch.cat(words))
        self.replay()
        count = len(tokens)
        return self.features[:count].clone(), [x[:count].clone() for x in self.captured]

    def capture(self, prefix: int) -> None:
        """Capture the graph ahead of its first tree; what it writes lies behind the prefix."""
        for _ in range(2):
            self([0], Pending(prefix, [1], 1))

    def _run(self) -> None:
        attend = self.attention.at(self.cache, self.bits, self.length.int(), self.slots)
        rope = self.rope[:, self.positions]
        self.features, self.captured = self.fused(
            self.tokens, rope, attend, self.shape.layers, self.shape.capture
        )

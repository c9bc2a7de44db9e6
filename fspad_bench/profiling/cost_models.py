"""What a step costs: a forward of so many nodes behind so many tokens, and the work beside it.

- `MeasuredForwards`: c(n) of a target as it runs on this machine.
- `Roofline`: a shape on a device of known bandwidth and arithmetic rate (Williams et al. 2009):
  a forward takes the time of its bytes or that of its operations, whichever is longer. It is a
  bound that kernels come close to, not a measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import LlamaConfig

from fspad_bench.analysis.shares import step_times
from fspad_bench.benchmark.record import Sample
from fspad_bench.core.protocols import Generation
from fspad_bench.drafts.sizing.costs import Costs

BYTES = 2  # of a weight or a cache entry in bfloat16


class ForwardModel(Protocol):
    """The cost of the target's forwards."""

    def seconds(self, nodes: int, prefix: int) -> float:
        """Return the seconds of a forward of so many nodes, root included, behind a prefix."""


@dataclass(frozen=True)
class Overhead:
    """Seconds of a step beside its forward: of drafting, and of all the rest."""

    draft: float = 0.0
    rest: float = 0.0

    @classmethod
    def of(cls, generations: Sequence[Sample | Generation]) -> Overhead | None:
        """Return the means over the steps of generations, None where their parts were not timed."""
        step = step_times(generations)
        if step is None or not step.parts:
            return None
        draft = step.parts["draft"]
        return cls(draft, max(0.0, step.seconds - draft - step.parts["forward"]))


@dataclass(frozen=True)
class MeasuredForwards:
    """Forwards as they were timed at some sizes and two prefix lengths."""

    costs: Costs

    def seconds(self, nodes: int, prefix: int) -> float:
        return self.costs.forward_seconds(nodes, prefix)


@dataclass(frozen=True)
class Roofline:
    """A shape on a device. Bytes and operations are those of one forward.

    weight_bytes     read once, whatever the number of nodes and of requests
    entry_bytes      keys and values of one token of a request's prefix, read once a request
    node_operations  of one node's products with the weights
    attention        operations of one node with one token of its prefix
    bandwidth        bytes a second
    rate             operations a second
    batch            requests of a forward, each with a tree of its own
    """

    weight_bytes: float
    entry_bytes: float
    node_operations: float
    attention: float
    bandwidth: float
    rate: float
    batch: int = 1

    @classmethod
    def of(cls, shape: LlamaConfig, bandwidth: float, rate: float, batch: int = 1) -> Roofline:
        """Return the roofline of a shape in bfloat16. An embedding is not read, its LM head is."""
        d = shape.hidden_size
        layers = shape.num_hidden_layers
        head = d // shape.num_attention_heads
        entries = 2 * shape.num_key_value_heads * head
        per_layer = 2 * d * d + d * entries + 3 * d * shape.intermediate_size
        weights = layers * per_layer + d * shape.vocab_size
        return cls(
            weight_bytes=BYTES * weights,
            entry_bytes=BYTES * layers * entries,
            node_operations=2 * weights,
            attention=4 * layers * d,
            bandwidth=bandwidth,
            rate=rate,
            batch=batch,
        )

    def seconds(self, nodes: int, prefix: int) -> float:
        """Return the seconds of a forward of `batch` such trees: all of them wait for it."""
        read = self.weight_bytes + self.batch * prefix * self.entry_bytes
        operations = self.batch * nodes * (self.node_operations + prefix * self.attention)
        return max(read / self.bandwidth, operations / self.rate)

"""The cost of a target's forward, against what the machine could do.

- c(n): a forward of n tree nodes, against the bytes of the weights at a measured copy's bandwidth.
- A one-token step at several prefix lengths, against the bytes of the keys and values added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fspad_bench.drafts.sizing import costs, timing
from fspad_bench.engine.target import LARGEST_TREE, TransformersTarget
from fspad_bench.profiling.timing import copy_bandwidth
from fspad_bench.util.errors import BenchError
from fspad_bench.util.grid import grid

NODES = (1, 2, 4, 8, 16, 32, 64, 128)
LENGTHS = (costs.NEAR, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class ForwardCosts:
    """Seconds of a forward by tree nodes (`curve`), and of one node by prefix length (`lengths`).

    `weight_bytes`: read by a forward; `entry_bytes`: one token's keys and values in all layers;
    `copy_bandwidth`: bytes per second; `windows`: of how many last positions each layer reads the
    entries (None: of all; empty: all layers read all).
    """

    curve: dict[int, float]
    lengths: dict[int, float]
    weight_bytes: int
    entry_bytes: int
    copy_bandwidth: float
    windows: tuple[int | None, ...] = ()

    def expected(self, length: int) -> float:
        """Return a one-token step's seconds if cache entries were read at the copy's bandwidth."""
        shortest = min(self.lengths)
        added = self._entries_read(length) - self._entries_read(shortest)
        return self.lengths[shortest] + added * self.entry_bytes / self.copy_bandwidth

    def _entries_read(self, length: int) -> float:
        """Return the entries that a layer reads, on average."""
        windows = self.windows or (None,)
        return sum(length if w is None else min(length, w) for w in windows) / len(windows)


def forward_costs(target: TransformersTarget) -> ForwardCosts:
    """Measure a target's forwards, up to the prefix lengths that its context allows.

    Raises BenchError where it allows none of them.
    """
    check_context(target)
    lengths = [n for n in LENGTHS if n + LARGEST_TREE <= target.max_length]
    by_nodes = timing.forward_seconds(target, [(nodes, costs.NEAR) for nodes in NODES])
    by_length = timing.forward_seconds(target, [(1, length) for length in lengths])
    return ForwardCosts(
        curve=dict(zip(NODES, by_nodes, strict=True)),
        lengths=dict(zip(lengths, by_length, strict=True)),
        weight_bytes=_weight_bytes(target),
        entry_bytes=target.entry_bytes,
        copy_bandwidth=copy_bandwidth(target.device),
        windows=target.heads.windows,
    )


def check_context(target: TransformersTarget) -> None:
    """Raise BenchError for a context in which no forward can be timed."""
    needed = costs.NEAR + LARGEST_TREE
    if target.max_length < needed:
        raise BenchError(
            f"{target.name} has a context of {target.max_length} tokens: timing its forwards takes "
            f"{needed}",
            "name another --target",
        )


def _weight_bytes(target: TransformersTarget) -> int:
    """Return the bytes of the weights that a forward reads.

    An embedding that is not the LM head as well does not count: few of its rows are read.
    """
    total = sum(weight.numel() * weight.element_size() for weight in target.model.parameters())
    embedding = target.embedding.weight
    if embedding is target.lm_head.weight:
        return total
    return total - embedding.numel() * embedding.element_size()


def render(costs: ForwardCosts) -> str:
    """Return two tables: c(n), and a one-token step by prefix length."""
    reading = costs.weight_bytes / costs.copy_bandwidth
    curve: list[Sequence[object]] = []
    for nodes, seconds in costs.curve.items():
        ratio = seconds / costs.curve[1]
        curve.append([nodes, milliseconds(seconds), f"{ratio:.2f}", f"{reading / seconds:.0%}"])
    lengths: list[Sequence[object]] = []
    for length, seconds in costs.lengths.items():
        expected = costs.expected(length)
        ratio = seconds / expected
        lengths.append([length, milliseconds(seconds), milliseconds(expected), f"{ratio:.2f}"])
    curve_head = ["nodes", "forward", "c(n) / c(1)", "of a copy's bandwidth"]
    lengths_head = ["prefix", "one-token step", "by the bytes added", "ratio"]
    return "\n\n".join(
        [
            grid(curve, curve_head),
            grid(lengths, lengths_head),
        ]
    )


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms"

"""What each kernel of the tree verifier costs, against other implementations and the device.

- Tree attention over prefixes and node counts, against the torch reference, SDPA with a mask as
  transformers calls it, and FlexAttention.
- Verification and cache compaction, against their references.
- A kernel's bound is the time that a measured copy needs for its bytes, or a measured matrix
  product for its operations, whichever is longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.engine import gpu
from fspad_bench.engine.gpu import reference
from fspad_bench.engine.gpu.tensors import Nodes, SamplerTensors, Walk
from fspad_bench.profiling.peers import flex, masked
from fspad_bench.profiling.timing import copy_bandwidth, product_rate, seconds
from fspad_bench.util.grid import grid
from fspad_bench.util.progress import Progress
from fspad_bench.util.terminal import note

PREFIXES = (1024, 4096, 16384, 32768)
NODES = (1, 8, 32, 64)
SAMPLERS = {
    "greedy": Sampler(),
    "T = 1": Sampler(1.0),
    "top-p 0.9": Sampler(1.0, top_p=0.9),
    "top-k 50, top-p 0.9": Sampler(1.0, top_k=50, top_p=0.9),
}
COMPACTED_PREFIX = 2048
KEPT_NODES = 5


@dataclass(frozen=True)
class KernelTiming:
    """One kernel at one size.

    `seconds`: by implementation, ours first, None for one that does not run here;
    `bytes_moved`, `operations`: the least that any implementation needs.
    """

    kernel: str
    size: str
    seconds: dict[str, float | None]
    bytes_moved: int
    operations: int

    @property
    def own_seconds(self) -> float:
        own = next(iter(self.seconds.values()))
        assert own is not None
        return own


@dataclass(frozen=True)
class KernelProfile:
    """All timings, with the device's copy rate (bytes/s) and matrix product rate (operations/s)."""

    timings: list[KernelTiming]
    copy_rate: float
    product_rate: float

    def bound(self, timing: KernelTiming) -> float:
        """Return the least seconds that the device needs."""
        return max(timing.bytes_moved / self.copy_rate, timing.operations / self.product_rate)


def profile_kernels(
    config: PreTrainedConfig,
    device: torch.device,
    dtype: torch.dtype,
    prefixes: Sequence[int] = (),
    nodes: Sequence[int] = (),
) -> KernelProfile:
    """Time every kernel at the attention shape and vocabulary of a configuration.

    `prefixes` and `nodes` default to `PREFIXES` and `NODES`. Raises BenchError without Triton.
    """
    bench = KernelBench(gpu.triton(device), config, device, dtype)
    prefixes = prefixes or PREFIXES
    nodes = nodes or NODES
    timings = []
    total = len(nodes) * (len(prefixes) + len(SAMPLERS) + 1)
    with Progress("kernels", total) as progress:
        for timing in bench.timings(prefixes, nodes):
            timings.append(timing)
            progress.advance()
    return KernelProfile(timings, copy_bandwidth(device), product_rate(device, dtype))


class KernelBench:
    """The kernels of a device, at the shapes of a configuration."""

    def __init__(
        self,
        kernels: gpu.Kernels,
        config: PreTrainedConfig,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.kernels = kernels
        self.config = config
        self.device = device
        self.dtype = dtype
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.dim = config.hidden_size // config.num_attention_heads

    def timings(self, prefixes: Sequence[int], nodes: Sequence[int]) -> Iterator[KernelTiming]:
        for prefix in prefixes:
            for count in nodes:
                yield self.attention(prefix, count)
        for count in nodes:
            for name, sampler in SAMPLERS.items():
                yield self.verification(count, name, sampler)
        for count in nodes:
            yield self.compaction(count)

    def attention(self, prefix: int, nodes: int) -> KernelTiming:
        columns = prefix + nodes
        tree = drafted_tree(nodes)
        query = self._random(self.heads, nodes, self.dim)
        keys, values = self._random(2, self.kv_heads, columns, self.dim)
        bits = tree.bits.to(self.device)
        length = self._integers(prefix)
        mask = torch.ones(nodes, columns, dtype=torch.bool, device=self.device)
        mask[:, prefix:] = tree.visible().to(self.device)
        scale = self.dim**-0.5

        def own() -> Tensor:
            return self.kernels.attend(query, keys, values, bits, length, scale)

        def plain() -> Tensor:
            return reference.attend(query, keys, values, bits, length, scale)

        times = {
            self.kernels.name: self._seconds(own, captured=True),
            "reference": self._seconds(plain),
            "sdpa, mask": self._seconds(lambda: masked(query, keys, values, mask), captured=True),
            "flex": _flex_seconds(query, keys, values, bits, length),
        }
        entries = 2 * self.kv_heads * columns + 2 * self.heads * nodes
        return KernelTiming(
            "attention",
            f"{prefix} + {nodes}",
            times,
            bytes_moved=self.dtype.itemsize * self.dim * entries,
            operations=4 * self.heads * nodes * columns * self.dim,
        )

    def verification(self, nodes: int, name: str, sampler: Sampler) -> KernelTiming:
        logits = 4 * torch.randn(nodes, self.config.vocab_size, device=self.device)  # [N, V]
        logits = logits.to(self.dtype)
        tree = Nodes.of(drafted_tree(nodes), self.device)
        law = SamplerTensors.of(sampler, self.device)
        position = self._integers(77)

        def own() -> Walk:
            return self.kernels.walk(tree, self.kernels.choose(logits, tree.depths, position, law))

        def plain() -> Walk:
            return reference.walk(tree, reference.choose(logits, tree.depths, position, law))

        times: dict[str, float | None] = {
            self.kernels.name: self._seconds(own, captured=True),
            "reference": self._seconds(plain),
        }
        return KernelTiming(
            "verify",
            f"{nodes}, {name}",
            times,
            bytes_moved=logits.numel() * self.dtype.itemsize,
            operations=0,
        )

    def compaction(self, nodes: int) -> KernelTiming:
        kept = min(nodes, KEPT_NODES)
        columns = COMPACTED_PREFIX + nodes
        layers = self.config.num_hidden_layers
        cache = torch.zeros(
            layers, 2, self.kv_heads, columns, self.dim, device=self.device, dtype=self.dtype
        )
        path = torch.arange(nodes, dtype=torch.int32, device=self.device)
        length = self._integers(COMPACTED_PREFIX)
        walk = Walk(path, self._integers(kept), path[:1])

        def own() -> None:
            self.kernels.compact(cache, length, walk)

        def plain() -> None:
            reference.compact(cache, length, walk)

        times: dict[str, float | None] = {
            self.kernels.name: self._seconds(own, captured=True),
            "reference": self._seconds(plain),
        }
        entry_bytes = cache.numel() // columns * self.dtype.itemsize
        return KernelTiming(
            "compact",
            f"{kept} of {nodes}",
            times,
            bytes_moved=2 * kept * entry_bytes,
            operations=0,
        )

    def _seconds(self, run: Callable[[], object], *, captured: bool = False) -> float:
        return seconds(run, self.device, captured=captured)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device).to(self.dtype)

    def _integers(self, *values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)


def drafted_tree(nodes: int) -> Tree:
    """Return a tree of the shape of a draft: three children per node, the first ones deeper."""
    return Tree(range(nodes), [-1, *[(node - 1) // 3 for node in range(1, nodes)]])


def _flex_seconds(
    query: Tensor, keys: Tensor, values: Tensor, bits: Tensor, length: Tensor
) -> float | None:
    """Return FlexAttention's seconds, or None without a GPU or if it does not compile."""
    if query.device.type != "cuda":
        return None
    try:
        return seconds(flex(query, keys, values, bits, length), query.device, captured=True)
    except Exception as error:  # an optional peer: its failures of any kind are not ours
        note(f"FlexAttention does not run here: {type(error).__name__} {str(error)[:200]!r}")
        return None


def render(profile: KernelProfile) -> str:
    """Return a table of times by implementation, and of our rates, one line per kernel and size."""
    names = _implementations(profile.timings)
    lines = []
    for timing in profile.timings:
        times = [_milliseconds(timing.seconds.get(name)) for name in names]
        own = timing.own_seconds
        rates = [
            f"{timing.bytes_moved / own / 1e9:.0f}",
            f"{timing.operations / own / 1e12:.2f}",
            f"{profile.bound(timing) / own:.0%}",
        ]
        lines.append([timing.kernel, timing.size, *times, *rates])
    times_head = [f"{name}, ms" for name in names]
    head = ["kernel", "size", *times_head, "GB/s", "TFLOP/s", "of the bound"]
    device_rates = (
        f"a copy moves {profile.copy_rate / 1e9:.0f} GB/s, "
        f"a matrix product does {profile.product_rate / 1e12:.1f} TFLOP/s"
    )
    table = grid(lines, head, side="right")
    return f"{table}\n\n{device_rates}"


def _implementations(timings: Sequence[KernelTiming]) -> list[str]:
    return list(dict.fromkeys(name for timing in timings for name in timing.seconds))


def _milliseconds(seconds: float | None) -> str:
    return f"{1e3 * seconds:.3f}" if seconds else "-"


def draw(profile: KernelProfile, picture: Path) -> None:
    """Draw attention's times by size and implementation, with the bound."""
    from matplotlib.figure import Figure

    timings = [timing for timing in profile.timings if timing.kernel == "attention"]
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    for name in _implementations(timings):
        times = [1e6 * (timing.seconds.get(name) or float("nan")) for timing in timings]
        axes.plot(times, marker=".", label=name)
    axes.plot([1e6 * profile.bound(timing) for timing in timings], "k--", label="bound")
    axes.set_xticks(
        range(len(timings)), [timing.size for timing in timings], rotation=60, fontsize=7
    )
    axes.set_yscale("log")
    axes.set_ylabel("µs")
    axes.set_xlabel("prefix + nodes")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=110)

"""What each kernel of the tree verifier costs, beside what else does its work and what the device could do.

Tree attention over prefixes and node counts against the torch reference, SDPA with a mask as transformers calls it, and
FlexAttention; verification and compaction against their references. The bound of a kernel is what a measured copy needs
for its bytes or a measured matrix product for its operations, whichever is more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from tabulate import tabulate
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as attend
from transformers import PreTrainedConfig

from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import WORD, Tree
from fspad_bench.engine import gpu as kernels
from fspad_bench.engine.device_loop import Replay
from fspad_bench.engine.gpu import reference
from fspad_bench.engine.gpu.tensors import Law, Nodes, Walk
from fspad_bench.profiling.steps import copy_bandwidth
from fspad_bench.util.progress import Progress

PREFIXES = (1024, 4096, 16384, 32768)
NODES = (1, 8, 32, 64)
PRODUCT = 8192
TRIED = 20
LAWS = {
    "greedy": Sampler(),
    "T = 1": Sampler(1.0),
    "top-p 0.9": Sampler(1.0, top_p=0.9),
    "top-k 50, top-p 0.9": Sampler(1.0, top_k=50, top_p=0.9),
}


@dataclass(frozen=True)
class Line:
    """A kernel at one size: seconds by implementation, None where one does not run here; the bytes and operations it
    cannot do without."""

    kernel: str
    size: str
    seconds: dict[str, float | None]
    moved: int
    operations: int


@dataclass(frozen=True)
class KernelProfile:
    """All lines, with the bytes a second of a copy and the operations a second of a matrix product beside them."""

    lines: list[Line]
    copied: float
    multiplied: float

    def bound(self, line: Line) -> float:
        """Seconds that the device cannot do without."""
        return max(line.moved / self.copied, line.operations / self.multiplied)


def profile_kernels(
    config: PreTrainedConfig,
    device: torch.device,
    dtype: torch.dtype,
    prefixes: Sequence[int] = (),
    nodes: Sequence[int] = (),
) -> KernelProfile:
    """Every kernel at the attention shape and vocabulary of a configuration, by default over `PREFIXES` and `NODES`.

    Raises BenchError without Triton.
    """
    prefixes = prefixes or PREFIXES
    nodes = nodes or NODES
    ours = kernels.triton(device)
    lines = []
    with Progress(
        "kernels", len(prefixes) * len(nodes) + len(nodes) * len(LAWS) + len(nodes)
    ) as progress:
        for prefix in prefixes:
            for count in nodes:
                lines.append(_attention(ours, config, prefix, count, device, dtype))
                progress.advance()
        for count in nodes:
            for name, law in LAWS.items():
                lines.append(_verification(ours, config, count, name, law, device, dtype))
                progress.advance()
        for count in nodes:
            lines.append(_compaction(ours, config, count, device, dtype))
            progress.advance()
    return KernelProfile(lines, copied_bytes(device), product_rate(device, dtype))


def copied_bytes(device: torch.device) -> float:
    """Bytes read and written a second by a large copy, on the clock of the kernels."""
    if device.type != "cuda":
        return copy_bandwidth(device)
    source = torch.zeros(1 << 30, dtype=torch.uint8, device=device)
    goal = torch.empty_like(source)
    return 2 * source.numel() / seconds(lambda: goal.copy_(source), device)


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large square matrix product."""
    size = PRODUCT if device.type == "cuda" else 512
    a = torch.randn(size, size, device=device).to(dtype)  # of ones it would run at a higher clock
    return 2 * size**3 / seconds(lambda: a @ a, device)


def seconds(run: Callable[[], object], device: torch.device, *, captured: bool = False) -> float:
    """Of a call: on a GPU the median with cold caches, elsewhere the best of a few.

    Captured, as rounds are, it costs what the device needs: a host's launches would outlast a small kernel.
    """
    if device.type == "cuda":
        from triton.testing import do_bench

        if captured:
            run = Replay(run, device)
            run(), run()  # the second captures
        return do_bench(run, return_mode="median") / 1e3
    times = []
    for _ in range(3):
        began = perf_counter()
        run()
        times.append(perf_counter() - began)
    return min(times)


def drafted(nodes: int) -> Tree:
    """A tree as drafts grow them: three children a node, the first ones deeper."""
    return Tree(range(nodes), [-1, *[(node - 1) // 3 for node in range(1, nodes)]])


def _attention(
    ours: kernels.Kernels,
    config: PreTrainedConfig,
    prefix: int,
    nodes: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Line:
    heads = config.num_attention_heads
    kv_heads = config.num_key_value_heads
    dim = config.hidden_size // heads
    query = torch.randn(heads, nodes, dim, device=device).to(dtype)
    keys, values = torch.randn(2, kv_heads, prefix + nodes, dim, device=device).to(dtype)
    bits = drafted(nodes).bits.to(device)
    length = torch.tensor([prefix], dtype=torch.int32, device=device)
    mask = torch.ones(nodes, prefix + nodes, dtype=torch.bool, device=device)
    mask[:, prefix:] = drafted(nodes).visible().to(device)
    times = {
        ours.name: seconds(
            lambda: ours.attend(query, keys, values, bits, length, dim**-0.5), device, captured=True
        ),
        "reference": seconds(
            lambda: reference.attend(query, keys, values, bits, length, dim**-0.5), device
        ),
        "sdpa, mask": seconds(lambda: masked(query, keys, values, mask), device, captured=True),
        "flex": _flex_seconds(query, keys, values, bits, length),
    }
    moved = dtype.itemsize * dim * (2 * kv_heads * (prefix + nodes) + 2 * heads * nodes)
    return Line(
        "attention", f"{prefix} + {nodes}", times, moved, 4 * heads * nodes * (prefix + nodes) * dim
    )


def masked(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """As transformers does it: with a mask, keys and values are repeated for every query head of a group."""
    group = len(query) // len(keys)
    k, v = (x.repeat_interleave(group, 0)[None] for x in (keys, values))
    return attend(query[None], k, v, attn_mask=mask)[0]


def flex(
    query: Tensor, keys: Tensor, values: Tensor, bits: Tensor, length: Tensor
) -> Callable[[], Tensor]:
    """FlexAttention with the ancestor bits as its mask, compiled for these shapes alone; `[1, H, N, D]`."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def visible(batch: Tensor, head: Tensor, node: Tensor, column: Tensor) -> Tensor:
        inside = (column - length[0]).clamp(0, len(bits) - 1)
        return (column < length[0]) | ((bits[node, inside // WORD] >> (inside % WORD)) & 1 == 1)

    torch._dynamo.reset()  # or it stops compiling after a few shapes, and runs eager code instead
    block = create_block_mask(
        visible, None, None, query.shape[1], keys.shape[1], device=query.device
    )
    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    grouped = len(query) != len(keys)
    return lambda: compiled(
        query[None], keys[None], values[None], block_mask=block, enable_gqa=grouped
    )


def _flex_seconds(*given: Tensor) -> float | None:
    """Of a call; None where it is not to be had, or not on a GPU."""
    device = given[0].device
    if device.type != "cuda":
        return None
    try:
        return seconds(flex(*given), device, captured=True)
    except Exception as error:  # an optional peer: whatever keeps it from compiling is not ours
        print(f"FlexAttention does not run here: {type(error).__name__} {str(error)[:200]!r}")
        return None


def _verification(
    ours: kernels.Kernels,
    config: PreTrainedConfig,
    nodes: int,
    name: str,
    sampler: Sampler,
    device: torch.device,
    dtype: torch.dtype,
) -> Line:
    logits = (4 * torch.randn(nodes, config.vocab_size, device=device)).to(dtype)
    tree = Nodes.of(drafted(nodes), device)
    law = Law.of(sampler, device)
    position = torch.tensor([77], dtype=torch.int32, device=device)

    def verify(choose: Callable[..., Tensor], walk: Callable[..., Walk], captured: bool) -> float:
        return seconds(
            lambda: walk(tree, choose(logits, tree.depths, position, law)),
            device,
            captured=captured,
        )

    mine = verify(ours.choose, ours.walk, True)
    plain = verify(reference.choose, reference.walk, False)
    times = {ours.name: mine, "reference": plain}
    return Line("verify", f"{nodes}, {name}", times, logits.numel() * dtype.itemsize, 0)


def _compaction(
    ours: kernels.Kernels,
    config: PreTrainedConfig,
    nodes: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Line:
    dim = config.hidden_size // config.num_attention_heads
    kept = min(nodes, 5)
    rows = torch.zeros(
        config.num_hidden_layers,
        2,
        config.num_key_value_heads,
        2048 + nodes,
        dim,
        device=device,
        dtype=dtype,
    )
    path = torch.arange(nodes, dtype=torch.int32, device=device)
    length, count = (torch.tensor([n], dtype=torch.int32, device=device) for n in (2048, kept))
    found = Walk(path, count, path[:1])
    times = {
        ours.name: seconds(lambda: ours.compact(rows, length, found), device, captured=True),
        "reference": seconds(lambda: reference.compact(rows, length, found), device),
    }
    return Line(
        "compact",
        f"{kept} of {nodes}",
        times,
        2 * kept * rows.numel() // rows.shape[-2] * dtype.itemsize,
        0,
    )


def render(found: KernelProfile) -> str:
    """A line a kernel and size: milliseconds by implementation, bytes and operations a second, and of its bound."""
    names = list(dict.fromkeys(name for line in found.lines for name in line.seconds))
    grid = []
    for line in found.lines:
        ours = next(iter(line.seconds.values()))
        times = [f"{1e3 * s:.3f}" if (s := line.seconds.get(name)) else "-" for name in names]
        rates = [
            f"{line.moved / ours / 1e9:.0f}",
            f"{line.operations / ours / 1e12:.2f}",
            f"{found.bound(line) / ours:.0%}",
        ]
        grid.append([line.kernel, line.size, *times, *rates])
    head = ["kernel", "size", *[f"{name}, ms" for name in names], "GB/s", "TFLOP/s", "of the bound"]
    about = f"a copy moves {found.copied / 1e9:.0f} GB/s, a matrix product does {found.multiplied / 1e12:.1f} TFLOP/s"
    return tabulate(grid, head, disable_numparse=True, stralign="right") + "\n\n" + about


def draw(found: KernelProfile, picture: Path) -> None:
    """Attention by size and implementation, with its bound."""
    from matplotlib.figure import Figure

    lines = [line for line in found.lines if line.kernel == "attention"]
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(name for line in lines for name in line.seconds):
        axes.plot(
            [1e6 * (line.seconds.get(name) or float("nan")) for line in lines],
            marker=".",
            label=name,
        )
    axes.plot([1e6 * found.bound(line) for line in lines], "k--", label="bound")
    axes.set_xticks(range(len(lines)), [line.size for line in lines], rotation=60, fontsize=7)
    axes.set_yscale("log")
    axes.set_ylabel("µs")
    axes.set_xlabel("prefix + nodes")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=110)

"""Each kernel alone as a subject: products, attention, verification, on random rows.

- Products: one for every weight shape of the target, as our forward multiplies, and torch's.
- Attention: the backend of the target and torch's, over a cache of random entries.
- On a GPU those of the invariant kernels too, whichever are in use.
- Verification: the token that each sampler's kernels choose, where the target has kernels: on a
  GPU, or where `FSPAD_KERNELS` puts them on the CPU. Triton's interpreter is slow: it gets a part
  of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from fspad_bench.core.sampling import Sampler
from fspad_bench.engine import gpu
from fspad_bench.engine.attention import Attention, Pending, TorchAttention
from fspad_bench.engine.cache import KVCache
from fspad_bench.engine.cpu import native
from fspad_bench.engine.cpu.linear import Matrix
from fspad_bench.engine.gpu.backend import KernelAttention
from fspad_bench.engine.gpu.tensors import SamplerTensors, interpreted
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.lossless.invariance.ours import pending_of
from fspad_bench.lossless.invariance.probe import BRANCH, CHAIN, ROWS, TREE, Company, Subject
from fspad_bench.lossless.invariance.problem import Problem
from fspad_bench.lossless.invariance.trace import Operation, Trace, stacked

SAMPLERS = {
    "greedy": Sampler(),
    "T = 1": Sampler(1.0, seed=3),
    "top-p 0.9": Sampler(1.0, top_p=0.9, seed=3),
    "top-k 50, top-p 0.9": Sampler(1.0, top_k=50, top_p=0.9, seed=3),
}
TORCH = TorchAttention.name
INTERPRETED_VOCABULARY = 1024

RowFunction = Callable[[int, int], Tensor]
"""(first row, end) -> what these rows get when they are asked together."""


def kernel_subjects(target: TransformersTarget, problem: Problem) -> Iterator[Subject]:
    """Yield the kernels that serve a target here."""
    yield from _products(target, len(problem.chain))
    yield from _attentions(target, problem)
    if target.kernels:
        yield from _samplers(target, target.kernels, len(problem.chain))


def spare_kernels(target: TransformersTarget) -> gpu.Kernels | None:
    """Return the invariant kernels where a GPU could run them and others are in use."""
    if target.device.type != "cuda" or not gpu.installed():
        return None
    in_use = target.kernels is not None and target.kernels.name == gpu.INVARIANT
    return None if in_use else gpu.invariant_triton(target.device)


def _of_rows(name: str, own: bool, run: RowFunction) -> Subject:
    """Return a subject that knows rows only, `run(first, end)` being all of its operation."""
    operation = Operation(name)

    def alone(rows: int) -> Trace:
        return stacked([{operation: run(row, row + 1)} for row in range(rows)])

    def together(company: Company) -> Trace:
        return {operation: run(0, company.rows)}

    return Subject(name, own, (ROWS,), alone, together)


def _products(target: TransformersTarget, rows: int) -> Iterator[Subject]:
    matrices: dict[tuple[int, int], Matrix] = {}
    if target.fused is not None:
        layer = target.fused.layers[0]
        for matrix in (layer.qkv, layer.out, layer.gate_up, layer.down):
            matrices.setdefault((matrix.out_features, matrix.in_features), matrix)
    head = target.logits
    matrices.setdefault((head.out_features, head.in_features), head)
    for (outs, width), matrix in matrices.items():
        x = _random(target, rows, width)
        name = f"product {width} -> {outs}"
        own = native.NAME if matrix.packed is not None else TORCH
        own = gpu.INVARIANT if matrix.multiply else own
        yield _of_rows(f"{name}, {own}", True, _multiplied(matrix, x))
        if own != TORCH:
            yield _of_rows(f"{name}, {TORCH}", False, _with(F.linear, matrix, x))
        spare = spare_kernels(target)
        if spare and spare.multiply:
            yield _of_rows(f"{name}, {spare.name}", False, _with(spare.multiply, matrix, x))


def _multiplied(matrix: Matrix, x: Tensor) -> RowFunction:
    return lambda first, end: matrix(x[first:end])


def _with(multiply: gpu.Multiply, matrix: Matrix, x: Tensor) -> RowFunction:
    return lambda first, end: multiply(x[first:end], matrix.weight, matrix.bias)


def _attentions(target: TransformersTarget, problem: Problem) -> Iterator[Subject]:
    backends: list[Attention] = [target.attention]
    if spare := spare_kernels(target):
        backends.append(KernelAttention(target.heads, spare))
    if not any(backend.name == TORCH for backend in backends):
        backends.append(TorchAttention(target.heads))
    kinds = {target.heads.window(layer): layer for layer in range(target.config.num_hidden_layers)}
    for backend in backends:
        for window, layer in kinds.items():
            seen = f", window {window}" if window else ""
            probe = AttentionProbe(target, backend, problem, layer)
            is_ours = backend is target.attention
            yield Subject(
                f"attention, {backend.name}{seen}", is_ours, (CHAIN, TREE, BRANCH), probe.alone,
                probe.together, probe.path,
            )  # fmt: skip


class AttentionProbe:
    """A backend's attention in one layer, over random entries."""

    def __init__(
        self, target: TransformersTarget, backend: Attention, problem: Problem, layer: int
    ) -> None:
        self.backend = backend
        self.problem = problem
        self.layer = layer
        shape = target.heads
        self.prefix = len(problem.prefix)
        rows = len(problem.chain)
        slots = self.prefix + rows
        devices = [target.device] * (layer + 1)
        self.cache = KVCache(devices, shape.kv_heads, slots, shape.dim, target.dtype)
        sizes = (2, shape.kv_heads, self.prefix, shape.dim)
        self.cache.entries[layer, :, :, : self.prefix] = _random(target, *sizes)
        self.projections = _random(target, rows, shape.heads + 2 * shape.kv_heads, shape.dim)
        flat = torch.zeros(2, rows, shape.dim, dtype=target.dtype, device=target.device)
        flat[0] = 1.0
        self.rope = flat  # no rotation

    def alone(self, rows: int) -> Trace:
        return stacked(self._one_by_one(range(rows)))

    def path(self, nodes: int) -> Trace:
        return self._one_by_one(self.problem.branch(nodes))[-1]

    def _one_by_one(self, rows: Iterable[int]) -> list[Trace]:
        return [
            self._seen(Pending(self.prefix + place, [1], 1), slice(row, row + 1), slice(0, 1))
            for place, row in enumerate(rows)
        ]

    def together(self, company: Company) -> Trace:
        _, parents = self.problem.nodes(company)
        pending = pending_of(self.prefix, parents)
        return self._seen(pending, slice(0, company.rows), self.problem.compared(company))

    def _seen(self, pending: Pending, rows: slice, compared: slice) -> Trace:
        attend = self.backend.tree(self.cache, pending)
        seen = attend(self.layer, self.projections[rows], self.rope[:, rows])
        return {Operation("attention"): seen[compared].clone()}


def _samplers(target: TransformersTarget, kernels: gpu.Kernels, rows: int) -> Iterator[Subject]:
    size = target.config.vocab_size
    if interpreted():
        size = min(size, INTERPRETED_VOCABULARY)
    logits = 4 * _random(target, rows, size)
    depths = torch.arange(rows, dtype=torch.int32, device=target.device)
    position = torch.tensor([77], dtype=torch.int32, device=target.device)
    for name, sampler in SAMPLERS.items():
        settings = SamplerTensors.of(sampler, target.device)

        def choose(first: int, end: int, settings: SamplerTensors = settings) -> Tensor:
            chosen = kernels.choose(logits[first:end], depths[first:end], position, settings)
            return chosen[:, None]

        yield _of_rows(f"verification, {kernels.name}, {name}", True, choose)


def _random(target: TransformersTarget, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(*shape, generator=generator).to(target.device, target.dtype)

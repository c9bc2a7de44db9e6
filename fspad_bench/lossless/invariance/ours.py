"""Our forward as subjects: the whole step as decoders run it, and the same operation by operation.

- The step is a session's. Its seams are the embedding, every layer's output and the logits; what
  lies between is one compiled call on a CPU, and the whole of it a captured graph on a GPU.
- Operation by operation the same products, norms, gates and attention are called one at a time, so
  that the one that changes a row has a name. It runs where the forward is fused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fspad_bench.core.tree import extend_ancestry
from fspad_bench.engine.attention import Pending
from fspad_bench.engine.cpu.linear import Matrix
from fspad_bench.engine.forward import FusedForward, Layer
from fspad_bench.engine.session import Session
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.lossless.invariance.probe import BRANCH, CHAIN, TREE, Company, Subject
from fspad_bench.lossless.invariance.problem import Problem
from fspad_bench.lossless.invariance.trace import LOGITS, Operation, Trace, stacked

STEP = "our step"
PARTS = "our operations"
KINDS = (CHAIN, TREE, BRANCH)


def own_subjects(target: TransformersTarget, problem: Problem) -> list[Subject]:
    """Return our forward of a target, in one and by operations where it is fused."""
    step = Step(target, problem)
    subjects = [Subject(STEP, True, KINDS, step.alone, step.together, step.path)]
    if target.fused is not None:
        parts = Parts(target, target.fused, problem)
        subjects.append(Subject(PARTS, True, KINDS, parts.alone, parts.together, parts.path))
    return subjects


def pending_of(prefix: int, parents: Sequence[int]) -> Pending:
    """Return new nodes with these parents as pending entries."""
    ancestry: list[int] = []
    extend_ancestry(ancestry, list(parents))
    return Pending(prefix, ancestry, len(ancestry))


class Step:
    """Whole steps of a session that captures every hidden state."""

    def __init__(self, target: TransformersTarget, problem: Problem) -> None:
        self.problem = problem
        self.width = target.config.hidden_size
        layers = target.config.num_hidden_layers
        self.states = [
            Operation("embed_tokens"),
            *(Operation("output", layer) for layer in range(layers - 1)),
            Operation("norm"),
        ]
        capacity = len(problem.prefix) + len(problem.chain)
        self.session: Session = target.session(capacity, capture=range(layers + 1))
        self.session.prefill(problem.prefix)

    def alone(self, rows: int) -> Trace:
        return stacked(self._one_by_one(self.problem.chain[:rows]))

    def path(self, nodes: int) -> Trace:
        return self._one_by_one(self.problem.path(nodes))[-1]

    def _one_by_one(self, tokens: Sequence[int]) -> list[Trace]:
        traces = []
        for token in tokens:
            traces.append(self._extended([token], [-1], slice(0, 1)))
            self.session.commit([0])
        self.session.rewind(len(self.problem.prefix))
        return traces

    def together(self, company: Company) -> Trace:
        trace = self._extended(*self.problem.nodes(company), self.problem.compared(company))
        self.session.rollback()
        return trace

    def _extended(self, tokens: Sequence[int], parents: Sequence[int], rows: slice) -> Trace:
        logits, features = self.session.extend(tokens, parents)
        # transformers counts the normed features as the last layer's output
        states = features[rows].split(self.width, dim=-1)
        trace = dict(zip(self.states, states, strict=True))
        return trace | {Operation(LOGITS): logits[rows]}


class Recorder:
    """A trace that the operations of one forward write their outputs to."""

    def __init__(self) -> None:
        self.trace: Trace = {}
        self.rows = slice(None)
        self.layer: int | None = None

    def add(self, name: str, rows: Tensor) -> Tensor:
        """Record the rows of an output that are compared, and return it."""
        self.trace[Operation(name, self.layer)] = rows[self.rows].clone()
        return rows


class RecordedMatrix(Matrix):
    """A product of the forward; `layer` is set for the first of a layer."""

    def __init__(self, matrix: Matrix, name: str, recorder: Recorder) -> None:
        self.__dict__ |= matrix.__dict__
        self.name = name
        self.recorder = recorder

    def __call__(self, x: Tensor) -> Tensor:
        return self.recorder.add(self.name, super().__call__(x))


class RecordedOps:
    """The operations between products, each recorded under the name of what it follows."""

    compiled = False

    def __init__(
        self, add_norm: Callable[..., tuple[Tensor, Tensor]], gated: Callable[[Tensor], Tensor],
        names: dict[int, tuple[str, int | None]], recorder: Recorder,
    ) -> None:  # fmt: skip
        self._add_norm = add_norm
        self._gated = gated
        self.names = names
        self.recorder = recorder

    def add_norm(
        self, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        name, layer = self.names[weight.data_ptr()]
        x, normed = self._add_norm(x, delta, weight, eps)
        self.recorder.layer = layer
        self.recorder.add(f"{name}, residual", x)
        return x, self.recorder.add(name, normed)

    def gated(self, both: Tensor) -> Tensor:
        return self.recorder.add("act_fn", self._gated(both))


class Parts:
    """The fused forward with each operation in a call of its own."""

    def __init__(self, target: TransformersTarget, fused: FusedForward, problem: Problem) -> None:
        self.target = target
        self.problem = problem
        self.recorder = Recorder()
        self.fused = self._recorded(fused)
        self.logits = RecordedMatrix(target.logits, LOGITS, self.recorder)
        self.session = target.session(len(problem.prefix) + len(problem.chain))
        self.session.prefill(problem.prefix)

    def alone(self, rows: int) -> Trace:
        return stacked(self._one_by_one(self.problem.chain[:rows]))

    def path(self, nodes: int) -> Trace:
        return self._one_by_one(self.problem.path(nodes))[-1]

    def _one_by_one(self, tokens: Sequence[int]) -> list[Trace]:
        start = len(self.problem.prefix)
        return [
            self._traced([token], Pending(start + row, [1], 1), slice(0, 1))
            for row, token in enumerate(tokens)
        ]

    def together(self, company: Company) -> Trace:
        tokens, parents = self.problem.nodes(company)
        pending = pending_of(len(self.problem.prefix), parents)
        return self._traced(tokens, pending, self.problem.compared(company))

    def _traced(self, tokens: Sequence[int], pending: Pending, rows: slice) -> Trace:
        recorder = self.recorder
        recorder.trace = {}
        recorder.rows = rows
        recorder.layer = None
        attend = self.target.attention.tree(self.session.cache, pending)

        def recorded(layer: int, projections: Tensor, rope: Tensor) -> Tensor:
            recorder.layer = layer
            return recorder.add("attention", attend(layer, projections, rope))

        ids = torch.tensor(tokens, device=self.target.device)
        rope = self.fused.rope.of(pending.positions())
        features, _ = self.fused(ids, rope, recorded)
        recorder.layer = None
        self.logits(features)
        return recorder.trace

    def _recorded(self, fused: FusedForward) -> FusedForward:
        """Return the same forward over the same weights, its operations recorded."""
        recorder = self.recorder
        names: dict[int, tuple[str, int | None]] = {fused.final_norm.data_ptr(): ("norm", None)}
        for number, layer in enumerate(fused.layers):
            names[layer.norm.data_ptr()] = ("input norm", number)
            names[layer.mlp_norm.data_ptr()] = ("mlp norm", number)
            for name, weight in (("out norm", layer.out_norm), ("down norm", layer.down_norm)):
                if weight is not None:
                    names[weight.data_ptr()] = (name, number)
        recorded = copy.copy(fused)
        recorded.layers = [_recorded_layer(layer, recorder) for layer in fused.layers]
        recorded.ops = RecordedOps(  # type: ignore[assignment]
            fused.ops.add_norm, fused.ops.gated, names, recorder
        )
        recorded._chains = {}
        return recorded


def _recorded_layer(layer: Layer, recorder: Recorder) -> Layer:
    return layer._replace(
        qkv=RecordedMatrix(layer.qkv, "qkv_proj", recorder),
        out=RecordedMatrix(layer.out, "o_proj", recorder),
        gate_up=RecordedMatrix(layer.gate_up, "gate_up_proj", recorder),
        down=RecordedMatrix(layer.down, "down_proj", recorder),
    )

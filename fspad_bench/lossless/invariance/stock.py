"""transformers' own forward as a subject: its modules, its cache and its attention, hooked.

- Operations are the modules below the base model, by their names and in the order in which they
  end: one that holds others is named where what it does itself changes a row. `rotary` and
  `attention` are what transformers' SDPA was given and what it returned.
- The prefix is computed once. Every answer starts from a copy of its cache, so a batch shares it,
  and an operation differs only by the company of the tokens behind it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from fspad_bench.engine import stock
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.lossless.invariance.probe import (
    BATCH,
    BRANCH,
    CHAIN,
    PADDED,
    TREE,
    Company,
    Subject,
)
from fspad_bench.lossless.invariance.problem import PADDING, Problem
from fspad_bench.lossless.invariance.trace import LOGITS, Operation, Trace, stacked

NAME = "transformers"
ATTENTION = "fspad_hooked_sdpa"
EVERY = slice(None)
LAYER = re.compile(r"^layers\.(\d+)\.?(.*)$")


class HookedForward:
    """A target's model as transformers runs it, and what each operation gives some of its rows."""

    def __init__(self, target: TransformersTarget, problem: Problem) -> None:
        self.model = target.model
        self.problem = problem
        self.device = target.device
        self.cache_argument = stock.cache_argument(target.model)
        self.windowed = any(target.heads.windows)
        self.prefix = self._prefilled()

    @property
    def kinds(self) -> tuple[str, ...]:
        """The companies that it is asked in: masks of trees and of padding know no windows here."""
        return (CHAIN, BATCH) if self.windowed else (CHAIN, TREE, BRANCH, BATCH, PADDED)

    def alone(self, rows: int) -> Trace:
        """Return the trace of the first tokens of the chain, one at a time."""
        return stacked(self._one_by_one(self.problem.chain[:rows]))

    def path(self, nodes: int) -> Trace:
        """Return the trace of a branch's node, after its ancestors one at a time."""
        return self._one_by_one(self.problem.path(nodes))[-1]

    def _one_by_one(self, tokens: list[int]) -> list[Trace]:
        cache = copy.deepcopy(self.prefix)
        start = len(self.problem.prefix)
        return [
            self._traced([[token]], [[start + row]], cache, None)
            for row, token in enumerate(tokens)
        ]

    def together(self, company: Company) -> Trace:
        start = len(self.problem.prefix)
        count = company.rows
        cache = copy.deepcopy(self.prefix)
        if company.kind == CHAIN:
            positions = list(range(start, start + count))
            return self._traced([self.problem.chain[:count]], [positions], cache, None)
        if company.kind in (TREE, BRANCH):
            tree = self.problem.tree(count)
            positions = [start + depth for depth in tree.depths]
            visible = torch.ones(count, start + count, dtype=torch.bool)
            visible[:, start:] = tree.visible()
            seen = None if count == 1 else visible[None, None].to(self.device)
            return self._traced(
                [list(tree.tokens)], [positions], cache, seen, self.problem.compared(company)
            )
        cache.batch_repeat_interleave(count)
        mask = None
        if company.kind == PADDED:
            mask = self._pad(cache, count)
        tokens = [[token] for token in [self.problem.chain[0], *self.problem.others[: count - 1]]]
        return self._traced(tokens, [[start]] * count, cache, mask)

    def _pad(self, cache: DynamicCache, count: int) -> Tensor:
        """Put padding before the entries of each sequence, and return the mask that hides it."""
        start = len(self.problem.prefix)
        for layer in cache.layers:
            for name in ("keys", "values"):
                entries = getattr(layer, name)
                setattr(layer, name, nn.functional.pad(entries, (0, 0, PADDING, 0)))
        mask = torch.ones(count, PADDING + start + 1, dtype=torch.long, device=self.device)
        mask[:, :PADDING] = 0
        return mask

    def _prefilled(self) -> DynamicCache:
        cache = DynamicCache(config=self.model.config)
        with torch.inference_mode(), self._hooked(None):
            self._run(self.model.base_model, [self.problem.prefix], None, cache, None)
        return cache

    def _traced(
        self,
        tokens: list[list[int]],
        positions: list[list[int]],
        cache: DynamicCache,
        mask: Tensor | None,
        rows: slice = EVERY,
    ) -> Trace:
        """Return the trace of these tokens of the first sequence."""
        trace: Trace = {}
        with self._hooked(trace, rows):
            out = self._run(self.model, tokens, positions, cache, mask)
        trace[Operation(LOGITS)] = out.logits[0, rows]
        return trace

    def _run(
        self,
        module: Any,
        tokens: list[list[int]],
        positions: list[list[int]] | None,
        cache: DynamicCache,
        mask: Tensor | None,
    ) -> Any:
        at = None if positions is None else torch.tensor(positions, device=self.device)
        return module(
            input_ids=torch.tensor(tokens, device=self.device),
            position_ids=at,
            attention_mask=mask,
            use_cache=True,
            **{self.cache_argument: cache},
        )

    @contextmanager
    def _hooked(self, trace: Trace | None, rows: slice = EVERY) -> Iterator[None]:
        """Let the model run as transformers runs it, and write what rows get to a trace, if any."""
        handles = [
            module.register_forward_hook(_recorder(name, trace, rows))
            for name, module in self.model.base_model.named_modules()
            if trace is not None and name
        ]
        RECORDERS.append((trace, rows))
        attention = self.model.config._attn_implementation
        self.model.set_attn_implementation(ATTENTION)
        try:
            yield
        finally:
            self.model.set_attn_implementation(attention)
            RECORDERS.pop()
            for handle in handles:
                handle.remove()


RECORDERS: list[tuple[Trace | None, slice]] = []
"""Where the attention writes; the last is at work."""


def operation_of(name: str) -> Operation:
    """Return the operation of a module by its path below the base model."""
    match = LAYER.match(name)
    return Operation(match[2] or "output", int(match[1])) if match else Operation(name)


def _recorder(name: str, trace: Trace, rows: slice) -> Any:
    operation = operation_of(name)

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output
        if isinstance(output, Tensor) and output.dim() == 3:  # [B, N, d]
            trace[operation] = output[0, rows].clone()

    return record


def hooked_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' SDPA does, and record what goes in and what comes out."""
    trace, rows = RECORDERS[-1]
    layer = getattr(module, "layer_idx", None)
    if trace is not None:
        new = query.shape[2]
        parts = [query[0], key[0, :, -new:]]
        rotated = torch.cat(parts).transpose(0, 1)  # [N, H + H_kv, D]
        trace[Operation("rotary", layer)] = rotated[rows].clone()
    seen, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if trace is not None:
        trace[Operation("attention", layer)] = seen[0, rows].clone()
    return seen, weights


AttentionInterface.register(ATTENTION, hooked_sdpa)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def stock_subject(target: TransformersTarget, problem: Problem) -> Subject:
    """Return transformers' forward of a target, which need not keep bits."""
    forward = HookedForward(target, problem)
    return Subject(NAME, False, forward.kinds, forward.alone, forward.together, forward.path)

"""One forward for the trees of several sessions of a target.

- Products run over the rows of all trees; the tokens of each session attend over its own cache.
- The compiled step gives a row the same bits in any company, so each session gets the very scores
  that a forward of its own would give. On other engines they are the same up to rounding.
- The compiled step takes a bounded number of rows: more than that are several forwards, of whole
  trees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fspad_bench.core.tree import Tree
from fspad_bench.engine.attention import Attend, Attention
from fspad_bench.engine.cpu.attention import CompiledAttention
from fspad_bench.engine.cpu.native import ROWS
from fspad_bench.engine.forward import FusedForward
from fspad_bench.engine.session import Model, Scores, Session
from fspad_bench.util.errors import BenchError


class SharedModel(Model, Protocol):
    """A target, as one forward of several sessions sees it (`target.TransformersTarget`)."""

    name: str
    device: torch.device
    fused: FusedForward | None
    attention: Attention


def check_shares(target: SharedModel) -> None:
    """Raise BenchError for a target whose forward takes one session only."""
    if target.fused is None:
        raise BenchError(
            f"{target.name} runs by its stock forward, which takes one request at a time",
            "a plain Llama, Mistral, Qwen or Gemma 3 on one device is needed here",
        )


def keeps_bits(target: SharedModel) -> bool:
    """Whether a row gets the same bits in any company: a session's scores those of a forward of its
    own, a node of a tree those of its path one token at a time.
    """
    return isinstance(target.attention, CompiledAttention)


@torch.inference_mode()
def score_together(
    target: SharedModel, sessions: Sequence[Session], trees: Sequence[Tree]
) -> list[Scores]:
    """Score a tree for each session. Raises as `Session.score` does, ValueError for sessions that
    do not run the same layers of this target.
    """
    check_shares(target)
    plans = {(session.layers, session.capture) for session in sessions}
    if len(plans) > 1 or any(session.target is not target for session in sessions):
        raise ValueError("sessions of one forward run the same layers of the same target")
    if len({id(session.cache) for session in sessions}) < len(sessions):
        raise ValueError("sessions of one forward have caches of their own")
    if any(session.pending for session in sessions):
        raise RuntimeError("score before the last tree was committed or rolled back")
    most = ROWS if keeps_bits(target) else sum(map(len, trees))
    scores: list[Scores] = []
    for group in groups(list(map(len, trees)), most):
        scores += _forward(target, sessions[group], trees[group])
    return scores


def groups(sizes: Sequence[int], most: int) -> Iterator[slice]:
    """Yield slices of trees of these sizes, each of at most so many nodes, or of one tree."""
    first = 0
    total = 0
    for number, size in enumerate(sizes):
        if total and total + size > most:
            yield slice(first, number)
            first = number
            total = 0
        total += size
    if total:
        yield slice(first, len(sizes))


def _forward(
    target: SharedModel, sessions: Sequence[Session], trees: Sequence[Tree]
) -> list[Scores]:
    """Run all trees in one forward."""
    fused = target.fused
    assert fused is not None
    sizes = list(map(len, trees))
    attends = []
    ropes = []
    tokens: list[int] = []
    for session, tree in zip(sessions, trees, strict=True):
        pending = session.announce(tree.tokens, tree.parents)
        attends.append(target.attention.tree(session.cache, pending))
        ropes.append(fused.rope.of(pending.positions()))
        tokens += tree.tokens
    ids = torch.tensor(tokens, device=target.device)
    target.forwards += 1
    capture = sessions[0].capture
    features, captured = fused(
        ids, torch.cat(ropes, dim=1), each_its_own(attends, sizes), sessions[0].layers, capture
    )
    logits = target.logits(features)
    states = torch.cat(captured, dim=-1) if captured else features
    return list(map(Scores, logits.split(sizes), states.split(sizes)))


def each_its_own(attends: Sequence[Attend], sizes: Sequence[int]) -> Attend:
    """Return the attention of rows that belong to several caches, so many to each."""
    sizes = list(sizes)

    def attend(layer: int, projections: Tensor, rope: Tensor) -> Tensor:
        parts = zip(attends, projections.split(sizes), rope.split(sizes, dim=1), strict=True)
        return torch.cat([own(layer, rows, angles) for own, rows, angles in parts])

    return attend

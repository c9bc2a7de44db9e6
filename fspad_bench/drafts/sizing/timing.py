"""The seconds of parts of a step, timed by this process: forwards, and all else in a step.

The quickest of some turns counts, since other work can only add to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from statistics import median
from time import perf_counter
from typing import NamedTuple, TypeVar

import torch

from fspad_bench.core.loop import Decoding
from fspad_bench.core.protocols import Context, Drafter, Limit
from fspad_bench.core.sampling import NotFiniteError, Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import Rule
from fspad_bench.engine.device_loop import repeated
from fspad_bench.engine.session import Session
from fspad_bench.engine.target import TransformersTarget

WARM = 2  # turns that do not count
TURNS = 12  # turns that do
PATIENCE = 10.0  # seconds after which no further turn begins
ROOM = 128  # new tokens that timed steps may make

Run = TypeVar("Run")


def best_of(runs: Sequence[Callable[[], object]], target: TransformersTarget) -> list[float]:
    """Return the seconds of each run's quickest turn."""

    def seconds(run: Callable[[], object]) -> float:
        began = perf_counter()
        run()
        target.synchronize()
        return perf_counter() - began

    return _quickest(seconds, runs)


def _quickest(seconds: Callable[[Run], float], runs: Sequence[Run]) -> list[float]:
    """Return each run's quickest turn.

    Runs take turns, so that a busy moment costs each of them a turn and none of them all. On a
    device the first turn compiles and the second captures, so neither counts.
    """
    for _ in range(WARM):
        for run in runs:
            seconds(run)
    turns: list[list[float]] = []
    began = perf_counter()
    while not turns or (len(turns) < TURNS and perf_counter() - began < PATIENCE):
        turns.append([seconds(run) for run in runs])
    return [min(of_run) for of_run in zip(*turns, strict=True)]


class Turn(NamedTuple):
    """A step to time: the target's session holds all of the context but its last token, the root of
    the drafted tree.
    """

    session: Session
    context: Context
    draft: Callable[[], Tree]


def overhead_seconds(turns: Sequence[Turn], verify: Rule) -> list[float]:
    """Return the seconds of each step's quickest turn without its forward: drafting, verification,
    commit.

    The forward runs all the same: a draft whose weights are still in the processor's caches would
    look quicker than it is.
    """

    def seconds(turn: Turn) -> float:
        session, context, draft = turn
        assert context.sampler is not None
        target = session.target
        prefix = session.length
        began = perf_counter()
        tree = draft()
        target.synchronize()
        drafted = perf_counter()
        logits = session.score(tree).logits
        target.synchronize()
        scored = perf_counter()
        session.commit(verify(tree, logits, context.sampler, context.position).path)
        target.synchronize()
        done = perf_counter()
        session.rewind(prefix)
        return drafted - began + done - scored

    return _quickest(seconds, turns)


@torch.inference_mode()
def step_seconds(
    target: TransformersTarget, drafter: Drafter, prefix: int, greedy: bool
) -> tuple[float, float]:
    """Return the seconds of a drafter's steps behind a prefix without their forwards, and those of
    asking it alone: the medians of some steps of a generation, since no two draft alike; 0 where
    the target's logits there are not finite.
    """
    sampler = Sampler(0.0 if greedy else 1.0)
    prompt = [token % target.config.vocab_size for token in range(7, 7 + prefix)]
    limit = Limit(min(ROOM, target.max_length - prefix))
    steps: list[tuple[float, float]] = []
    with (
        Decoding(target, drafter, sampler, prompt, limit) as decoding,
        suppress(NotFiniteError),  # its samples say so
    ):
        decoding.begin(decoding.session.prefill(prompt))
        while not decoding.finished and len(steps) < WARM + TURNS:
            steps.append(_step_without_forward(target, decoding))
    asking, rest = zip(*(steps[WARM:] or steps or [(0.0, 0.0)]), strict=True)
    asked = median(asking)
    return asked + median(rest), asked


def _step_without_forward(target: TransformersTarget, decoding: Decoding) -> tuple[float, float]:
    """Run a step; return its seconds of asking the drafter, and of all else but the forward."""
    began = perf_counter()
    tree = decoding.propose()
    target.synchronize()
    drafted = perf_counter()
    scores = decoding.session.score(tree)
    target.synchronize()
    scored = perf_counter()
    decoding.take(tree, scores, scored - drafted)
    target.synchronize()
    return drafted - began, perf_counter() - scored


def forward_seconds(target: TransformersTarget, cases: Sequence[tuple[int, int]]) -> list[float]:
    """Return the seconds of trees of so many nodes at a prefix length, (nodes, prefix).

    On a device their verification is included.
    """
    longest = max(prefix for _, prefix in cases)
    prompt = [token % target.config.vocab_size for token in range(7, 7 + longest)]
    trees = [Tree(prompt[:nodes], range(-1, nodes - 1)) for nodes, _ in cases]
    if target.kernels:
        steps = [
            repeated(target, tree, prompt[:prefix])
            for tree, (_, prefix) in zip(trees, cases, strict=True)
        ]
        return [best_of([step], target)[0] for step in steps]
    sessions = {prefix: target.session(prefix) for _, prefix in cases}
    for prefix, session in sessions.items():
        session.prefill(prompt[:prefix])

    def run(tree: Tree, session: Session) -> None:
        session.score(tree)
        session.rollback()

    runs = [
        partial(run, tree, sessions[prefix]) for tree, (_, prefix) in zip(trees, cases, strict=True)
    ]
    return best_of(runs, target)

"""What a round costs on this machine: the target's forward of n tree nodes, and all the rest with so many levels.

Measured once for a target, a draft and a device, and kept in the user's cache, or, where other work was going on, for
this process alone; `FSPAD_BENCH_COSTS=new` measures again. They decide how many nodes a drafter asks about; what it
outputs depends on that only where a rule is exact in law but not in tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate, chain, islice
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import torch

from fspad_bench import __version__
from fspad_bench.core.loop import Context
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import Rule
from fspad_bench.engine.device_loop import repeated
from fspad_bench.engine.target import LARGEST_TREE, TransformersTarget
from fspad_bench.util import machine
from fspad_bench.util.paths import cache_home, write_whole
from fspad_bench.util.progress import Progress

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
NEAR = 256
FAR = 1024
# turns that do not count, those that do, seconds after which none of them begins
WARM = 2
TURNS = 12
PATIENCE = 10.0

Run = TypeVar("Run")
_measured: dict[Path, list[float]] = {}  # in this process, kept or not


@dataclass(frozen=True)
class Costs:
    """Seconds: of a forward of each of `SIZES` nodes behind `NEAR` tokens, of all else in a round with one drafted
    level, of each further level, and what each further token before them adds to the forwards and to these two."""

    verify: tuple[float, ...]
    first: float
    level: float
    longer: tuple[float, ...] = (0.0,) * len(SIZES)
    draft_longer: tuple[float, ...] = (0.0, 0.0)

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Costs:
        """From what `asdict` made of them, be it read from a file."""
        return cls(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in facts.items()
            }
        )

    def forward(self, nodes: int, tokens: int = NEAR) -> float:
        """Seconds of a tree of so many nodes, root included, behind so many tokens."""
        return float(self._verify[nodes] + max(0, tokens - NEAR) * self._longer[nodes])

    def forwards(self, tokens: int) -> list[float]:
        """The same of every number of nodes, from 0 to `LARGEST_TREE`."""
        return (self._verify + max(0, tokens - NEAR) * self._longer).tolist()

    def beside(self, levels: int, tokens: int = NEAR) -> float:
        """Seconds of a round with so many drafted levels, at least one, beside its forward, behind so many tokens."""
        further = max(0, tokens - NEAR)
        first = self.first + further * self.draft_longer[0]
        level = self.level + further * self.draft_longer[1]
        return first + (levels - 1) * level

    @cached_property
    def _verify(self) -> np.ndarray:
        return _interpolated(self.verify)

    @cached_property
    def _longer(self) -> np.ndarray:
        return _interpolated(self.longer)


def _interpolated(values: Sequence[float]) -> np.ndarray:
    """From values at `SIZES`, one for every number of nodes; beyond the largest size they grow in proportion."""
    every = np.arange(LARGEST_TREE + 1)
    return np.where(
        every <= SIZES[-1], np.interp(every, SIZES, values), values[-1] * every / SIZES[-1]
    )


TINY = Costs(tuple(1.0 + 0.02 * n for n in SIZES), 0.1, 0.1)


def given(target: TransformersTarget) -> bool:
    """Whether its costs are `TINY`, not measured: tests must not depend on what a machine was doing."""
    return target.name == "tiny"


def of(
    target: TransformersTarget,
    about: dict[str, Any],
    measure_draft: Callable[[Sequence[int]], Sequence[tuple[float, float]]],
    *,
    everywhere: bool = True,
) -> Costs:
    """The costs of a target with a draft that is told apart by `about`; from the cache where they are known.

    `measure_draft` returns `first` and `level` behind each of so many tokens: behind `NEAR` and, where `everywhere` is
    asked about and the target's context is long enough to tell a slope from noise, behind `FAR`.
    """
    if given(target):
        return TINY
    far = min(FAR, target.max_length - LARGEST_TREE)
    prefixes = (NEAR, far) if everywhere and far >= 2 * NEAR else (NEAR,)
    told = {"prefixes": prefixes}
    sizes = len(SIZES)
    forwards = _known(target, {"nodes": SIZES} | told, lambda: _rising(target, prefixes))
    drafts = _known(target, about | told, lambda: [*chain.from_iterable(measure_draft(prefixes))])
    costs = Costs(tuple(forwards[:sizes]), *drafts[:2])
    if len(prefixes) == 1:
        return costs

    def slopes(near: Sequence[float], behind: Sequence[float]) -> tuple[float, ...]:
        return tuple(
            max(0.0, dear - cheap) / (far - NEAR) for cheap, dear in zip(near, behind, strict=True)
        )

    return replace(
        costs,
        longer=slopes(costs.verify, forwards[sizes:]),
        draft_longer=slopes(drafts[:2], drafts[2:]),
    )


def _rising(target: TransformersTarget, prefixes: Sequence[int]) -> list[float]:
    """Seconds of forwards of `SIZES` nodes behind each prefix; none can cost more than a larger one, whatever a clock
    says."""
    found = iter(
        forward_seconds(target, [(nodes, prefix) for prefix in prefixes for nodes in SIZES])
    )
    return [
        x
        for _ in prefixes
        for x in [*accumulate(reversed([*islice(found, len(SIZES))]), min)][::-1]
    ]


def _known(
    target: TransformersTarget, about: dict[str, Any], measure: Callable[[], Sequence[float]]
) -> list[float]:
    key = about | {
        "target": target.identity,
        "dtype": str(target.dtype),
        "forward": target.forward_name,
        "compiled": target.lean.parts.signature if target.lean else "",
        "device": target.gpu or str(target.device),
        "threads": torch.get_num_threads(),
        "machine": machine.describe(),
        "torch": torch.__version__,
        "fspad_bench": __version__,
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_home() / "costs" / f"{name}.json"
    if path not in _measured and path.is_file() and os.environ.get("FSPAD_BENCH_COSTS") != "new":
        _measured[path] = json.loads(path.read_text(encoding="utf-8"))["seconds"]
    if path in _measured:
        return _measured[path]
    with Progress("measuring what a round costs", 1) as progress:
        load = machine.Load()
        _measured[path] = list(measure())
        progress.advance()
    if load.others() > machine.NOISY * machine.cores():
        print("other work is going on: these costs are not kept for the next run", file=sys.stderr)
        return _measured[path]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps({"key": key, "seconds": _measured[path]}, indent=2) + "\n")
    except OSError as error:
        print(
            f"these costs are not kept for the next run: {error}; set FSPAD_BENCH_CACHE",
            file=sys.stderr,
        )
    return _measured[path]


def best_of(runs: Sequence[Callable[[], object]], target: TransformersTarget) -> list[float]:
    """Seconds of the quickest turn of each."""

    def seconds(run: Callable[[], object]) -> float:
        began = perf_counter()
        run()
        target.synchronize()
        return perf_counter() - began

    return _quickest(seconds, runs)


def _quickest(seconds: Callable[[Run], float], runs: Sequence[Run]) -> list[float]:
    """Of each run its quickest turn: other work can only add to them.

    They take turns, so that a busy moment costs each of them a turn and none of them all. On a device the first turn
    compiles and the second captures, so neither counts.
    """
    for _ in range(WARM):
        [seconds(run) for run in runs]
    turns = []
    began = perf_counter()
    while not turns or (len(turns) < TURNS and perf_counter() - began < PATIENCE):
        turns.append([seconds(run) for run in runs])
    return [min(found) for found in zip(*turns, strict=True)]


def beside_forward(
    target: TransformersTarget, turns: Sequence[tuple[Context, Callable[[], Tree]]], verify: Rule
) -> list[float]:
    """Seconds of the quickest turn of a round with each of these trees behind its context, the forward left out.

    It runs all the same: a draft whose weights are still in the processor's caches would look quicker than it is.
    """
    length = target.length

    def seconds(turn: tuple[Context, Callable[[], Tree]]) -> float:
        context, draft = turn
        target.cache.rewind(len(context.tokens) - 1)  # the last one is the tree's root
        began = perf_counter()
        tree = draft()
        target.synchronize()
        drafted = perf_counter()
        logits = target.score(tree).logits
        target.synchronize()
        scored = perf_counter()
        target.commit(verify(tree, logits, context.sampler, context.position).path)
        target.synchronize()
        done = perf_counter()
        target.cache.rewind(length)
        return drafted - began + done - scored

    return _quickest(seconds, turns)


def forward_seconds(target: TransformersTarget, cases: Sequence[tuple[int, int]]) -> list[float]:
    """Seconds of trees of so many nodes behind so many tokens, (nodes, tokens); on a device with their verification."""
    prompt = [
        token % target.config.vocab_size
        for token in range(7, 7 + max(tokens for _, tokens in cases))
    ]
    trees = [Tree(prompt[:nodes], range(-1, nodes - 1)) for nodes, _ in cases]
    if target.kernels:
        behind = [prompt[:tokens] for _, tokens in cases]
        return [
            best_of([repeated(target, *case)], target)[0]
            for case in zip(trees, behind, strict=True)
        ]
    target.prefill(prompt, LARGEST_TREE)

    def run(tree: Tree, tokens: int) -> None:
        target.cache.rewind(tokens)
        target.score(tree)
        target.commit([0])

    return best_of(
        [partial(run, tree, tokens) for tree, (_, tokens) in zip(trees, cases, strict=True)], target
    )

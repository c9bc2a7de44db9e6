"""The costs of a step on this machine: the target's forward of n tree nodes, and all the rest with
so many levels.

- Measured once for a target, a draft, a device, a machine, its threads and the code that runs, and
  kept in the user's cache; where other work was going on, for this process alone. A damaged file is
  measured anew, as all are by `FSPAD_BENCH_COSTS=new`.
- They decide how many nodes a drafter proposes. The output depends on that only where a rule is
  exact in distribution but not in tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from fspad_bench.core.loop import Decoding
from fspad_bench.core.protocols import Context, Drafter, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import Rule
from fspad_bench.engine.device_loop import repeated
from fspad_bench.engine.session import Session
from fspad_bench.engine.target import LARGEST_TREE, TransformersTarget
from fspad_bench.util import machine, plain
from fspad_bench.util.errors import BenchError
from fspad_bench.util.paths import cache_home, write_atomically
from fspad_bench.util.progress import Progress
from fspad_bench.util.provenance import source_hash
from fspad_bench.util.terminal import note

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
NEAR = 256  # prefix lengths at which costs are measured
FAR = 1024
WARM = 2  # turns that do not count
TURNS = 12  # turns that do
ROOM = 128  # new tokens that timed steps may make
LONGEST = 3600.0  # seconds of a part of a step, above which a file is damaged
PATIENCE = 10.0  # seconds after which no further turn begins
TINY_IDENTITY = "tiny-1"  # of the preset `tiny`, whose costs are made up

Run = TypeVar("Run")
DraftSeconds = Callable[[Sequence[int]], Sequence[tuple[float, float]]]
_measured: dict[Path, list[float]] = {}  # in this process, kept or not


@dataclass(frozen=True)
class Costs:
    """Seconds, at a prefix of `NEAR` tokens where not said otherwise.

    forward          a forward of each of `SIZES` nodes
    overhead         all else in a step with one drafted level
    per_level        each further level
    forward_per_token    what each further token of the prefix adds to each of `forward`
    draft_per_token      what each further token of the prefix adds to `overhead` and to `per_level`
    """

    forward: tuple[float, ...]
    overhead: float
    per_level: float
    forward_per_token: tuple[float, ...] = (0.0,) * len(SIZES)
    draft_per_token: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Costs:
        """Return the costs that `asdict` wrote, be they read from a file.

        Raises BenchError for what are none.
        """
        try:
            values: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()
            }
            costs = cls(**values)
            costs._check()
        except (AttributeError, TypeError, ValueError) as error:
            raise BenchError(
                f"the recorded costs of trees are damaged: {error}",
                "move the record away, or give another --output",
            ) from error
        return costs

    def _check(self) -> None:
        """Raise TypeError or ValueError unless these are seconds, as many as there should be."""
        counts = {"forward_per_token": len(SIZES), "draft_per_token": 2}
        _check_costs("forward", self.forward, len(SIZES), are_positive=True)
        for name, count in counts.items():
            _check_costs(name, getattr(self, name), count)
        _check_costs("overhead and per_level", [self.overhead, self.per_level], 2)

    def forward_seconds(self, nodes: int, prefix: int = NEAR) -> float:
        """Return the seconds of a forward of so many nodes, root included, at a prefix length."""
        further = max(0, prefix - NEAR)
        return float(self._forward[nodes] + further * self._forward_per_token[nodes])

    def all_forwards(self, prefix: int, batch: int = 1) -> list[float]:
        """Return the seconds of a forward of every number of nodes, from 0 to `LARGEST_TREE`.

        Where `batch` requests share a forward, each with a tree of this size: a request's share.
        Weights are read once for all; what a longer prefix adds, each pays for its own.
        """
        further = max(0, prefix - NEAR) * self._forward_per_token
        share = self._forward if batch == 1 else _interpolated(self.forward, batch) / batch
        return (share + further).tolist()

    def overhead_seconds(self, levels: int, prefix: int = NEAR) -> float:
        """Return the seconds of a step with so many drafted levels, at least one, without its
        forward.
        """
        further = max(0, prefix - NEAR)
        first = self.overhead + further * self.draft_per_token[0]
        level = self.per_level + further * self.draft_per_token[1]
        return first + (levels - 1) * level

    @cached_property
    def _forward(self) -> np.ndarray:
        return _interpolated(self.forward)

    @cached_property
    def _forward_per_token(self) -> np.ndarray:
        return _interpolated(self.forward_per_token)


def _check_costs(name: str, values: Any, count: int, *, are_positive: bool = False) -> None:
    """Raise TypeError or ValueError unless these are so many times of parts of a step."""
    if isinstance(values, str) or len(values) != count:
        raise ValueError(f"{name} is not {count} numbers")
    for value in values:
        if plain.seconds(value, name) > LONGEST or (are_positive and value == 0):
            raise ValueError(f"{name} is {value}, no time of a step")


def _interpolated(values: Sequence[float], batch: int = 1) -> np.ndarray:
    """Interpolate values at `SIZES` to `batch` times every number of nodes.

    Beyond the largest size they grow in proportion.
    """
    every = batch * np.arange(LARGEST_TREE + 1)
    inside = np.interp(every, SIZES, values)
    return np.where(every <= SIZES[-1], inside, values[-1] * every / SIZES[-1])


TINY = Costs(tuple(1.0 + 0.02 * n for n in SIZES), 0.1, 0.1)


def is_measurable(target: TransformersTarget) -> bool:
    """Whether the target's context has room for the steps that are timed."""
    return is_tiny(target) or target.max_length >= NEAR + LARGEST_TREE


def is_tiny(target: TransformersTarget) -> bool:
    """Whether the costs are `TINY`, not measured: tests must not depend on the machine's load."""
    return target.identity == TINY_IDENTITY


def measure(
    target: TransformersTarget,
    about: Mapping[str, Any],
    measure_draft: DraftSeconds,
    *,
    with_far: bool = True,
) -> Costs:
    """Return the costs of a target with the draft that `about` identifies; from the cache where
    they are known.

    `measure_draft` returns `overhead` and `per_level` at each of some prefix lengths: `NEAR` and,
    with `with_far` where the target's context is long enough to tell a slope from noise, `FAR`.
    """
    if is_tiny(target):
        return TINY
    prefixes = _prefixes(target) if with_far else (NEAR,)
    of_target = _forwards(target, prefixes)
    drafts = _known(
        target,
        {**about, "prefixes": prefixes},
        lambda: [seconds for pair in measure_draft(prefixes) for seconds in pair],
        count=2 * len(prefixes),
    )
    near = replace(of_target, overhead=drafts[0], per_level=drafts[1])
    if len(prefixes) == 1:
        return near
    first, level = _slopes(drafts[:2], drafts[2:], prefixes[1] - NEAR)
    return replace(near, draft_per_token=(first, level))


def measure_target(target: TransformersTarget) -> Costs:
    """Return the costs of a target's forwards alone, from the cache where they are known."""
    return TINY if is_tiny(target) else _forwards(target, _prefixes(target))


def _prefixes(target: TransformersTarget) -> tuple[int, ...]:
    """Return `NEAR`, and a further length where the context is long enough to tell a slope from
    noise.
    """
    far = min(FAR, target.max_length - LARGEST_TREE)
    return (NEAR, far) if far >= 2 * NEAR else (NEAR,)


def _forwards(target: TransformersTarget, prefixes: tuple[int, ...]) -> Costs:
    """Return the costs of forwards behind these prefixes, and nothing else."""
    seconds = _known(
        target,
        {"nodes": SIZES, "prefixes": prefixes},
        lambda: _monotone(target, prefixes),
        count=len(SIZES) * len(prefixes),
    )
    near = tuple(seconds[: len(SIZES)])
    if len(prefixes) == 1:
        return Costs(near, 0.0, 0.0)
    slopes = _slopes(near, seconds[len(SIZES) :], prefixes[1] - NEAR)
    return Costs(near, 0.0, 0.0, forward_per_token=slopes)


def _slopes(near: Sequence[float], far: Sequence[float], tokens: int) -> tuple[float, ...]:
    return tuple(max(0.0, b - a) / tokens for a, b in zip(near, far, strict=True))


def _monotone(target: TransformersTarget, prefixes: Sequence[int]) -> list[float]:
    """Time forwards of `SIZES` nodes at each prefix length, and let none cost more than a larger
    one.
    """
    cases = [(nodes, prefix) for prefix in prefixes for nodes in SIZES]
    seconds = forward_seconds(target, cases)
    result: list[float] = []
    for start in range(0, len(seconds), len(SIZES)):
        of_prefix = seconds[start : start + len(SIZES)]
        result += list(accumulate(reversed(of_prefix), min))[::-1]
    return result


def _known(
    target: TransformersTarget,
    about: Mapping[str, Any],
    measure: Callable[[], Sequence[float]],
    *,
    count: int,
) -> list[float]:
    """Return these `count` costs from the cache, or measure them and keep them there."""
    key = {
        **about,
        "target": target.identity,
        "files": target.files_sha256,
        "dtype": str(target.dtype),
        "forward": target.forward_name,
        "compiled": target.signature,
        "device": target.gpu or str(target.device),
        "threads": torch.get_num_threads(),
        "machine": machine.describe(),
        "torch": torch.__version__,
        "source": source_hash(),
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_home() / "costs" / f"{name}.json"
    if os.environ.get("FSPAD_BENCH_COSTS") != "new" and path not in _measured:
        kept = _read(path, key, count)
        if kept is not None:
            _measured[path] = kept
    if path in _measured:
        return _measured[path]
    session = target.last_session  # a drafter may share it; those of the measurement are closed
    with Progress("measuring what a step costs", 1) as progress:
        load = machine.Load()
        _measured[path] = list(measure())
        progress.advance()
    target.last_session = session
    if load.others() > machine.NOISY:
        note("other work is going on: these costs are not kept for the next run")
        return _measured[path]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"key": key, "seconds": _measured[path]}
        write_atomically(path, json.dumps(content, indent=2) + "\n")
    except OSError as error:
        note(f"these costs are not kept for the next run: {error}; set FSPAD_BENCH_CACHE")
    return _measured[path]


def _read(path: Path, key: Mapping[str, Any], count: int) -> list[float] | None:
    """Return the costs of a file, None where it is missing or does not hold so many of this key."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        values = content["seconds"]
        _check_costs("a cost", values, count, are_positive="nodes" in key)
        is_of_key = content["key"] == json.loads(json.dumps(key))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return [float(value) for value in values] if is_of_key and any(values) else None


def best_of(runs: Sequence[Callable[[], object]], target: TransformersTarget) -> list[float]:
    """Return the seconds of each run's quickest turn."""

    def seconds(run: Callable[[], object]) -> float:
        began = perf_counter()
        run()
        target.synchronize()
        return perf_counter() - began

    return _quickest(seconds, runs)


def _quickest(seconds: Callable[[Run], float], runs: Sequence[Run]) -> list[float]:
    """Return each run's quickest turn: other work can only add to the others.

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
def step_seconds(target: TransformersTarget, drafter: Drafter, prefix: int) -> float:
    """Return the seconds of a drafter's steps behind a prefix, without their forwards: the median
    of some steps of a generation, since no two draft alike.
    """
    prompt = [token % target.config.vocab_size for token in range(7, 7 + prefix)]
    limit = Limit(min(ROOM, target.max_length - prefix))
    seconds: list[float] = []
    with Decoding(target, drafter, Sampler(1.0), prompt, limit) as decoding:
        decoding.begin(decoding.session.prefill(prompt))
        while not decoding.finished and len(seconds) < WARM + TURNS:
            seconds.append(_step_without_forward(target, decoding))
    return median(seconds[WARM:] or seconds)


def _step_without_forward(target: TransformersTarget, decoding: Decoding) -> float:
    """Run a step; return its seconds but for its forward."""
    began = perf_counter()
    tree = decoding.propose()
    target.synchronize()
    drafted = perf_counter()
    scores = decoding.session.score(tree)
    target.synchronize()
    scored = perf_counter()
    decoding.take(tree, scores, scored - drafted)
    target.synchronize()
    return drafted - began + perf_counter() - scored


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

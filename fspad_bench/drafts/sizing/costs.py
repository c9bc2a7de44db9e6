"""The costs of a step on this machine: the target's forward of n tree nodes, and all the rest with
so many levels.

- Measured once for a target, a draft, a device, a machine, its threads and the code that runs, and
  kept in the user's cache; where other work was going on, for this process alone. A damaged file is
  measured anew, as all are by `FSPAD_BENCH_COSTS=new`.
- A draft of another package's code is measured for each drafter: nothing tells when it is edited.
- They decide how many nodes a drafter proposes. The output depends on that only where a rule is
  exact in distribution but not in tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fspad_bench.drafts.sizing.timing import forward_seconds
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
LONGEST = 3600.0  # seconds of a part of a step, above which a file is damaged
TINY_IDENTITY = "tiny-1"  # of the preset `tiny`, whose costs are made up

DraftSeconds = Callable[[Sequence[int]], Sequence[tuple[float, float]]]
_measured: dict[Path, list[float]] = {}  # in this process, kept or not


@dataclass(frozen=True)
class Costs:
    """Seconds, at a prefix of `NEAR` tokens where not said otherwise.

    forward          a forward of each of `SIZES` nodes
    overhead         all else in a step with one drafted level
    per_level        each further level; of a drafter that is asked as a whole, asking it once
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
        """Return the seconds of a step with so many drafted levels without its forward: at least
        one, or none of a drafter that is asked as a whole.
        """
        first = self.overhead + max(0, prefix - NEAR) * self.draft_per_token[0]
        return max(0.0, first + (levels - 1) * self.level_seconds(prefix))

    def level_seconds(self, prefix: int = NEAR) -> float:
        """Return the seconds of a further level, or of asking a drafter as a whole."""
        return self.per_level + max(0, prefix - NEAR) * self.draft_per_token[1]

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
    return target.max_length >= NEAR + LARGEST_TREE


def is_tiny(target: TransformersTarget) -> bool:
    """Whether the costs are `TINY`, not measured: tests must not depend on the machine's load."""
    return target.identity == TINY_IDENTITY


def measure(
    target: TransformersTarget,
    about: Mapping[str, Any] | None,
    measure_draft: DraftSeconds,
    *,
    with_far: bool = True,
) -> Costs:
    """Return the costs of a target with the draft that `about` identifies; from the cache where
    they are known. None: nothing identifies it, so that it is measured, and not kept.

    `measure_draft` returns `overhead` and `per_level` at each of some prefix lengths: `NEAR` and,
    with `with_far` where the target's context is long enough to tell a slope from noise, `FAR`.
    """
    if is_tiny(target):
        return TINY
    prefixes = _prefixes(target) if with_far else (NEAR,)
    of_target = _forwards(target, prefixes)
    drafts = _known(
        target,
        None if about is None else {**about, "prefixes": prefixes},
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
    about: Mapping[str, Any] | None,
    measure: Callable[[], Sequence[float]],
    *,
    count: int,
) -> list[float]:
    """Return these `count` costs from the cache, or measure them and keep them there; where nothing
    identifies them, they are measured and not kept.
    """
    if about is None:
        return _timed(target, measure)[0]
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
    _measured[path], others = _timed(target, measure)
    if others > machine.NOISY:
        note("other work is going on: these costs are not kept for the next run")
        return _measured[path]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"key": key, "seconds": _measured[path]}
        write_atomically(path, json.dumps(content, indent=2) + "\n")
    except OSError as error:
        note(f"these costs are not kept for the next run: {error}; set FSPAD_BENCH_CACHE")
    return _measured[path]


def _timed(
    target: TransformersTarget, measure: Callable[[], Sequence[float]]
) -> tuple[list[float], float]:
    """Return what is measured, and the other work that went on meanwhile."""
    session = target.last_session  # a drafter may share it, and those of the measurement end
    with Progress("measuring what a step costs", 1) as progress:
        load = machine.Load()
        seconds = list(measure())
        progress.advance()
    target.last_session = session
    return seconds, load.others()


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

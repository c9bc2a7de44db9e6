"""Whole steps of the loops, with a drafter that knows the answer: accepted to any depth.

- For every depth of 1 to 16 a tree is accepted to its end; at depth 16 it is also refused after
  every number of right nodes. A wrong sibling stands before each right node, so entries must move.
- The tokens must be vanilla's, the step must commit exactly the right nodes and the bonus token,
  and the cache must hold what vanilla's holds.
- `device_paths` does the same on the loop that runs whole steps on a device.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Context, Drafter, Generation, Limit, Scores
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.engine.device_loop import DeviceLoop, DeviceState, runs_on_device
from fspad_bench.engine.gpu.tensors import Nodes
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.lossless.checks import ELSEWHERE, Check, worst_of
from fspad_bench.lossless.reference import DEEPEST, random_tokens
from fspad_bench.lossless.rounding import ROUNDS_OTHERWISE, cache_bound, rounds_otherwise

AFTER = 3  # tokens after the step that is prescribed: they read the cache that it left
WIDTH = 70  # wrong children of the root in a wide tree, whose path begins beyond node 64
SAMPLERS = {"greedy": Sampler(), "T=1": Sampler(1.0, seed=3, stream="paths")}
PROMPT_LENGTH = 60  # a path crosses the first word of 64 positions
CASES = [(depth, depth) for depth in range(1, DEEPEST + 1)]
CASES += [(DEEPEST, right) for right in range(DEEPEST)]


@dataclass
class PathErrors:
    """The right nodes of the steps that went wrong, and the largest error of the cache."""

    wrong: list[str] = field(default_factory=list)
    cache: float = 0.0
    bits: bool = True


class Prescribed(Drafter):
    """Drafts one tree in its first step, and nothing after that."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.steps = 0

    def begin(self, context: Context, scores: Scores) -> None:
        self.steps = 0

    def propose(self, context: Context, budget: int) -> Tree:
        self.steps += 1
        return self.tree if self.steps == 1 else Tree.root(context.tokens[-1])


class PrescribedNodes:
    """Drafts one tree in every step on the device: right in the first, unlikely in the others."""

    def __init__(self, nodes: int, device: torch.device) -> None:
        self.nodes = nodes
        self.drafted = nodes - 1
        self.capture: tuple[int, ...] = ()
        self.device = device
        self.held = Nodes.of(Tree.root(0), device, nodes)

    def prescribe(self, tree: Tree) -> None:
        """Set the tree, in place: a captured graph reads the same tensors."""
        for held, new in zip(self.held, Nodes.of(tree, self.device, self.nodes), strict=True):
            held.copy_(new)

    def begin(self, context: Context, scores: Scores, slots: int) -> None:
        pass

    def draft(self, state: DeviceState, sampled: bool) -> None:
        for place, held in zip(state.nodes, self.held, strict=True):
            place.copy_(held)
        state.nodes.tokens[:1] = state.walk.bonus


Run = Callable[[Tree, Sampler, list[int], Limit], Generation]


def tree_along(truth: Sequence[int], depth: int, right: int, vocabulary: int, width: int) -> Tree:
    """Return a tree whose path follows `truth` for `right` nodes and is wrong below, to `depth`.

    `truth[0]` is the root's token. The root has `width` wrong children before the right one.
    """
    tokens = [truth[0]]
    parents = [-1]
    node = 0
    for level in range(1, depth + 1):
        token = truth[level]
        count = width if level == 1 else 1
        wrong = [(token + 1 + i) % vocabulary for i in range(min(count, vocabulary - 2))]
        last = token if level <= right else (token - 1) % vocabulary
        tokens += [*wrong, last]
        parents += [node] * (len(wrong) + 1)
        node = len(tokens) - 1
    return Tree(tokens, parents)


def host_paths(target: TransformersTarget) -> PathErrors:
    """Run every case on the loop of the host."""
    return list(host_steps(target))[-1]


def device_paths(target: TransformersTarget) -> PathErrors:
    """Run every case on the loop of the device."""
    return list(device_steps(target))[-1]


def host_steps(target: TransformersTarget) -> Iterator[PathErrors]:
    """Yield the errors so far after each case on the loop of the host."""

    def run(tree: Tree, sampler: Sampler, prompt: list[int], limit: Limit) -> Generation:
        return generate(target, Prescribed(tree), sampler, prompt, limit)

    return _all_cases(target, run)


def device_steps(target: TransformersTarget) -> Iterator[PathErrors]:
    """Yield the errors so far after each case on the loop of the device."""
    drafter = PrescribedNodes(1 + WIDTH + 2 * DEEPEST, target.device)
    loop = DeviceLoop(target, drafter)

    def run(tree: Tree, sampler: Sampler, prompt: list[int], limit: Limit) -> Generation:
        drafter.prescribe(tree)
        return loop.generate(sampler, prompt, limit)

    return _all_cases(target, run)


@torch.inference_mode()
def _all_cases(target: TransformersTarget, run: Run) -> Iterator[PathErrors]:
    vocabulary = target.config.vocab_size
    prompt = random_tokens(random.Random(5), PROMPT_LENGTH, vocabulary)
    found = PathErrors()
    for name, sampler in SAMPLERS.items():
        limit = Limit(DEEPEST + 2 + AFTER)
        truth = generate(target, Vanilla(target), sampler, prompt, limit).tokens
        entries = _entries(target, PROMPT_LENGTH + DEEPEST + 1 + AFTER)
        for number, (depth, right) in enumerate(CASES):
            width = WIDTH if number % 3 == 0 else 1
            tree = tree_along(truth, depth, right, vocabulary, width)
            count = right + 2 + AFTER
            generation = run(tree, sampler, prompt, Limit(count))
            as_expected = generation.committed[:1] == [right + 1]
            if generation.tokens != truth[:count] or not as_expected:
                found.wrong.append(f"{right} of {depth} {name}")
            _compare_cache(target, entries, PROMPT_LENGTH + count - 1, found)
            yield found


def _entries(target: TransformersTarget, length: int) -> Tensor:
    assert target.last_session is not None
    return target.last_session.cache.first(length)


def _compare_cache(
    target: TransformersTarget, entries: Tensor, length: int, found: PathErrors
) -> None:
    ours = _entries(target, length)
    right = entries[..., :length, :]
    found.bits &= torch.equal(ours, right)
    found.cache = worst_of([found.cache, float((ours.double() - right.double()).abs().max())])


def paths_hold(target: TransformersTarget, found: PathErrors) -> bool:
    """Return whether all steps were right and the caches are vanilla's, by bits where promised.

    Raises KeyError where a tree `rounds_otherwise`.
    """
    return not found.wrong and found.cache <= cache_bound(target)


def check_paths(target: TransformersTarget, subject: str) -> list[Check]:
    """Check the host's loop, and the device's where the target has kernels."""
    if rounds_otherwise(target):
        return [Check("paths", subject, ELSEWHERE, ROUNDS_OTHERWISE)]
    checks = [_check("paths", target, host_paths(target), subject)]
    if runs_on_device(target):
        checks.append(_check("paths, device", target, device_paths(target), subject))
    return checks


def _check(name: str, target: TransformersTarget, found: PathErrors, subject: str) -> Check:
    figure = f"{len(CASES) * len(SAMPLERS)} paths of 0 to {DEEPEST} right nodes, "
    figure += "cache bit by bit" if found.bits else f"cache off by {found.cache:.1e}"
    if found.wrong:
        figure = f"wrong where {', '.join(found.wrong[:4])} nodes are right; {figure}"
    return Check.of(name, subject, paths_hold(target, found), figure, "vanilla's tokens and cache")

"""What asking a drafter costs, and from costs to tree policies: the `prepare` of adaptive trees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Protocol

import torch

from fspad_bench.core.protocols import Context, Drafter, Measurements
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import rule_named
from fspad_bench.drafts.draft import CachedDraft, Draft
from fspad_bench.drafts.head import Head
from fspad_bench.drafts.sizing import costs, timing
from fspad_bench.drafts.sizing.calibration import Calibration
from fspad_bench.drafts.sizing.costs import Costs
from fspad_bench.drafts.sizing.policy import AdaptiveTree, FixedTree, TreePolicy, best_shape
from fspad_bench.drafts.sizing.timing import Turn
from fspad_bench.drafts.trees.dynamic import dynamic_tree
from fspad_bench.drafts.trees.levels import HeadLevels
from fspad_bench.drafts.trees.on_device import DeviceTreeBuilder
from fspad_bench.engine.device_loop import DeviceLoop, replayed
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.util.provenance import is_of_package

SMALL = 8  # nodes of the trees whose drafting is timed on the host
LARGE = 64  # and on a device
DEEP = 3  # levels whose cost is measured beside that of one
KINDS = {True: "greedy", False: "sampled"}


class Options(Protocol):
    """The resolved options of a drafter that its costs depend on (`drafter.DraftSettings`)."""

    @property
    def nodes(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def top_k(self) -> int: ...
    @property
    def verify(self) -> str: ...
    @property
    def drafting(self) -> str: ...
    @property
    def vocabulary(self) -> str: ...


def measured_policies(
    target: TransformersTarget,
    draft: Draft,
    head: Head,
    options: Options,
    known: Measurements | None,
) -> tuple[dict[bool, TreePolicy], Measurements]:
    """Return the adaptive policies of a greedy and of a sampled step, and the costs they are made
    of.
    """
    calibration = Calibration.of(head.facts.get("calibration"))
    about = _about(head, options, verify=options.verify)
    seconds = partial(_draft_seconds, target, draft, options)
    measured = _by_kind(target, about, seconds, known)
    policies: dict[bool, TreePolicy] = {}
    for greedy in KINDS:
        # the sampled curves were fitted with the noise
        fits = greedy or options.drafting == "coupled"
        policies[greedy] = AdaptiveTree(
            options.nodes,
            options.depth,
            options.top_k,
            measured[greedy],
            calibration if fits else Calibration(),
            greedy,
        )
    return policies, facts_of(measured)


def captured_shape(
    target: TransformersTarget,
    draft: Draft,
    head: Head,
    options: Options,
    known: Measurements | None,
) -> tuple[FixedTree, Measurements]:
    """Return the one shape that pays best where steps are captured on a device, and its costs."""
    calibration = Calibration.of(head.facts.get("calibration"))
    if known and "captured" in known:
        measured = Costs.of(known["captured"])
    else:
        about = _about(head, options, captured=True)
        seconds = partial(_captured_seconds, target, draft, options)
        measured = costs.measure(target, about, seconds, with_far=False)
    depth = min(options.depth, DeviceTreeBuilder.deepest(options.top_k))
    shape = best_shape(measured, calibration, nodes=options.nodes, depth=depth, top_k=options.top_k)
    return shape, {"captured": asdict(measured)}


def asking_costs(
    target: TransformersTarget,
    about: Mapping[str, Any] | None,
    beginner: Callable[[], Drafter],
    known: Measurements | None,
) -> dict[bool, Costs]:
    """Return the costs of a drafter's steps, greedy and sampled, whatever it drafts with,
    `per_level` being those of asking it: those that are `known`, or else measured, and kept for the
    next run if `about` identifies them. `beginner` returns one that is prepared and may learn from
    being timed.
    """

    def seconds(greedy: bool, prefixes: Sequence[int]) -> list[tuple[float, float]]:
        return [timing.step_seconds(target, beginner(), prefix, greedy) for prefix in prefixes]

    return _by_kind(target, about, seconds, known)


def facts_of(measured: Mapping[bool, Costs]) -> Measurements:
    """Return the costs of greedy and sampled steps as a record holds them."""
    return {kind: asdict(measured[greedy]) for greedy, kind in KINDS.items()}


def _by_kind(
    target: TransformersTarget,
    about: Mapping[str, Any] | None,
    seconds: Callable[[bool, Sequence[int]], Sequence[tuple[float, float]]],
    known: Measurements | None,
) -> dict[bool, Costs]:
    """Return the costs of steps by whether they are greedy: those that are `known`, or else
    measured, drafting by `seconds`, of such steps behind some prefixes.
    """
    measured = {}
    for greedy, kind in KINDS.items():
        if known and kind in known:
            measured[greedy] = Costs.of(known[kind])
        else:
            own = None if about is None else {**about, "greedy": greedy}
            measured[greedy] = costs.measure(target, own, partial(seconds, greedy))
    return measured


class _Narrow(FixedTree):
    """Levels as adaptive trees mostly draft them, from a path or two."""

    def deepen(self, chances: Sequence[float], frontier: Sequence[float], levels: int) -> int:
        return min(2, super().deepen(chances, frontier, levels))


def _about(head: Head, options: Options, **more: object) -> dict[str, object] | None:
    """Return what the costs of drafting with a head depend on, and `more`.

    None where its network is of another package, whose code nothing tells.
    """
    if not is_of_package(type(head.network)):
        return None
    return {
        "head": head.sha256,
        "top_k": options.top_k,
        "drafting": options.drafting,
        "prompted": options.vocabulary == "prompt",
        **more,
    }


@torch.inference_mode()
def _draft_seconds(
    target: TransformersTarget,
    draft: Draft,
    options: Options,
    greedy: bool,
    prefixes: Sequence[int],
) -> list[tuple[float, float]]:
    """Time drafting after two new tokens at each prefix length.

    A step with one level, and what a further one adds.
    """
    prompt = [token % target.config.vocab_size for token in range(7, 7 + max(prefixes))]
    sampler = Sampler(0.0 if greedy else 1.0)
    longest = Context([*prompt, 7], len(prompt), sampler)
    sessions = {prefix: target.session(prefix, capture=draft.capture) for prefix in prefixes}
    for prefix, session in sessions.items():
        scores = session.prefill(prompt[:prefix])
        if prefix == len(prompt):
            draft.begin(longest, scores)
    draft.absorb()
    full = draft.length
    features = draft.features[-2:]
    tokens = draft.tokens[-2:]

    def drafted(context: Context, levels: int) -> Tree:
        draft.rewind(full - (longest.position - context.position))
        draft.features = features
        draft.tokens = tokens
        return dynamic_tree(
            HeadLevels(draft),
            context,
            policy=_Narrow(SMALL, levels),
            budget=levels,
            top_k=options.top_k,
            with_noise=options.drafting == "coupled",
        ).tree

    turns = []
    for prefix in prefixes:
        context = Context([*prompt[:prefix], 7], prefix, sampler)
        for levels in (1, DEEP):
            turns.append(Turn(sessions[prefix], context, partial(drafted, context, levels)))
    seconds = timing.overhead_seconds(turns, target.verifier(rule_named(options.verify)))
    return [_by_level(seconds[i], seconds[i + 1]) for i in range(0, len(seconds), 2)]


def _captured_seconds(
    target: TransformersTarget, draft: Draft, options: Options, prefixes: Sequence[int]
) -> list[tuple[float, float]]:
    """Time drafting that is captured; what verifies there belongs to the forward."""
    assert isinstance(draft, CachedDraft)
    coupled = options.drafting == "coupled"

    def seconds(prefix: int, levels: int) -> float:
        prompt = [token % target.config.vocab_size for token in range(7, 7 + prefix)]
        shape = FixedTree(LARGE, levels)
        builder = DeviceTreeBuilder(target, draft, shape, options.top_k, coupled)
        _, drafting = replayed(DeviceLoop(target, builder), prompt, Sampler(1.0))
        return timing.best_of([drafting], target)[0]

    return [_by_level(seconds(prefix, 1), seconds(prefix, DEEP)) for prefix in prefixes]


def _by_level(one: float, deep: float) -> tuple[float, float]:
    """Turn seconds with one level and with `DEEP` into those with one, and what each further one
    adds.
    """
    return one, max(0.0, deep - one) / (DEEP - 1)

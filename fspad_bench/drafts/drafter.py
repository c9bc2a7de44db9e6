"""A drafter with a trained head: what EAGLE, FSPAD and others share, down to their options.

Which children a node gets is decided by `trees.dynamic` (EAGLE-2's tree, by default ranked with the
very noise that the target's choice will meet) or by `trees.sampled` (drawn, for the rules of
verification that need a distribution).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import torch

from fspad_bench.core.protocols import Context, Drafter, Measurements, Scores, Step
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import RULES, rule_named
from fspad_bench.drafts.draft import CachedDraft, Draft
from fspad_bench.drafts.head import Head, load_head, shipped
from fspad_bench.drafts.hub_heads import head_folder
from fspad_bench.drafts.measure import captured_shape, measured_policies
from fspad_bench.drafts.network import HeadNetwork
from fspad_bench.drafts.parallel import ParallelDraft, ParallelNetwork
from fspad_bench.drafts.sizing import costs
from fspad_bench.drafts.sizing.policy import MOST_NODES, TREES, FixedTree, TreePolicy, Trust
from fspad_bench.drafts.trees.dynamic import DraftTree, dynamic_tree
from fspad_bench.drafts.trees.levels import HeadLevels
from fspad_bench.drafts.trees.on_device import DeviceTreeBuilder
from fspad_bench.drafts.trees.sampled import sampled_tree
from fspad_bench.engine.target import LARGEST_TREE, TransformersTarget
from fspad_bench.util.errors import BenchError, near

DRAFTING = ("coupled", "ranked", "sampled")
VOCABULARIES = ("prompt", "head")
FIXED_NODES = 8
FIXED_DEPTH = 2
MOST_DEPTH = 8


@dataclass(frozen=True)
class DraftSettings:
    """The resolved options of a drafter, as they stand in a row's key.

    `nodes` and `depth` are the size of a fixed tree, the bounds of an adaptive one. `captured`:
    whole steps run on a device, as a graph of one shape.
    """

    tree: str
    nodes: int
    depth: int
    top_k: int
    verify: str
    drafting: str
    vocabulary: str
    captured: bool

    @property
    def adaptive(self) -> bool:
        return self.tree == "auto"

    @property
    def coupled(self) -> bool:
        return self.drafting == "coupled"


class HeadDrafter(Drafter):
    """Drafts trees with a trained head: `head` is one, or its folder; empty, the one shipped for
    `network`.

    A decoder whose `network` is None takes heads of any architecture.

    tree        `fixed`: `nodes` with the root, `depth` levels. `auto`: adaptive, grown to what pays
                on this machine within `nodes` and `depth` where they are given; each step anew, or,
                where steps are captured on a device, to the one shape that pays best. Empty: `auto`
                for coupled drafts of a calibrated head unless a size is given. Where children are
                drawn it is always `fixed`.
    top_k       how many paths a level are expanded, and how many children each gets.
    verify      the rule: `match`, `rejection`, `traversal`.
    drafting    `coupled` ranks children by their logits plus the noise of their position, `ranked`
                by their logits alone, `sampled` draws them. Empty: what suits `verify`: coupled for
                `match`, sampled for the rules that need a distribution.
    vocabulary  `prompt`: the head's tokens and those of the text; `head`: the head's alone, as
                always where the head has an LM head of its own.
    """

    network: ClassVar[type[HeadNetwork] | None] = None

    def __init__(
        self,
        target: TransformersTarget,
        head: str | Head = "",
        *,
        tree: str = "",
        nodes: int = 0,
        depth: int = 0,
        top_k: int = 4,
        verify: str = "match",
        drafting: str = "",
        vocabulary: str = "prompt",
    ) -> None:
        self.rule = rule_named(verify)
        self.head = head if isinstance(head, Head) else find_head(head, self.network, target)
        self.options = resolve(
            target,
            self.head,
            tree=tree,
            nodes=nodes,
            depth=depth,
            top_k=top_k,
            verify=verify,
            drafting=drafting,
            vocabulary=vocabulary,
        )
        self.target = target
        self.draft = draft_of(target, self.head, prompted=self.options.vocabulary == "prompt")
        self.capture = self.draft.capture
        bounds = FixedTree(self.options.nodes, self.options.depth)
        # by whether the step is greedy; None until `prepare` has measured
        self.policies: dict[bool, TreePolicy] | None = None
        if not self.options.adaptive:
            self.policies = {True: bounds, False: bounds}
        self.shape = bounds  # of a captured step

    def settings(self) -> dict[str, Any]:
        """Return the resolved options, and the head by its content."""
        settings = asdict(self.options) | {"head_sha256": self.head.sha256}
        if self.options.captured:
            settings |= {"captured_nodes": self.shape.nodes, "captured_depth": self.shape.depth}
        return settings

    def prepare(
        self, target: TransformersTarget, known: Measurements | None = None
    ) -> Measurements | None:
        """Measure the costs that adaptive trees are sized by, or take those of a run that is
        resumed.
        """
        if not self.options.adaptive:
            return None
        if self.options.captured:
            self.shape, measurements = captured_shape(
                target, self.draft, self.head, self.options, known
            )
            self.policies = {True: self.shape, False: self.shape}
            return measurements
        self.policies, measurements = measured_policies(
            target, self.draft, self.head, self.options, known
        )
        return measurements

    def twin(self) -> Self:
        twin = copy(self)
        twin.draft = self.draft.twin()
        return twin

    def begin(self, context: Context, scores: Scores) -> None:
        if self.policies is None:
            self.prepare(self.target)
        self.draft.begin(context, scores)
        self.trust = Trust()
        self.last: DraftTree | None = None

    def propose(self, context: Context, budget: int) -> Tree:
        self.last = self._draft_tree(context, budget)
        return self.last.tree

    def observe(self, step: Step) -> None:
        self.draft.observe(step)
        if self.last is not None:
            tree, chances = self.last.tree, self.last.chances
            decided = range(1, len(tree)) if step.tree is tree else tree.decided_by(step.tree)
            expected = sum(chances[node - 1] for node in decided) if chances else 0.0
            self.trust = self.trust.after(expected, len(tree.followed(step.tokens)))
        self.last = None

    def chances(self) -> Sequence[float] | None:
        """Return what the calibration and this text say of the tree last proposed.

        Children that were drawn have none.
        """
        if self.last is None or self.last.tree.q is not None:
            return None
        share = self.trust.share
        return [min(1.0, share * chance) for chance in self.last.chances]

    def device_drafter(self) -> DeviceTreeBuilder | None:
        """Return the same tree's builder on the device, where steps are captured there."""
        deepest = DeviceTreeBuilder.deepest(self.options.top_k)
        if not self.options.captured or self.shape.depth > deepest:
            return None
        assert isinstance(self.draft, CachedDraft)
        return DeviceTreeBuilder(
            self.target, self.draft, self.shape, self.options.top_k, self.options.coupled
        )

    def _policy(self, context: Context) -> TreePolicy:
        assert self.policies is not None
        assert context.sampler is not None
        return self.policies[context.sampler.greedy]

    @torch.inference_mode()
    def _draft_tree(self, context: Context, budget: int) -> DraftTree:
        options = self.options
        if budget < 1:
            return DraftTree(Tree.root(context.tokens[-1]))
        assert context.sampler is not None
        if options.drafting == "sampled" and not context.sampler.greedy:
            depth = min(options.depth, budget)
            tree = sampled_tree(
                self.draft, context, nodes=options.nodes, depth=depth, top_k=options.top_k
            )
            return DraftTree(tree)
        policy = self._policy(context).at(len(context.tokens), self.trust.share, context.batch)
        if context.batch > 1 and not policy.deepen([], [1.0], 0):
            return DraftTree(
                Tree.root(context.tokens[-1])
            )  # so many share a forward that none pays
        return dynamic_tree(
            HeadLevels(self.draft),
            context,
            policy=policy,
            budget=budget,
            top_k=options.top_k,
            with_noise=options.coupled,
        )


def draft_of(target: TransformersTarget, head: Head, *, prompted: bool) -> Draft:
    """Return the head at work, as its kind of network works.

    Raises BenchError for a language model, which other decoders draft with.
    """
    if not head.network.reads_states:
        raise BenchError(
            f"a trained '{head.network.architecture}' is a language model, not a head",
            f"-D {head.network.architecture}.model=FOLDER drafts with it",
        )
    kind = ParallelDraft if isinstance(head.network, ParallelNetwork) else CachedDraft
    return kind(target, head, prompted=prompted)


def _check_words(*, tree: str, drafting: str, vocabulary: str, verify: str) -> None:
    """Raise BenchError for options that are unknown or do not go together."""
    for name, value, known in (
        ("tree", tree, TREES),
        ("drafting", drafting, DRAFTING),
        ("vocabulary", vocabulary, VOCABULARIES),
        ("verification", verify, tuple(RULES)),
    ):
        if value not in known:
            raise BenchError(f"unknown {name} '{value}'", near(value, known))
    if drafting == "coupled" and verify != "match":
        raise BenchError(
            f"verify={verify} makes no use of coupled drafts: "
            "its choices do not follow the target's noise",
            "use drafting=sampled or drafting=ranked",
        )


def resolve(
    target: TransformersTarget,
    head: Head,
    *,
    tree: str,
    nodes: int,
    depth: int,
    top_k: int,
    verify: str,
    drafting: str,
    vocabulary: str,
) -> DraftSettings:
    """Return what the options come to for this head and target.

    Raises BenchError for those that do not fit.
    """
    drafting = drafting or ("coupled" if verify == "match" else "sampled")
    _check_words(tree=tree or "auto", drafting=drafting, vocabulary=vocabulary, verify=verify)
    if tree == "auto" and not costs.is_measurable(target):
        raise BenchError(
            f"tree=auto times steps behind {costs.NEAR} tokens, and {target.name} reads "
            f"{target.max_length} in all",
            "use tree=fixed",
        )
    if not tree:
        calibrated = "calibration" in head.facts and drafting == "coupled"
        sized = bool(nodes or depth)
        tree = "auto" if calibrated and costs.is_measurable(target) and not sized else "fixed"
    if drafting == "sampled":
        tree = "fixed"
    nodes, depth = _sizes(head, tree, nodes=nodes, depth=depth, top_k=top_k)
    captured = bool(target.kernels) and head.network.on_device
    captured = captured and verify == "match" and drafting != "sampled"
    captured = captured and (tree == "auto" or depth <= DeviceTreeBuilder.deepest(top_k))
    alone = captured or head.network.lm_head is not None  # a graph has one shape
    return DraftSettings(
        tree=tree,
        nodes=nodes,
        depth=depth,
        top_k=min(top_k, len(head.vocabulary)),
        verify=verify,
        drafting=drafting,
        vocabulary="head" if alone else vocabulary,
        captured=captured,
    )


def _sizes(head: Head, tree: str, *, nodes: int, depth: int, top_k: int) -> tuple[int, int]:
    """Return the nodes and levels of a tree: those given, or else what suits it.

    Raises BenchError for those out of range.
    """
    levels = head.network.shape.levels or LARGEST_TREE
    if depth > levels:
        raise BenchError(
            f"depth={depth} is out of range: this head predicts {levels} tokens at once",
            f"1 <= depth <= {levels}",
        )
    most = MOST_DEPTH if tree == "auto" else _fewest_levels(nodes, top_k)
    depth = depth or min(levels, most)
    nodes = nodes or (MOST_NODES if tree == "auto" else FIXED_NODES)
    sizes = (nodes, depth + 1, top_k + 1)  # a tree holds a whole path, and a node's children
    if not all(2 <= size <= LARGEST_TREE for size in sizes):
        raise BenchError(
            f"nodes={nodes}, depth={depth}, top_k={top_k} is out of range",
            f"2 <= nodes <= {LARGEST_TREE}, 1 <= depth, top_k < {LARGEST_TREE}",
        )
    return nodes, depth


def _fewest_levels(nodes: int, top_k: int) -> int:
    """Return the levels of a fixed tree by default: more where so many `nodes` need them."""
    more = max(0, nodes - 1 - top_k) / top_k**2 if top_k > 0 else 0.0
    return min(MOST_DEPTH, max(FIXED_DEPTH, 1 + math.ceil(more)))


def find_head(folder: str, network: type[HeadNetwork] | None, target: TransformersTarget) -> Head:
    """Return the head a user named, or the one shipped for this network and target.

    Raises BenchError where there is none.
    """
    if folder:
        return load_head(head_folder(folder), target, network)
    if network is None:
        raise BenchError("this decoder needs a head", "-D NAME.head=FOLDER")
    name = network.architecture
    path = shipped(name, target.name)
    if not path.is_dir():
        raise BenchError(
            f"no {name} head is shipped for target '{target.name}'",
            f"`fspad-bench train --decoder {name} --target {target.name}` makes one for "
            f"-D {name}.head=FOLDER",
        )
    return load_head(path, target, network)

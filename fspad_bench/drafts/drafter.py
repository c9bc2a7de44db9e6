"""A drafter with a draft network: what EAGLE and FSPAD share, down to their options.

Which children a node gets is the business of `dynamic` (EAGLE-2's tree, by default ranked with the very noise that
the target's choice will meet) or of `sampled` (drawn, for the rules of verification that need a law).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from fspad_bench.core.loop import Context, Scores, Step
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import match, rule
from fspad_bench.drafts.draft import Draft
from fspad_bench.drafts.head import Head, load_head, shipped
from fspad_bench.drafts.sizing import costs
from fspad_bench.drafts.sizing.calibration import Calibration
from fspad_bench.drafts.sizing.costs import Costs
from fspad_bench.drafts.sizing.machine_speed import Paced
from fspad_bench.drafts.sizing.policy import BestSize, FixedSize, Size, Trust, best_shape
from fspad_bench.drafts.trees.dynamic import Grown, dynamic_tree
from fspad_bench.drafts.trees.on_device import Growth
from fspad_bench.drafts.trees.sampled import sampled_tree
from fspad_bench.engine.device_loop import DeviceLoop, replayed
from fspad_bench.engine.target import LARGEST_TREE, TransformersTarget
from fspad_bench.errors import BenchError, near

DRAFTING = ("coupled", "ranked", "sampled")
TREES = ("auto", "fixed")
FIXED_NODES = 8
FIXED_DEPTH = 2
MOST_NODES = 64
MOST_DEPTH = 8
VOCABULARIES = ("prompt", "head")
DEEP = 3  # levels whose cost is measured beside that of one


class HeadDrafter(Draft):
    """`head` is a trained one, or its folder; empty, the one that is shipped for `arm`. A decoder whose `arm` is empty
    takes heads of any.

    `tree` is `fixed`, `nodes` with the root and `depth` levels deep, or `auto`, grown to what pays on this machine
    within those bounds where they are given: each round anew, or where rounds are captured on a device to the one shape
    that pays best. Empty, it is `auto` for coupled drafts of a head that is calibrated, unless a size is given. Where
    children are drawn it is always `fixed`.
    `top_k` paths a level are drafted on, `top_k` children each.

    `drafting` says how children are chosen: `coupled` ranks them by their logits plus the noise of their position,
    `ranked` by their logits alone, `sampled` draws them. Empty, it is what suits `verify`: coupled for `match`,
    sampled for the rules that need a law.
    """

    arm = ""

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
        if tree and tree not in TREES:
            raise BenchError(f"unknown tree '{tree}'", near(tree, TREES))
        self.verify = rule(verify)
        self.drafting = drafting or ("coupled" if verify == "match" else "sampled")
        if self.drafting not in DRAFTING:
            raise BenchError(f"unknown drafting '{drafting}'", near(drafting, DRAFTING))
        if self.drafting == "coupled" and verify != "match":
            raise BenchError(
                f"verify={verify} makes no use of coupled drafts: its choices do not follow the target's noise",
                "use drafting=sampled or drafting=ranked",
            )
        head = head if isinstance(head, Head) else find_head(head, self.arm, target)
        measurable = target.max_length >= costs.NEAR + LARGEST_TREE
        sizable = (
            self.drafting == "coupled"
            and "calibration" in head.facts
            and measurable
            and not (nodes or depth)
        )
        auto = self.drafting != "sampled" and (tree or ("auto" if sizable else "fixed")) == "auto"
        nodes = nodes or (MOST_NODES if auto else FIXED_NODES)
        depth = depth or (MOST_DEPTH if auto else FIXED_DEPTH)
        if not (2 <= nodes <= LARGEST_TREE and depth >= 1 and top_k >= 1):
            text = f"nodes={nodes}, depth={depth}, top_k={top_k} is out of range"
            raise BenchError(text, f"2 <= nodes <= {LARGEST_TREE}, depth >= 1, top_k >= 1")
        if vocabulary not in VOCABULARIES:
            raise BenchError(f"unknown vocabulary '{vocabulary}'", near(vocabulary, VOCABULARIES))
        captured = bool(target.kernels) and verify == "match" and self.drafting != "sampled"
        super().__init__(
            target, head, prompted=vocabulary == "prompt" and not captured
        )  # a graph has one shape
        self.costs: dict[str, dict[str, Any]] = {}  # what the trees are sized by, for the record
        # not where a device works on while the host's clock is read, nor where outputs would depend on clocks
        self.follows = (
            target.device.type == "cpu" and self.verify is match and not costs.given(target)
        )
        self.top_k = min(top_k, len(self.vocabulary))
        self.grower = None
        bounds = FixedSize(nodes, depth)
        self.sizes = (
            self._sized(target, head, bounds, captured)
            if auto
            else dict.fromkeys((True, False), bounds)
        )
        size = self.sizes[True]
        self.nodes = size.nodes
        self.depth = size.depth
        if captured and self.depth <= Growth.deepest(self.top_k):
            self.grower = self._growth(target, size)
        self.files = {"head": head.sha256}

    def _sized(
        self, target: TransformersTarget, head: Head, most: FixedSize, captured: bool
    ) -> dict[bool, Size]:
        """The size of a greedy round and of a sampled one, within `most`, that pays on this machine."""
        calibration = Calibration.of(head.facts.get("calibration"))
        about = {
            "head": head.sha256, "top_k": self.top_k, "drafting": self.drafting, "prompted": self.sayable.prompted,
        }  # fmt: skip
        if captured:
            measured = costs.of(
                target,
                about | {"captured": True},
                partial(self._replayed, target),
                everywhere=False,
            )
            self.costs["captured"] = asdict(measured)
            depth = min(most.depth, Growth.deepest(self.top_k))
            best = best_shape(
                measured, calibration, nodes=most.nodes, depth=depth, top_k=self.top_k
            )
            return dict.fromkeys((True, False), best)
        about |= {"verify": self.verify.__name__}
        sizes = {}
        for greedy in (True, False):
            measured = costs.of(
                target, about | {"greedy": greedy}, partial(self._seconds, target, greedy)
            )
            self.costs["greedy" if greedy else "sampled"] = asdict(measured)
            known = (
                calibration if greedy or self.drafting == "coupled" else Calibration()
            )  # fitted with the noise
            sizes[greedy] = BestSize(
                most.nodes, most.depth, self.top_k, self._paced(measured), known, greedy
            )
        return sizes

    def _paced(self, measured: Costs) -> Costs | Paced:
        return Paced(measured) if self.follows else measured

    def resize(self, known: dict[str, dict[str, Any]]) -> None:
        """Size trees by costs measured before, as `costs` holds them; a captured shape stays as it is."""
        for greedy, name in ((True, "greedy"), (False, "sampled")):
            if name in known and isinstance(size := self.sizes[greedy], BestSize):
                self.costs[name] = known[name]
                self.sizes[greedy] = replace(size, costs=self._paced(Costs.of(known[name])))

    def begin(self, context: Context, scores: Scores) -> None:
        super().begin(context, scores)
        self.trust = Trust()

    def observe(self, step: Step) -> None:
        super().observe(step)
        tree, levels, promised = self.grown
        self.trust = self.trust.after(promised, len(step.accepted.path) - 1)
        size = self.sizes[not step.context.sampler.temperature]
        if levels and step.seconds and isinstance(size, BestSize) and isinstance(size.costs, Paced):
            tokens = len(step.context.tokens) - len(step.accepted.path)
            beside = perf_counter() - self.began - step.seconds
            size.costs.saw(len(tree), levels, tokens, step.seconds, beside)

    @torch.inference_mode()
    def propose(self, context: Context, budget: int) -> Tree:
        self.began, self.grown = perf_counter(), self._grown(context, budget)
        return self.grown.tree

    def _grown(self, context: Context, budget: int) -> Grown:
        if budget < 1:
            return Grown(Tree.root(context.tokens[-1]))
        if self.drafting == "sampled":
            depth = min(self.depth, budget)
            return Grown(
                sampled_tree(self, context, nodes=self.nodes, depth=depth, top_k=self.top_k)
            )
        greedy = not context.sampler.temperature
        coupled = self.drafting == "coupled" and not greedy
        size = self.sizes[greedy].behind(len(context.tokens), self.trust.share)
        return dynamic_tree(
            self, context, size=size, budget=budget, top_k=self.top_k, coupled=coupled
        )

    def _growth(self, target: TransformersTarget, size: FixedSize) -> Growth:
        shape = {"nodes": size.nodes, "depth": size.depth, "top_k": self.top_k}
        coupled = self.drafting == "coupled"
        return Growth(target, self.lean, self.sayable.usual, self.lm_head, coupled=coupled, **shape)

    def _replayed(
        self, target: TransformersTarget, prefixes: Sequence[int]
    ) -> list[tuple[float, float]]:
        """The same as `_seconds` of drafting that is captured; what verifies there belongs to the forward."""

        def seconds(prefix: int, levels: int) -> float:
            prompt = [token % target.config.vocab_size for token in range(7, 7 + prefix)]
            loop = DeviceLoop(target, self._growth(target, FixedSize(MOST_NODES, levels)))
            return costs.best_of(replayed(loop, prompt, Sampler(1.0))[1:], target)[0]

        return [_by_level(seconds(prefix, 1), seconds(prefix, DEEP)) for prefix in prefixes]

    @torch.inference_mode()
    def _seconds(
        self, target: TransformersTarget, greedy: bool, prefixes: Sequence[int]
    ) -> list[tuple[float, float]]:
        """What a round with one level costs beside its forward, after two new tokens behind each of so many, and what a
        further level adds."""
        prompt = [token % target.config.vocab_size for token in range(7, 7 + max(prefixes))]
        longest, *contexts = (
            Context([*prompt[:n], 7], n, Sampler(0.0 if greedy else 1.0))
            for n in (len(prompt), *prefixes)
        )
        self.begin(longest, target.prefill(prompt, LARGEST_TREE))
        self.absorb()
        begun = self.rows.length
        features = self.features[-2:]
        tokens = self.tokens[-2:]
        coupled = self.drafting == "coupled" and not greedy

        def grown(context: Context, levels: int) -> Tree:
            self.rows.length = begun - (longest.position - context.position)
            self.features = features
            self.tokens = tokens
            size = FixedSize(FIXED_NODES, levels)
            return dynamic_tree(
                self, context, size=size, budget=levels, top_k=self.top_k, coupled=coupled
            ).tree

        turns = [
            (context, partial(grown, context, levels))
            for context in contexts
            for levels in (1, DEEP)
        ]
        return list(map(_by_level, *[iter(costs.beside_forward(target, turns, self.verify))] * 2))


def _by_level(one: float, deep: float) -> tuple[float, float]:
    """Seconds with one level and with `DEEP` -> with one, and what each further one adds."""
    return one, max(0.0, deep - one) / (DEEP - 1)


def find_head(folder: str, arm: str, target: TransformersTarget) -> Head:
    """The head a user named, or the one shipped for this arm and target. Raises BenchError where there is none."""
    if folder:
        return load_head(Path(folder).expanduser(), target, arm or None)
    if not arm:
        raise BenchError("an arm needs the head that it is", "-D NAME.head=FOLDER")
    if not (found := shipped(arm, target.name)).is_dir():
        raise BenchError(
            f"no {arm} head is shipped for target '{target.name}'",
            f"`fspad-bench train --decoder {arm} --target {target.name}` makes one for -D {arm}.head=FOLDER",
        )
    return load_head(found, target, arm)

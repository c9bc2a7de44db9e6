"""SWIFT, on-the-fly self-speculative decoding (Xia et al. 2024, arXiv 2410.06916).

The target drafts for itself without some of its attention and MLP sublayers: a skipped sublayer
adds nothing to the residual stream. Which ones is found while decoding.

1. Search: once `context` tokens are generated, another set of sublayers is tried every few steps in
   one parallel forward over a window of the text (`drafts.layer_search`), which reads the target's
   cache of what comes before. The best set drafts.
2. Draft: a chain that follows the most likely token and stops *after* the first whose probability
   is below `stop`. Less likely tokens stand beside each of its nodes as leaves, the more the less
   sure the draft is.
3. Verify by `match`; at T > 0 tokens are ranked with the noise of their position.

The draft writes behind the target's entries and is rolled back; nothing is copied. With
`scope=prompt` a search starts anew with every prompt; with `scope=run` it goes on, and what is
drafted depends on the prompts before. The output depends on neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from math import exp
from typing import Any

from fspad_bench.core.protocols import Context, LayerPlan, Scope, Scores
from fspad_bench.core.tree import Tree
from fspad_bench.drafts.language_model import LanguageModel, inner_layers
from fspad_bench.drafts.layer_search import Effort, LayerSearch, odd_layers
from fspad_bench.drafts.sized import SizedDrafter
from fspad_bench.drafts.trees.levels import coupled, leading_children
from fspad_bench.engine.target import LARGEST_TREE, TransformersTarget
from fspad_bench.util.errors import BenchError

NODES = 24
SURE = (0.95, 0.8, 0.5)
WIDTHS = {True: (3, 5, 8, 10), False: (1, 3, 5, 10)}
"""Children of a node by whether the step is greedy: where the first one's probability is above each
of SURE, and where it is not.
"""


class Swift(SizedDrafter):
    """A chain with leaves, drafted by a part of the target.

    skip            share of the inner layers' sublayers that candidates skip.
    attention, mlp  sets to start from, such as `3,5,8`; empty: every odd layer, both sublayers.
                    Candidates are as large as the sets that are given.
    adapt           whether to search; `interval`: steps from one candidate to the next; `context`:
                    tokens of the window.
    enough, patience, suggest
                    see `drafts.layer_search.Effort`.
    tree            see `SizedDrafter`; empty, it is fixed where `nodes` is given.
    length, stop    of the chain; `leaves`: most children of a node, which greedy steps always have
                    where it is 3 or less; `nodes` of the tree.
    scope           what a search lasts for: `prompt` or `run`.
    """

    def __init__(
        self,
        target: TransformersTarget,
        *,
        skip: float = 0.45,
        attention: str = "",
        mlp: str = "",
        adapt: bool = True,
        interval: int = 4,
        context: int = 32,
        enough: float = 0.95,
        patience: int = 300,
        suggest: int = 25,
        length: int = 8,
        stop: float = 0.8,
        leaves: int = 3,
        nodes: int | None = None,
        tree: str = "",
        scope: Scope = "prompt",
    ) -> None:
        super().__init__(target, tree=tree, size=nodes)
        nodes = NODES if nodes is None else nodes
        self.scope = scope
        check_options(skip, interval, context, length, stop, leaves, nodes)
        layers = target.config.num_hidden_layers
        if not inner_layers(layers):
            raise BenchError(f"{target.name} has one layer, and so none to skip")
        self.first = odd_layers(layers)
        self.size = max(1, int(2 * len(inner_layers(layers)) * skip))
        if attention or mlp:
            self.first = LayerPlan(
                layer_set("attention", attention, target), layer_set("mlp", mlp, target)
            )
            self.size = len(self.first.skip_attention) + len(self.first.skip_mlp)
        target.check_plan(self.first)
        self.adapt = adapt
        self.interval = interval
        self.window = context
        self.length = length
        self.stop = stop
        self.leaves = leaves
        self.nodes = nodes
        self.effort = Effort(suggest=suggest, enough=enough, patience=patience)
        self.search = self._new_search()
        self.draft = LanguageModel(target, target, self.first)

    def settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {
            **super().settings(),
            "first_attention": sorted(self.first.skip_attention),
            "first_mlp": sorted(self.first.skip_mlp),
            "adapt": self.adapt,
            "length": self.length,
            "stop": self.stop,
            "leaves": self.leaves,
            "nodes": self.nodes,
        }
        if self.adapt:
            settings |= asdict(self.effort)
            settings |= {"skipped": self.size, "interval": self.interval, "context": self.window}
            settings |= {"scope": self.scope}
        return settings

    def begin(self, context: Context, scores: Scores) -> None:
        super().begin(context, scores)
        if self.scope == "prompt":
            self.search = self._new_search()
        self.search.move()
        self.start: int | None = None  # of the window
        self.steps = 0
        self.draft.layers = self.search.best
        self.draft.begin()

    def is_asked(self, forwards: Sequence[float], idle: float, asked: float) -> bool:
        """Whether it drafts: while it searches, what it proposes now does not tell what it will."""
        return (self.adapt and self.search.active) or super().is_asked(forwards, idle, asked)

    def candidates(self, context: Context, budget: int) -> Tree:
        levels = min(self.draft.follow(context, budget), self.length)
        if levels < 1:
            return Tree.root(context.tokens[-1])
        if self.adapt and self.search.active:
            self._try_layers(context)
        tree = self._chain(context, levels)
        self.draft.release()
        return tree

    def _chain(self, context: Context, levels: int) -> Tree:
        """Draft the most likely tokens one after the other, with leaves beside them."""
        assert context.sampler is not None
        widths = WIDTHS[context.sampler.greedy]
        ids = self.draft.ids
        tokens = [context.tokens[-1]]
        parents = [-1]
        node = 0
        logits = self.draft.absorb()
        for level in range(levels):
            best = leading_children(logits, ids, context, level, min(self.leaves, len(ids)))
            chance = exp(best.log_q[0])
            room = self.nodes - len(tokens)
            children = best.tokens[: min(width_of(chance, widths), room)]
            parents += [node] * len(children)
            node = len(tokens)
            tokens += children
            if chance < self.stop or level + 1 == levels or len(tokens) == self.nodes:
                break
            logits = self.draft.expand(children[:1], [0])
        return Tree(tokens, parents)

    def _try_layers(self, context: Context) -> None:
        """Let the search take a step, once the text is long enough for a window.

        The window stays until it lies further back than a session can look.
        """
        self.steps += 1
        last = len(context.tokens) - 1 - self.window
        if last < context.prompt_length - 1 or self.steps % self.interval:
            return
        reach = LARGEST_TREE - self.window  # entries over which a session can look back
        score = partial(self._matches, context)
        moves = self.start is not None and len(context.tokens) - 1 - self.start > reach
        if self.start is None or moves:
            self.start = last
            self.search.move()
        if moves:  # however soon the next move is, candidates are tried
            self.search.step(score)
        self.search.step(score)
        if self.search.best != self.draft.layers:
            self.draft.use(self.search.best)
            self.forget_chances()

    def _matches(self, context: Context, layers: LayerPlan) -> float:
        """Return the share of the window's tokens that these layers would have drafted."""
        assert self.start is not None
        start = self.start
        window = context.tokens[start : start + self.window]
        following = context.tokens[start + 1 : start + 1 + self.window]
        logits = self.draft.read_again(window, start, layers)
        ids = self.draft.ids
        first = start + 1 - context.position
        drafted = [coupled(row, ids, context, first + i).argmax() for i, row in enumerate(logits)]
        pairs = zip(drafted, following, strict=True)
        return sum(int(choice) == token for choice, token in pairs) / self.window

    def _new_search(self) -> LayerSearch:
        layers = self.target.config.num_hidden_layers
        return LayerSearch(layers, self.first, self.size, self.effort)


def width_of(chance: float, widths: tuple[int, ...]) -> int:
    """Return how many children a node gets whose first one has this probability."""
    return next((w for bound, w in zip(SURE, widths, strict=False) if chance > bound), widths[-1])


def layer_set(kind: str, text: str, target: TransformersTarget) -> frozenset[int]:
    """Read the layers of an option, such as `3,5,8`. Raises BenchError naming those not there."""
    count = target.config.num_hidden_layers
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if not name.isdecimal() or int(name) >= count]
    if unknown:
        raise BenchError(
            f"swift.{kind}: {target.name} has no layer {', '.join(unknown)}",
            f"its layers are 0 to {count - 1}, separated by commas",
        )
    return frozenset(map(int, names))


def check_options(
    skip: float,
    interval: int,
    context: int,
    length: int,
    stop: float,
    leaves: int,
    nodes: int,
) -> None:
    """Raise BenchError for options out of range."""
    half = LARGEST_TREE // 2
    known = [
        (0 < skip < 1, f"skip={skip:g}", "above 0 and below 1"),
        (interval >= 1, f"interval={interval}", "1 or more"),
        (1 <= context < half, f"context={context}", f"1 to {half - 1}"),
        (length >= 1, f"length={length}", "1 or more"),
        (0 <= stop <= 1, f"stop={stop:g}", "0 to 1"),
        (leaves >= 1, f"leaves={leaves}", "1 or more"),
        (2 <= nodes <= LARGEST_TREE, f"nodes={nodes}", f"2 to {LARGEST_TREE}"),
    ]
    for holds, given, allowed in known:
        if not holds:
            raise BenchError(f"swift.{given} is out of range", f"it is {allowed}")

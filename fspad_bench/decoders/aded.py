"""ADED, adaptive draft-verification (Liu et al. 2024, arXiv 2407.12021): tri-grams that learn.

Written from its description and the constants of its release.

- A table T[w1, w2][w3] holds how strongly w3 follows a pair. It starts as the probabilities of a
  corpus (`table`, built by `train`), twelve successors a pair, or empty.
- Each step adds 0.04, up to 3, to each tri-gram among the last 16 tokens, so that one that stays
  in this window is added again. The values are no probabilities then.
- The draft starts from the last two tokens. `maker=mcts` searches continuations of three tokens in
  150 iterations (`drafts.monte_carlo`), takes the 24 most visited and appends the best successor to
  each. `maker=best_first` needs no search, since T is a known Markov chain: nodes join the tree by
  the highest product of p(w3) = T[w1, w2][w3] / sum T[w1, w2] along their paths, which makes the
  tree of the most expected tokens under the table.

How this one differs from what was published:

- The reward counts the value of the token that follows; the released code looks up the one before,
  so that its reward is almost always 1.
- Of the nodes found, those are proposed that pay on this machine (`drafts.sized`); with a size
  given, all.
- When `nodes` are used up, the least visited paths are left out; the release drops the longest.
- The prompt is learned from too, once (`prompt=false`: its last 16 tokens alone), and by default a
  prompt starts anew; `scope=run` keeps what was learned, as published.
- Output is vanilla's own; the release's sampling is not lossless.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from heapq import heappop, heappush
from typing import Any, Literal

from fspad_bench.core.protocols import Context, Scope, Scores, Step, Target
from fspad_bench.core.tree import Tree
from fspad_bench.drafts.monte_carlo import LENGTH, most_visited
from fspad_bench.drafts.sized import SizedDrafter
from fspad_bench.drafts.sizing.policy import MOST_NODES
from fspad_bench.drafts.trigrams import Trigrams, TrigramTable, load_table
from fspad_bench.engine.session import LARGEST_TREE
from fspad_bench.models.chat import vocabulary_hash
from fspad_bench.util.errors import BenchError
from fspad_bench.util.paths import user_path

WINDOW = 16
FIXED_NODES = 16
ITERATIONS = 150
SENTENCES = 24
DEPTH = LENGTH + 1

Maker = Literal["best_first", "mcts"]
Continuation = tuple[int, ...]


class Aded(SizedDrafter):
    """A tree of up to `nodes`, the root among them, from the tri-grams of `table` and the text.

    `tree`: see `SizedDrafter`; empty, it is fixed where `nodes` is given.
    """

    def __init__(
        self,
        target: Target,
        *,
        table: str = "",
        maker: Maker = "best_first",
        tree: str = "",
        nodes: int | None = None,
        prompt: bool = True,
        scope: Scope = "prompt",
    ) -> None:
        super().__init__(target, tree=tree, size=nodes)
        nodes = self.size_of(nodes, auto=MOST_NODES, fixed=FIXED_NODES)
        if not 2 <= nodes <= LARGEST_TREE:
            raise BenchError(
                f"aded takes 2 <= nodes <= {LARGEST_TREE}, not {nodes}",
                f"the default is nodes={FIXED_NODES}",
            )
        self.table = table_for(table, target) if table else None
        self.trigrams = Trigrams(self.table)
        self.maker = maker
        self.nodes = nodes
        self.prompt = prompt
        self.scope = scope

    def settings(self) -> dict[str, Any]:
        """Return the options, the table by its content."""
        return {
            **super().settings(),
            "maker": self.maker,
            "nodes": self.nodes,
            "prompt": self.prompt,
            "table_sha256": self.table.sha256 if self.table else "",
        }

    def begin(self, context: Context, scores: Scores) -> None:
        super().begin(context, scores)
        if self.scope == "prompt":
            self.trigrams = Trigrams(self.table)
        self.trigrams.learn(context.tokens if self.prompt else context.tokens[-WINDOW:])
        self.known = len(context.tokens)

    def candidates(self, context: Context, budget: int) -> Tree:
        tokens = context.tokens
        depth = min(DEPTH, budget)
        if len(tokens) < 2 or depth < 1:
            return Tree.root(tokens[-1])
        pair = (tokens[-2], tokens[-1])
        if self.maker == "mcts":
            # the same committed tokens give the same draft
            dice = random.Random(context.position << 64 | pair[0] << 32 | pair[1])
            paths = sentences(self.trigrams, pair, dice)
        else:
            paths = best_paths(self.trigrams, pair, self.nodes - 1, depth)
        return trie(tokens[-1], paths, self.nodes, depth)

    def observe(self, step: Step) -> None:
        super().observe(step)
        tokens = step.context.tokens
        new = len(tokens) - self.known
        self.trigrams.learn(tokens[-max(WINDOW, new + 2) :])
        self.known = len(tokens)


def sentences(trigrams: Trigrams, pair: tuple[int, int], dice: random.Random) -> list[Continuation]:
    """Return the most visited paths of a search, each with its best successor appended."""
    paths = []
    for path in most_visited(trigrams.after, pair, dice, ITERATIONS)[:SENTENCES]:
        successors = trigrams.after(*(*pair, *path)[-2:])
        paths.append((*path, successors[0][0]) if successors else path)
    return paths


def best_paths(
    trigrams: Trigrams, pair: tuple[int, int], count: int, depth: int
) -> list[Continuation]:
    """Return the `count` most probable paths of up to `depth` tokens, the most probable first."""
    heap: list[tuple[float, int, Continuation]] = []
    paths: list[Continuation] = [()]
    product = 1.0
    order = 0
    while len(paths) <= count:
        path = paths[-1]
        if len(path) < depth:
            successors = trigrams.after(*(*pair, *path)[-2:])
            total = sum(value for _, value in successors)
            for token, value in successors:
                order += 1
                heappush(heap, (-product * value / total, order, (*path, token)))
        if not heap:
            break
        minus_product, _, best = heappop(heap)
        product = -minus_product
        paths.append(best)
    return paths[1:]


def trie(root: int, paths: Iterable[Continuation], nodes: int, depth: int) -> Tree:
    """Return the tree of several paths, cut at `depth`; the last ones where `nodes` are used up."""
    tokens = [root]
    parents = [-1]
    places: dict[Continuation, int] = {(): 0}
    for path in paths:
        for length in range(1, min(len(path), depth) + 1):
            if path[:length] in places:
                continue
            if len(tokens) == nodes:
                break
            places[path[:length]] = len(tokens)
            tokens.append(path[length - 1])
            parents.append(places[path[: length - 1]])
    return Tree(tokens, parents)


def table_for(folder: str, target: Any) -> TrigramTable:
    """Load a table for a target. Raises BenchError where it is another tokenizer's."""
    tokenizer = getattr(target, "tokenizer", None)
    if tokenizer is None:
        raise BenchError(
            "aded.table needs a target with a tokenizer", "leave table= out: it learns on line"
        )
    loaded = load_table(user_path(folder), vocabulary_hash(tokenizer), target.name)
    size = target.config.vocab_size
    if loaded.tokens.max(initial=0) >= size:
        raise BenchError(
            f"{folder} holds token {loaded.tokens.max()}, and {target.name} has {size}",
            f"build one for it: fspad-bench train --decoder aded --target {target.name}",
        )
    return loaded

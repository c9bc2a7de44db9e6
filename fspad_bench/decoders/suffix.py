"""Suffix decoding: propose what followed the longest suffix of the text that occurred before.

After SAM decoding (Hu et al. 2024, arXiv 2411.10666), which finds that suffix by an automaton, and
SuffixDecoding (Oliaro et al. 2024, arXiv 2411.04975), which drafts as much as is expected to be
accepted. Written from their descriptions; how sure a draft is, is our own estimate:

- After a match of m tokens that occurred n times, c times followed by a token x,
  p(x) = c / (n + d / m), d the option `doubt`. What is left goes to the next shorter suffix that
  occurred elsewhere too, and so on (interpolation in the manner of Witten and Bell), while it is
  enough for a node.
- The expected number of accepted tokens of a tree is the sum over its nodes of the product of p
  along their paths. Best first, nodes are added while that product is at least `least`: a long or a
  frequent match drafts far, a doubtful one little or nothing, and a branch starts where several
  continuations were seen.
- A draft that reaches the end of the text goes on behind the next shorter suffix, so that a loop is
  drafted to its full length.

`scope=run` keeps the outputs of earlier prompts in a second automaton. Of both, the longer match
drafts.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Any, NamedTuple

from fspad_bench.core.protocols import Context, Scope, Scores, Step, Target
from fspad_bench.core.tree import Tree
from fspad_bench.drafts.sized import SizedDrafter
from fspad_bench.drafts.sizing.policy import MOST_NODES
from fspad_bench.drafts.suffix_automaton import NO_MATCH, Match, SuffixAutomaton
from fspad_bench.engine.session import LARGEST_TREE
from fspad_bench.util.errors import BenchError

FIXED_NODES = 12
MOST_REMEMBERED = 200_000  # tokens of earlier outputs, about 1 kB each


class Candidate(NamedTuple):
    """A token that may join the tree; they sort by probability, then the most recent first."""

    minus_probability: float
    minus_latest: int
    order: int
    token: int
    parent: int
    depth: int
    match: Match


class Continuation(NamedTuple):
    """A token after a match, and the longer match that it makes."""

    token: int
    probability: float
    match: Match


class Suffix(SizedDrafter):
    """A tree of up to `nodes`, the root among them, from the longest match of the text's end.

    `tree`: see `SizedDrafter`; empty, it is fixed where `nodes` is given.
    """

    def __init__(
        self,
        target: Target,
        *,
        tree: str = "",
        nodes: int | None = None,
        least: float = 0.2,
        doubt: float = 1.0,
        scope: Scope = "prompt",
    ) -> None:
        super().__init__(target, tree=tree, size=nodes)
        nodes = self.size_of(nodes, auto=MOST_NODES, fixed=FIXED_NODES)
        if not (2 <= nodes <= LARGEST_TREE and 0 < least <= 1 and doubt >= 0):
            raise BenchError(
                f"suffix takes 2 <= nodes <= {LARGEST_TREE}, 0 < least <= 1 and doubt >= 0, "
                f"not {nodes}, {least:g}, {doubt:g}",
                f"the defaults are nodes={FIXED_NODES}, least=0.2, doubt=1",
            )
        self.nodes = nodes
        self.least = least
        self.doubt = doubt
        self.scope = scope
        self.earlier = SuffixAutomaton()
        self.output: list[int] = []

    def settings(self) -> dict[str, Any]:
        return {
            **super().settings(),
            "nodes": self.nodes,
            "least": self.least,
            "doubt": self.doubt,
            "scope": self.scope,
        }

    def begin(self, context: Context, scores: Scores) -> None:
        super().begin(context, scores)
        if self.scope == "run":
            self._remember()
        self.text = SuffixAutomaton()
        self.matched = NO_MATCH  # in the earlier outputs
        self._read(context)

    def candidates(self, context: Context, budget: int) -> Tree:
        match = self.text.repeated_suffix()
        if self.matched.length > match.length:
            return self._tree(self.earlier, self.matched, context.tokens[-1], budget)
        return self._tree(self.text, match, context.tokens[-1], budget)

    def observe(self, step: Step) -> None:
        super().observe(step)
        self._read(step.context)

    def _read(self, context: Context) -> None:
        """Append the tokens that are new since the last call."""
        for token in context.tokens[self.text.size :]:
            self.text.append(token)
            if self.scope == "run":
                self.matched = self.earlier.advance(self.matched, token)
        self.output = context.tokens[context.prompt_length :]

    def _remember(self) -> None:
        """Add the last output to the earlier ones, while there is room."""
        if self.earlier.size + len(self.output) <= MOST_REMEMBERED:
            self.earlier.separate()
            for token in self.output:
                self.earlier.append(token)
        self.output = []

    def _tree(self, source: SuffixAutomaton, match: Match, root: int, budget: int) -> Tree:
        """Return the most probable continuations of a match, best first."""
        tokens = [root]
        parents = [-1]
        heap: list[Candidate] = []
        order = 0
        chosen = Candidate(-1.0, 0, 0, root, -1, 0, match)
        while len(tokens) < self.nodes:
            if chosen.depth < budget:
                for token, p, longer in self._continuations(source, chosen):
                    order += 1
                    latest = source.latest[longer.state]
                    parent = len(tokens) - 1
                    depth = chosen.depth + 1
                    heappush(heap, Candidate(-p, -latest, order, token, parent, depth, longer))
            if not heap:
                break
            chosen = heappop(heap)
            tokens.append(chosen.token)
            parents.append(chosen.parent)
        return Tree(tokens, parents)

    def _continuations(self, source: SuffixAutomaton, node: Candidate) -> list[Continuation]:
        """Return the tokens after a node whose paths are probable enough."""
        mass = -node.minus_probability
        probability: dict[int, float] = {}
        longest: dict[int, Match] = {}
        match = node.match
        while match.length and mass >= self.least:
            follow = source.follow[match.state]
            counts = {token: source.count[longer] for token, longer in follow.items()}
            if counts:
                escape = self.doubt / match.length
                share = mass / (sum(counts.values()) + escape)
                for token, count in counts.items():
                    probability[token] = probability.get(token, 0.0) + share * count
                    longest.setdefault(token, Match(follow[token], match.length + 1))
                mass = share * escape
            match = source.shorter(match)
        return [
            Continuation(token, p, longest[token])
            for token, p in probability.items()
            if p >= self.least
        ]

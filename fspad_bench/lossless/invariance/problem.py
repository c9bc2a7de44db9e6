"""The rows that forwards are asked: tokens behind a prefix, and the company that they get."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from fspad_bench.benchmark.tasks import load, load_card
from fspad_bench.core.tree import Tree
from fspad_bench.engine.session import LARGEST_TREE
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.lossless.invariance.probe import BRANCH, TREE, Company
from fspad_bench.util.errors import BenchError

PREFIX = 200
TASK = "mt_bench"  # whose bundled prompts are the text
PADDING = 5  # slots that a shorter sequence of a batch is filled up with


@dataclass(frozen=True)
class Problem:
    """`prefix`: the tokens before the first row. `chain`: the row's token, and those after it.

    `others`: tokens of rows that are there for company.
    """

    prefix: list[int]
    chain: list[int]
    others: list[int]

    def tree(self, nodes: int) -> Tree:
        """Return a tree over the first row: its root has children, and these have more."""
        dice = random.Random(nodes)
        taken = set()
        tokens = [self.chain[0]]
        parents = [-1]
        while len(tokens) < nodes:
            edge = (dice.randrange(len(tokens)), dice.choice(self.others))
            if edge not in taken:
                taken.add(edge)
                parents.append(edge[0])
                tokens.append(edge[1])
        return Tree(tokens, parents)

    def nodes(self, company: Company) -> tuple[Sequence[int], Sequence[int]]:
        """Return the tokens of a chain, tree or branch, and the parent of each."""
        if company.kind in (TREE, BRANCH):
            tree = self.tree(company.rows)
            return tree.tokens, tree.parents
        return self.chain[: company.rows], range(-1, company.rows - 1)

    def compared(self, company: Company) -> slice:
        """Return which rows of a company are compared."""
        if company.kind == BRANCH:
            node = self.branch(company.rows)[-1]
            return slice(node, node + 1)
        return slice(0, company.compared)

    def branch(self, nodes: int) -> list[int]:
        """Return the path to the deepest node of a tree, the last of equally deep ones."""
        tree = self.tree(nodes)
        node = max(range(nodes), key=lambda node: (tree.depths[node], node))
        path: list[int] = []
        while node >= 0:
            path.insert(0, node)
            node = tree.parents[node]
        return path

    def path(self, nodes: int) -> list[int]:
        """Return the tokens of that path."""
        tree = self.tree(nodes)
        return [tree.tokens[node] for node in self.branch(nodes)]


def problem_for(target: TransformersTarget, prefix: int, sizes: Sequence[int]) -> Problem:
    """Return a problem for a target: text where it has a tokenizer, random tokens without.

    Raises BenchError where prefix and rows do not fit its context, or a tree is too large.
    """
    largest = max(sizes)
    if largest > LARGEST_TREE:
        raise BenchError(f"{largest} rows are too many", f"a tree has at most {LARGEST_TREE} nodes")
    total = prefix + largest
    if total + PADDING > target.max_length:
        raise BenchError(
            f"a prefix of {prefix} tokens and {largest} rows exceed the context of "
            f"{target.max_length}",
            "lower --prefix or --rows",
        )
    tokens = _tokens(target, total)
    dice = random.Random(7)
    others = [dice.randrange(target.config.vocab_size) for _ in range(2 * LARGEST_TREE)]
    return Problem(tokens[:prefix], tokens[prefix:], others)


def _tokens(target: TransformersTarget, count: int) -> list[int]:
    if target.tokenizer is None:
        dice = random.Random(count)
        return [dice.randrange(target.config.vocab_size) for _ in range(count)]
    questions = load(load_card(TASK), "bundled", None).questions
    text = "\n\n".join(question.turns[0] for question in questions)
    tokens: list[int] = target.tokenizer.encode(text, add_special_tokens=False)
    return (tokens * (count // len(tokens) + 1))[:count]

"""A graph's unrolled tree equals one that a plain search over the same scripted draft makes."""

import random

import pytest
import torch

from fspad_bench.core.protocols import Context
from fspad_bench.core.sampling import Sampler
from fspad_bench.drafts.trees.graph import Child, Graph, GraphShape, draft_graph
from fspad_bench.lossless.scripted import scripted_logits

VOCABULARY = 5


class ScriptedLevels:
    """A draft whose logits are a hash of the last two tokens of a path, so that branches repeat."""

    def __init__(self, context, salt):
        self.ids = torch.arange(VOCABULARY)
        self.text = list(context.tokens)
        self.salt = salt
        self.expanded = 0

    def logits(self, path):
        text = [*self.text, *path]
        return scripted_logits(VOCABULARY, self.salt, bytes(text[-2:])).clone()

    def absorb(self):
        self.paths = [[]]
        return self.logits([])[None]

    def expand(self, tokens, rows):
        self.paths = [[*self.paths[row], token] for row, token in zip(rows, tokens, strict=True)]
        self.expanded += len(tokens)
        return torch.stack([self.logits(path) for path in self.paths])


class Plain:
    """A node of the plain search: its path, whether it is a leaf, and the nodes it leads to."""

    def __init__(self, path, leaf, level):
        self.path = path
        self.leaf = leaf
        self.level = level
        self.children = []
        self.merged = []

    def leads_to(self, other):
        if self is other:
            return True
        return any(node.leads_to(other) for node in self.children + self.merged)


def plain_graph(draft, context, shape, budget):
    """Compare each child with every node before it, and search the graph for cycles."""
    root = Plain([], False, -1)
    nodes = [root]
    frontier = [root]
    sampler = context.sampler
    for level in range(min(budget, shape.length)):
        new = []
        for father in frontier:
            z = draft.logits(father.path)
            z = z + sampler.temperature * sampler.noise(context.position + level, draft.ids)
            chances = z.softmax(-1)
            order = sorted(range(VOCABULARY), key=lambda token: -chances[token])
            for token in order[: shape.n_tree]:
                if chances[token] < shape.sibling_threshold * chances[order[0]]:
                    continue
                path = [*father.path, token]
                alike = [
                    node
                    for node in nodes[1:]
                    if shape.repeat >= 0
                    and ending(context, node.path, shape) == ending(context, path, shape)
                    and (sampler.greedy or node.level == level)
                    and not node.leads_to(father)
                ]
                if alike:
                    father.merged.append(alike[0])
                elif len(nodes) < shape.nodes:
                    leaf = father.leaf or bool(chances[token] < shape.prob_threshold)
                    node = Plain(path, leaf, level)
                    father.children.append(node)
                    nodes.append(node)
                    new.append(node)
        frontier = new
        if all(node.leaf for node in new):
            break
    return root, len(nodes)


def ending(context, path, shape):
    return [*context.tokens, *path][-(shape.repeat + 1) :]


def plain_unrolled(root, depth, nodes):
    """The paths of the unrolled tree in their order, breadth first."""
    paths = [()]
    level = [((), root)]
    for _ in range(depth):
        below = []
        for path, node in level:
            for child in node.children + node.merged:
                if len(paths) < nodes:
                    below.append(((*path, child.path[-1]), child))
                    paths.append(below[-1][0])
        level = below
    return paths


def paths_in_order(tree):
    paths = [()]
    for node in range(1, len(tree)):
        paths.append((*paths[tree.parents[node]], tree.tokens[node]))
    return paths


def drawn_shape(dice):
    return GraphShape(
        n_tree=dice.choice([1, 2, 3, 4, 9]),
        repeat=dice.choice([-1, 0, 0, 1, 1, 2]),
        prob_threshold=dice.choice([0.0, 0.1, 0.3]),
        sibling_threshold=dice.choice([0.0, 0.2, 0.5]),
        length=dice.randrange(1, 6),
        nodes=dice.choice([2, 6, 20, 60]),
    )


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("seed", range(4))
def test_random_graphs_equal_a_plain_search(seed, temperature):
    dice = random.Random(seed)
    merged = 0
    for number in range(60):
        tokens = [dice.randrange(VOCABULARY) for _ in range(3)]
        context = Context(tokens, 3, Sampler(temperature, seed=number))
        shape = drawn_shape(dice)
        budget = dice.randrange(1, 8)
        depth = dice.randrange(1, 9)
        graph = draft_graph(ScriptedLevels(context, number), context, shape, budget)
        root, count = plain_graph(ScriptedLevels(context, number), context, shape, budget)
        tree = graph.unrolled(depth)
        assert len(graph.nodes) == count
        assert paths_in_order(tree) == plain_unrolled(root, depth, shape.nodes)
        assert len(tree) <= shape.nodes
        assert max(tree.depths) <= depth
        merged += sum(len(node.merged) for node in graph.nodes)
    assert merged > 10


def context_of(tokens):
    return Context(tokens, len(tokens), Sampler())


def test_a_repeated_run_is_drafted_once():
    """Where single tokens are compared, a draft over few tokens has few nodes to expand."""
    shape = GraphShape(3, 0, 0.0, 0.0, 4, 128)
    context = context_of([0, 1])
    merging = ScriptedLevels(context, 3)
    graph = draft_graph(merging, context, shape, 4)
    never = ScriptedLevels(context, 3)
    tree = draft_graph(never, context, GraphShape(3, -1, 0.0, 0.0, 4, 128), 4)
    assert merging.expanded < never.expanded
    assert not any(node.merged for node in tree.nodes)
    assert sum(len(node.merged) for node in graph.nodes) > 3


def test_a_node_may_lead_to_several():
    """An edge does not take the place of another."""
    graph = Graph(context_of([0]), GraphShape(3, 0, 0.0, 0.0, 4, 128))
    graph.add(child(0, 1), 0)
    graph.add(child(0, 2), 0)
    graph.add(child(0, 3), 0)
    assert graph.add(child(3, 1), 1) is None
    assert graph.add(child(3, 2), 1) is None
    assert graph.nodes[3].merged == [1, 2]
    assert paths_in_order(graph.unrolled(2)) == [(), (1,), (2,), (3,), (3, 1), (3, 2)]


def test_no_edge_closes_a_cycle():
    """Neither to an ancestor, nor over another edge."""
    graph = Graph(context_of([0]), GraphShape(3, 0, 0.0, 0.0, 9, 128))
    graph.add(child(0, 1), 0)
    graph.add(child(0, 2), 0)
    assert graph.add(child(1, 2), 1) is None  # 1 -> 2
    assert graph.add(child(2, 1), 1) == 3  # 2 -> 1 would lead back
    assert graph.add(child(3, 2), 2) == 4  # so would 3 -> 2, an ancestor
    assert graph.nodes[2].children == [3]
    assert len(graph.unrolled(9)) == 8


def test_a_chain_and_a_tree_are_graphs_too():
    context = context_of([2, 4])
    chain = draft_graph(
        ScriptedLevels(context, 1), context, GraphShape(1, -1, 0.0, 0.0, 5, 128), 9
    ).unrolled(9)
    assert list(chain.parents) == [-1, 0, 1, 2, 3, 4]
    tree = draft_graph(
        ScriptedLevels(context, 1), context, GraphShape(2, -1, 0.0, 0.0, 3, 128), 9
    ).unrolled(9)
    assert [len(children) for children in tree.offspring] == [2] * 7 + [0] * 8


def child(node, token):

    return Child(node, token, 0.9)

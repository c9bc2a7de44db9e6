"""The bits of a tree against a naive walk of its parents, and the trees that must be refused."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from doubles import random_tree

from fspad_bench.core.tree import AcceptedPath, Tree
from fspad_bench.lossless.scripted import line_of

SIZES = [1, 2, 3, 7, 31, 63, 64, 65, 66, 100, 127, 128]


@pytest.fixture(
    params=[(nodes, reach) for nodes in SIZES for reach in (1, 3, 128)],
    ids=lambda p: f"{p[0]}-{p[1]}",
)
def tree(request):
    nodes, reach = request.param
    return random_tree(random.Random(f"{nodes} {reach}"), nodes, vocabulary=300, reach=reach)


@pytest.mark.sampled(4)
def test_bits_are_the_ancestors(tree):
    words = (len(tree) + 63) // 64
    assert tree.bits.shape == (len(tree), words)
    assert tree.bits.dtype == torch.int64
    for node in range(len(tree)):
        seen = [j for j in range(64 * words) if int(tree.bits[node, j // 64] >> (j % 64)) & 1]
        assert seen == line_of(tree, node)
        assert tree.ancestry[node] == sum(1 << j for j in seen)


@pytest.mark.sampled(4)
def test_visible_is_the_bits_as_a_mask(tree):
    visible = tree.visible()
    assert visible.dtype == torch.bool
    assert [row.nonzero().flatten().tolist() for row in visible] == [
        line_of(tree, i) for i in range(len(tree))
    ]


@pytest.mark.sampled(4)
def test_depths_and_children(tree):
    assert tree.depths == [len(line_of(tree, node)) - 1 for node in range(len(tree))]
    assert len(tree.children) == len(tree) - 1
    for node in range(1, len(tree)):
        assert tree.children[tree.parents[node], tree.tokens[node]] == node


def test_bit_63_is_the_sign():
    chain = Tree.chain(0, range(1, 70))
    assert int(chain.bits[62, 0]) == 2**63 - 1
    assert chain.bits[63].tolist() == [-1, 0]
    assert chain.bits[64].tolist() == [-1, 1]


def test_root_and_chain():
    assert len(Tree.root(5)) == 1
    assert Tree.root(5).depths == [0]
    assert Tree.root(5).visible().tolist() == [[True]]
    assert Tree.chain(5, []) == Tree((5,), range(-1, 0))
    assert list(Tree.chain(5, [6, 6, 6]).parents) == [-1, 0, 1, 2]
    assert Tree.chain(5, [6, 6, 6]).visible().equal(torch.ones(4, 4).tril().bool())


def test_from_paths_shares_prefixes():
    tree = Tree.from_paths(9, [[1, 2, 3], [1, 2, 4], [2], [1], [], [2, 1]])
    lines = {tuple(tree.tokens[i] for i in line_of(tree, node)) for node in range(len(tree))}
    assert lines == {(9,), (9, 1), (9, 1, 2), (9, 1, 2, 3), (9, 1, 2, 4), (9, 2), (9, 2, 1)}
    assert len(tree) == len(lines)


def test_from_paths_holds_exactly_the_prefixes_of_random_paths():
    rng = random.Random(0)
    for _ in range(50):
        paths = [
            [rng.randrange(3) for _ in range(rng.randrange(6))] for _ in range(rng.randrange(8))
        ]
        tree = Tree.from_paths(7, paths)
        lines = [
            tuple(tree.tokens[i] for i in line_of(tree, node))[1:] for node in range(len(tree))
        ]
        assert sorted(lines) == sorted(
            {tuple(path[:n]) for path in paths for n in range(len(path) + 1)} | {()}
        )


def test_the_same_token_may_follow_different_parents():
    assert Tree([1, 1, 1], [-1, 0, 1]).children == {(0, 1): 1, (1, 1): 2}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("seed", range(20))
def test_a_step_decides_on_the_children_of_the_nodes_that_both_trees_have(seed):
    dice = random.Random(seed)
    one, other = (
        Tree.from_paths(
            7, [[dice.randrange(3) for _ in range(dice.randint(1, 4))] for _ in range(6)]
        )
        for _ in range(2)
    )

    def path(tree, node):
        return [tree.tokens[own] for own in line_of(tree, node)[1:]]

    reached = [path(other, node) for node in range(len(other))]
    expected = [node for node in range(1, len(one)) if path(one, node)[:-1] in reached]
    assert one.decided_by(other) == expected
    assert one.decided_by(one) == list(range(1, len(one)))


def test_an_accepted_path_knows_its_place_in_the_tree():
    """Below the root stand a, b, c; below b d and e; below e f."""
    parents = (-1, 0, 0, 2, 0, 2, 5)
    path = AcceptedPath(parents, (0, 2, 5))
    assert (path.depth, path.ranks, path.refused) == (3, [1, 1], 1)
    assert AcceptedPath(parents, (0,)).refused == 3
    assert AcceptedPath(parents, (0, 2, 5, 6)) == (parents, (0, 2, 5, 6))
    assert AcceptedPath(parents, (0, 2, 5, 6)).refused == 0
    root = AcceptedPath((-1,), (0,))
    assert (root.depth, root.ranks, root.refused) == (0, [], 0)


@pytest.mark.parametrize("kind", [lambda values: torch.tensor(values), np.array])
def test_whole_numbers_of_other_libraries_are_tokens(kind):
    chain = Tree.chain(kind([9])[0], kind([5, 6]))
    assert [list(chain.tokens), list(chain.parents)] == [[9, 5, 6], [-1, 0, 1]]
    assert chain.followed([5, 6, 7]) == [1, 2]
    assert Tree(list(kind([9, 5, 6])), list(kind([-1, 0, 0]))).children == {(0, 5): 1, (0, 6): 2}
    paths = Tree.from_paths(9, [kind([5, 6]), kind([5, 7])])
    assert [list(paths.tokens), list(paths.parents)] == [[9, 5, 6, 7], [-1, 0, 1, 1]]
    with pytest.raises(ValueError, match="two siblings"):
        Tree(list(kind([9, 5, 5])), [-1, 0, 0])


def test_a_token_that_is_no_whole_number_is_refused():
    with pytest.raises(TypeError):
        Tree.chain(9, [5.0])


def test_equality_ignores_q():
    assert Tree([1, 2], [-1, 0], q=torch.ones(2, 3)) == Tree([1, 2], [-1, 0])


@pytest.mark.parametrize(
    ("tokens", "parents"),
    [
        ([], []),
        ([1], []),
        ([1, 2], [-1]),
        ([1], [0]),
        ([1, 2], [-1, -1]),
        ([1, 2], [-1, 1]),
        ([1, 2, 3], [-1, 2, 0]),
        ([1, 2, 2], [-1, 0, 0]),
        ([1, 2, 3, 4, 4], [-1, 0, 1, 2, 2]),
    ],
)
def test_invalid_trees_are_refused(tokens, parents):
    with pytest.raises(ValueError, match=r"tree|parent|sibling"):
        Tree(tokens, parents)

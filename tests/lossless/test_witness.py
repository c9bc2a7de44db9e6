"""What a check must have seen before it may pass."""

from collections import Counter
from types import SimpleNamespace

import pytest

from fspad_bench.core.loop import Context, Step
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import Accepted
from fspad_bench.lossless.witness import Sights, Witness

CHAIN = Tree.chain(5, [6, 7, 8])
SHORT = Tree.chain(5, [6])
BUSH = Tree.from_paths(5, [[6, 7], [8]])


def saw(*rounds):
    """The sights of rounds (tree, path, budget), the bonus token 9 behind each path."""
    sights, tokens = Sights(now="x"), [5]
    for tree, path, budget in rounds:
        witness = Witness(
            SimpleNamespace(propose=lambda *_, tree=tree: tree, observe=lambda _: None), sights
        )
        context = Context(list(tokens), 1)
        witness.propose(context, budget)
        context.tokens += [tree.tokens[node] for node in path[1:]] + [9]
        witness.observe(Step(context, tree, None, Accepted(path, 9)))
    return sights


EVERYTHING = [(CHAIN, [0], 9), (CHAIN, [0, 1], 9), (CHAIN, [0, 1, 2, 3], 9), (BUSH, [0, 3], 1)]


def complaints(rounds, **more):
    sights = saw(*rounds)
    sights.stopped_inside = True
    for name, value in more.items():
        setattr(sights, name, value)
    return sights.missing()


def test_all_of_it_is_enough():
    assert complaints(EVERYTHING) == []


@pytest.mark.parametrize(
    ("rounds", "more", "complaint"),
    [
        ([(Tree.root(5), [0], 9)], {}, "nothing was ever drafted"),
        (EVERYTHING[1:], {}, "no draft was ever refused at once"),
        ([(Tree.root(5), [0], 9), *EVERYTHING[1:]], {}, "no draft was ever refused at once"),
        (
            [*EVERYTHING[:2], EVERYTHING[3]],
            {},
            "no draft was accepted to the full depth of its tree",
        ),
        (
            [*EVERYTHING[:2], (SHORT, [0, 1], 9), EVERYTHING[3]],
            {},
            "no draft was accepted to the full depth of its tree",
        ),
        (
            [EVERYTHING[0], EVERYTHING[2], EVERYTHING[3]],
            {"in_part": False},
            "no draft was accepted in part",
        ),
        ([*EVERYTHING[:3], (BUSH, [0], 1)], {}, "no accepted row had to move"),
        (EVERYTHING, {"stopped_inside": False}, "no stop fell inside an accepted run"),
        ([*EVERYTHING[:3], (BUSH, [0, 3], 9)], {}, "no last tree was cut short"),
    ],
)
def test_each_thing_that_never_happened_is_named(rounds, more, complaint):
    assert complaints(rounds, **more) == [complaint]


def test_a_leaf_reached_because_the_room_ended_there_is_no_full_depth():
    cut = Tree.chain(5, [6, 7])
    assert saw((CHAIN, [0], 9), (cut, [0, 1, 2], 2)).whole == 0
    assert saw((CHAIN, [0], 9), (cut, [0, 1, 2], 3)).whole == 2
    assert saw((CHAIN, [0, 1, 2, 3], 3)).whole == 3


def test_a_path_that_ends_inside_its_tree_is_a_part():
    assert saw((CHAIN, [0, 1], 9)).in_part
    assert not saw((CHAIN, [0], 9), (CHAIN, [0, 1, 2, 3], 9)).in_part
    assert saw((CHAIN, [0, 1], 9)).accepted == Counter({1: 1})

"""The cases that must have occurred before a check may pass."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from fspad_bench.core.protocols import Context, Step, as_drafter
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import Accepted
from fspad_bench.lossless.witness import Observations, Witness

CHAIN = Tree.chain(5, [6, 7, 8])
SHORT = Tree.chain(5, [6])
BUSH = Tree.from_paths(5, [[6, 7], [8]])


def observed(*steps):
    """Return the observations of steps (tree, path, budget), each with the bonus token 9."""
    observations = Observations(current="x")
    tokens = [5]
    for tree, path, budget in steps:
        drafter = SimpleNamespace(propose=lambda *_, tree=tree: tree, observe=lambda _: None)
        witness = Witness(as_drafter(drafter), observations)
        context = Context(list(tokens), 1)
        witness.propose(context, budget)
        context.tokens += [tree.tokens[node] for node in path[1:]] + [9]
        witness.observe(Step(context, tree, None, Accepted(path, 9)))
    return observations


EVERYTHING = [(CHAIN, [0], 9), (CHAIN, [0, 1], 9), (CHAIN, [0, 1, 2, 3], 9), (BUSH, [0, 3], 1)]


def complaints(steps, **changes):
    observations = observed(*steps)
    observations.stopped_inside = True
    for name, value in changes.items():
        setattr(observations, name, value)
    return observations.missing()


def test_all_of_it_is_enough():
    assert complaints(EVERYTHING) == []


@pytest.mark.parametrize(
    ("steps", "changes", "complaint"),
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
        ([*EVERYTHING[:3], (BUSH, [0], 1)], {}, "no accepted entry had to move"),
        (EVERYTHING, {"stopped_inside": False}, "no stop fell inside an accepted path"),
        ([*EVERYTHING[:3], (BUSH, [0, 3], 9)], {}, "no last tree was cut short"),
    ],
)
def test_each_case_that_never_occurred_is_named(steps, changes, complaint):
    assert complaints(steps, **changes) == [complaint]


def test_a_leaf_reached_because_the_room_ended_there_is_no_full_depth():
    cut = Tree.chain(5, [6, 7])
    assert observed((CHAIN, [0], 9), (cut, [0, 1, 2], 2)).whole == 0
    assert observed((CHAIN, [0], 9), (cut, [0, 1, 2], 3)).whole == 2
    assert observed((CHAIN, [0, 1, 2, 3], 3)).whole == 3


def test_a_path_that_ends_inside_its_tree_is_a_part():
    assert observed((CHAIN, [0, 1], 9)).in_part
    assert not observed((CHAIN, [0], 9), (CHAIN, [0, 1, 2, 3], 9)).in_part
    assert observed((CHAIN, [0, 1], 9)).accepted == Counter({1: 1})


@pytest.mark.parametrize("draws", [True, False])
def test_drawn_children_are_recorded_on_request(draws):
    tree = Tree([5, 6, 7], [-1, 0, 0], torch.full((3, 9), 1 / 9))
    drafter = as_drafter(SimpleNamespace(propose=lambda *_: tree, observe=lambda _: None))
    observations = Observations()
    Witness(drafter, observations, draws=draws).propose(Context([5], 1), 2)
    assert len(observations.draws) == 2 * draws

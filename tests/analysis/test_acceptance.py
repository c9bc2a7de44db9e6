"""Acceptance by depth, rank and place, held to steps counted on paper."""

from dataclasses import replace

import pytest
from small import DRAFTED, PLAIN, before_schema_4

from fspad_bench.analysis.acceptance import Position, acceptance


def test_by_depth_only_what_was_offered_counts():
    """The first step's draft ended at its second level: nothing was refused at the third."""
    depths = acceptance([DRAFTED]).depths
    assert [tuple(depth) for depth in depths] == [(1, 3, 3), (2, 3, 2), (3, 1, 0)]
    assert [depth.rate for depth in depths] == [1, pytest.approx(2 / 3), 0]


def test_by_rank_each_accepted_token_counts():
    assert acceptance([DRAFTED, DRAFTED]).ranks == [6, 4]


def test_the_histogram_counts_committed_tokens():
    assert acceptance([DRAFTED]).committed == [0, 1, 2]


def test_old_records_give_lower_bounds():
    """Each draft is thought to reach as deep as it has nodes; the last step may have been cut."""
    old = acceptance([before_schema_4(DRAFTED)])
    assert not old.is_exact
    assert old.ranks is None
    assert [tuple(depth) for depth in old.depths] == [(1, 3, 3), (2, 3, 2)]
    chain = replace(before_schema_4(DRAFTED), committed=[1, 2, 5], drafted=[0, 3, 4])
    assert [tuple(d) for d in acceptance([chain]).depths] == [
        (1, 2, 2),
        (2, 2, 1),
        (3, 1, 1),
        (4, 1, 1),
    ]


def test_what_never_drafts_needs_no_trees():
    plain = acceptance([PLAIN])
    assert plain.is_exact
    assert (plain.depths, plain.ranks, plain.committed) == ([], [], [8])


def test_a_step_belongs_to_the_place_of_its_first_token():
    """Token 1 is the prefill's; the steps begin with tokens 2, 32, 33, 64 and 65."""
    long = replace(PLAIN, committed=[30, 1, 31, 1, 64])
    assert acceptance([long]).positions == [
        Position(1, 32, 2, 31),
        Position(33, 64, 2, 32),
        Position(65, 128, 1, 64),
    ]
    assert acceptance([replace(PLAIN, committed=[126, 1])]).positions[1] == Position(65, 128, 1, 1)
    assert acceptance([replace(PLAIN, committed=[127, 1])]).positions[1] == Position(129, 256, 1, 1)


def test_no_generation_has_no_figures():
    nothing = acceptance([])
    assert (nothing.depths, nothing.positions, nothing.committed) == ([], [], [])

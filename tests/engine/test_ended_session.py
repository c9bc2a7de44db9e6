"""Sessions that have ended: their caches serve the next, whoever failed in them."""

import pytest
from doubles import random_target

from fspad_bench.core.protocols import LayerPlan
from fspad_bench.engine.session import LARGEST_TREE

PROMPT = [5, 9, 1, 30, 30, 2, 17]


def test_the_cache_of_an_ended_session_serves_the_next():
    target = random_target("llama")
    with target.session(30) as first:
        first.prefill(PROMPT)
        entries = first.cache.entries
    with target.session(20) as second:
        assert second.cache.entries is entries
        with target.session(20) as beside:
            assert beside.cache.entries is not entries
    with target.session(200) as wide:
        assert wide.cache.slots >= 200 + LARGEST_TREE


def test_a_drafter_that_failed_while_it_drafted_leaves_the_cache_to_others():
    """Its own session, which shares the target's entries, is never closed."""
    target = random_target("llama")
    layers = LayerPlan(skip_mlp=frozenset([0]))
    with pytest.raises(ZeroDivisionError), target.session(30) as first:
        first.prefill(PROMPT)
        sharing = target.session(0, layers=layers, share=first)
        sharing.extend([1, 2], [-1, 0])
        raise ZeroDivisionError
    with target.session(30) as second:
        second.prefill(PROMPT)
        second.extend([1], [-1])
        sharing.close()
        second.commit([0])
        assert second.length == len(PROMPT) + 1


def test_a_session_that_is_closed_twice_gives_its_cache_once():
    target = random_target("llama")
    first = target.session(20)
    first.close()
    with target.session(20) as second:
        first.close()
        with target.session(20) as third:
            assert third.cache is not second.cache

"""A sharing session that looks back goes on from an earlier token, and leaves the later ones."""

import random

import pytest
import torch
from doubles import ARCHITECTURES, VOCABULARY, random_target, random_tree

from fspad_bench.core.protocols import LayerPlan
from fspad_bench.engine import gpu
from fspad_bench.engine.session import LARGEST_TREE
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.models.tiny import tiny_model
from fspad_bench.util.errors import BenchError

PROMPT = [5, 9, 1, 30, 30, 2, 17]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("count", [1, 3, 6])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_tree_is_scored_as_behind_the_shorter_prefix(name, count):
    """At once and in parts; the target's own entries stay, and nothing is pending afterwards."""
    target = random_target(name)
    tree = random_tree(random.Random(name), 12, VOCABULARY)
    with target.session(40) as main, target.session(0, share=main) as draft:
        main.prefill(PROMPT)
        before = main.cache.entries[..., : len(PROMPT), :].clone()
        draft.look_back(count)
        assert draft.length == len(PROMPT) - count
        parts = [draft.extend(tree.tokens[:5], tree.parents[:5]).logits]
        parts.append(draft.extend(tree.tokens[5:], tree.parents[5:]).logits)
        draft.look_back(0)
        assert torch.equal(main.cache.entries[..., : len(PROMPT), :], before)
        assert (draft.length, draft.pending, main.length) == (len(PROMPT), 0, len(PROMPT))
        main.score(tree)
    with target.session(40) as own:
        own.prefill(PROMPT[:-count])
        torch.testing.assert_close(torch.cat(parts), own.score(tree).logits, rtol=0, atol=1e-9)


def test_kernels_see_the_same(monkeypatch):
    """By the reference of the GPU's kernels, with part of the layers."""
    plan = LayerPlan(frozenset({1}))
    logits = {}
    for name in ("host", "reference"):
        monkeypatch.setenv(gpu.VARIABLE, name)
        target = TransformersTarget(tiny_model().float(), None)
        with target.session(90) as main, target.session(0, layers=plan, share=main) as draft:
            main.prefill(list(range(80)))
            draft.look_back(66)
            logits[name] = draft.extend(list(range(14, 40)), range(-1, 25)).logits
    torch.testing.assert_close(logits["reference"], logits["host"], rtol=0, atol=1e-4)


def test_the_hidden_entries_count_as_pending_ones():
    target = random_target("llama")
    with target.session(120) as main, target.session(0, share=main) as draft:
        main.prefill([3] * 110)
        draft.look_back(100)
        draft.extend([1] * (LARGEST_TREE - 100), [-1] * (LARGEST_TREE - 100))
        with pytest.raises(BenchError, match="a tree of 129 nodes is too large"):
            draft.extend([1], [-1])


def test_what_cannot_look_back_is_refused():
    target = random_target("llama")
    with target.session(20) as main, target.session(0, share=main) as draft:
        main.prefill(PROMPT)
        with pytest.raises(RuntimeError, match="only a sharing session"):
            main.look_back(1)
        for count in (-1, len(PROMPT) + 1):
            with pytest.raises(ValueError, match="cannot look back"):
                draft.look_back(count)

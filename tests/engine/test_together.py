"""Trees of several sessions in one forward: each gets the scores of a forward of its own."""

import pytest
import torch
from compiled import needs_compiler
from doubles import WIDE, WIDTHS, random_target

from fspad_bench.core.protocols import LayerPlan
from fspad_bench.core.tree import Tree
from fspad_bench.engine import gpu, together
from fspad_bench.engine.gpu.backend import KernelAttention
from fspad_bench.engine.together import groups, keeps_bits
from fspad_bench.models.load import load_target
from fspad_bench.util.errors import BenchError

PROMPTS = [list(range(n % 7, n % 7 + n)) for n in (3, 29, 11, 17, 5, 40)]
DTYPES = (torch.float32, torch.bfloat16)


def opened(target, capture=()):
    sessions = [target.session(len(prompt) + 9, capture=capture) for prompt in PROMPTS]
    for session, prompt in zip(sessions, PROMPTS, strict=True):
        session.prefill(prompt)
    return sessions


def compared(target, trees, capture=()):
    """Return pairs of tensors: what came of the trees together, and of each alone."""
    before = target.forwards
    sessions = opened(target, capture)
    scored = target.score_together(sessions, trees)
    alone = opened(target, capture)
    pairs = []
    for session, own, tree, scores in zip(sessions, alone, trees, scored, strict=True):
        expected = own.score(tree)
        written = slice(0, session.length + len(tree))
        pairs += zip(scores, expected, strict=True)
        pairs.append((session.cache.entries[..., written, :], own.cache.entries[..., written, :]))
    return pairs, target.forwards - before - 2 * len(PROMPTS) - len(trees)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral-window", "gemma3"])
def test_the_compiled_step_gives_each_session_its_own_bits(name, dtype, grown):
    target = random_target(name, dtype, **{**WIDE, **WIDTHS[name]})
    assert keeps_bits(target)
    trees = [grown(nodes, seed) for seed, nodes in enumerate([1, 12, 7, 30, 2, 1])]
    pairs, forwards = compared(target, trees)
    assert all(torch.equal(*pair) for pair in pairs)
    assert forwards == 1


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_more_rows_than_the_compiled_step_takes_are_several_forwards(dtype, grown):
    target = random_target("llama", dtype, **{**WIDE, **WIDTHS["llama"]})
    trees = [grown(50, seed) for seed in range(len(PROMPTS))]
    pairs, forwards = compared(target, trees, capture=(0, 1, 2))
    assert all(torch.equal(*pair) for pair in pairs)
    assert forwards == 3  # of two trees each


def test_torch_gives_each_session_its_own_scores_up_to_rounding(tiny, grown):
    assert not keeps_bits(tiny)
    trees = [grown(nodes, seed) for seed, nodes in enumerate([1, 12, 7, 60, 60, 60])]
    pairs, forwards = compared(tiny, trees)
    for ours, alone in pairs:
        torch.testing.assert_close(ours, alone, rtol=0, atol=1e-9)
    assert forwards == 1


def test_kernels_give_each_session_its_own_scores(monkeypatch, grown):
    monkeypatch.setenv(gpu.VARIABLE, "reference")
    target = load_target("tiny")
    assert isinstance(target.attention, KernelAttention)
    trees = [grown(nodes, seed) for seed, nodes in enumerate([1, 12, 7, 30, 2, 1])]
    pairs, forwards = compared(target, trees)
    for ours, alone in pairs:
        torch.testing.assert_close(ours, alone, rtol=0, atol=1e-9)
    assert forwards == 1


def test_sessions_go_on_by_themselves_after_a_forward_together(tiny, grown):
    sessions = opened(tiny)
    trees = [Tree.chain(prompt[0], [5, 6]) for prompt in PROMPTS]
    scored = tiny.score_together(sessions, trees)
    for kept, (session, prompt) in enumerate(zip(sessions, PROMPTS, strict=True)):
        path = list(range(kept % 3 + 1))
        session.commit(path)
        whole = tiny.session(64)
        expected = whole.prefill([*prompt, *(trees[kept].tokens[node] for node in path)])
        last = scored[kept].logits[path[-1:]]
        torch.testing.assert_close(last, expected.logits, rtol=0, atol=1e-9)
        after = session.extend([7], [-1]).logits
        torch.testing.assert_close(after, whole.extend([7], [-1]).logits, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([5], [[5]]),
        ([4, 4, 4], [[4, 4], [4]]),
        ([8, 1, 7], [[8], [1, 7]]),
        ([9, 1], [[9], [1]]),
    ],
)
def test_groups_hold_whole_trees(sizes, expected):
    assert [sizes[group] for group in groups(sizes, 8)] == expected


def test_sessions_that_cannot_share_a_forward_are_refused(tiny, grown):
    one, other, *_ = opened(tiny)
    trees = [grown(2), grown(2)]
    capturing = opened(tiny, capture=(1,))[0]
    with pytest.raises(ValueError, match="same layers"):
        tiny.score_together([one, capturing], trees)
    skipping = tiny.session(20, layers=LayerPlan(frozenset([1])))
    with pytest.raises(ValueError, match="same layers"):
        tiny.score_together([one, skipping], trees)
    with pytest.raises(ValueError, match="caches of their own"):
        tiny.score_together([one, one], trees)
    other.extend([3], [-1])
    with pytest.raises(RuntimeError, match="committed or rolled back"):
        tiny.score_together([one, other], trees)


def test_a_target_of_the_stock_forward_is_refused_by_name():
    target = random_target("not fused")
    with pytest.raises(BenchError, match="stock forward, which takes one request"):
        together.check_shares(target)

"""Attention against a plain soft-max, backend by backend, and in whole models against eager."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
from doubles import ARCHITECTURES, VOCABULARY, random_model, random_tree

from fspad_bench.core.tree import Tree
from fspad_bench.engine import gpu, stock
from fspad_bench.engine.attention import (
    HeadShape,
    Pending,
    TorchAttention,
    additive_mask,
    attention,
    rotate,
)
from fspad_bench.engine.cache import KVCache
from fspad_bench.engine.gpu.backend import KernelAttention
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.lossless.reference import windowed_masks

CPU = torch.device("cpu")


def plain(query, key, value, visible, scaling):
    """Return softmax(scaling Q K^T) V over the entries that `visible` `[N, L]` names."""
    groups = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(groups, 1)
    value = value.repeat_interleave(groups, 1)
    scores = (query @ key.mT * scaling).masked_fill(~visible, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2)


def random_heads(heads, kv_heads, rows, length, dim=8):
    generator = torch.Generator().manual_seed(heads * 100 + rows)
    shapes = [(1, heads, rows, dim), (1, kv_heads, length, dim), (1, kv_heads, length, dim)]
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]


def additive(visible):
    if isinstance(visible, dict):
        return {kind: additive(mask) for kind, mask in visible.items()}
    return torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, float("-inf"))


def pending_of(tree, prefix):
    return Pending(prefix, tree.ancestry, len(tree))


@pytest.mark.parametrize("scaling", [None, 0.125, 1.0])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1), (1, 1)])
class TestFunction:
    def check(self, query, key, value, visible, scaling, masks):
        out, weights = stock.tree_attention(
            SimpleNamespace(), query, key, value, None, scaling=scaling, tree_masks=masks
        )
        assert weights is None
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        expected = plain(query, key, value, visible, scale)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)

    def test_one_query_attends_to_everything(self, heads, kv_heads, scaling):
        visible = torch.ones(1, 9, dtype=torch.bool)
        self.check(*random_heads(heads, kv_heads, 1, 9), visible, scaling, None)

    def test_a_prefill_is_causal(self, heads, kv_heads, scaling):
        visible = torch.ones(7, 7).tril().bool()
        self.check(*random_heads(heads, kv_heads, 7, 7), visible, scaling, None)

    @pytest.mark.sampled(4)
    @pytest.mark.parametrize("nodes", [2, 3, 20, 70])
    @pytest.mark.parametrize("prefix", [0, 1, 11])
    def test_a_node_attends_to_the_prefix_and_its_path(
        self, heads, kv_heads, scaling, prefix, nodes
    ):
        tree = random_tree(random.Random(nodes), nodes, vocabulary=99)
        visible = torch.cat([torch.ones(nodes, prefix, dtype=torch.bool), tree.visible()], dim=1)
        mask = additive_mask(pending_of(tree, prefix), heads // kv_heads, torch.float64, CPU)
        every = random_heads(heads, kv_heads, nodes, prefix + nodes)
        self.check(*every, visible, scaling, {None: mask})


def test_causal_attention_over_earlier_keys_is_refused():
    query, key, value = random_heads(4, 2, 3, 9)
    with pytest.raises(ValueError, match="causal attention of 3 queries over 9 keys"):
        attention(query, key, value, causal=True)


class TestMask:
    def test_a_single_node_needs_none(self):
        assert additive_mask(pending_of(Tree.root(1), 5), 2, torch.float32, CPU) is None

    def test_is_zero_where_a_node_attends_and_repeats_for_every_group(self):
        tree = Tree([1, 2, 3], [-1, 0, 0])
        mask = additive_mask(pending_of(tree, 2), 2, torch.bfloat16, CPU)
        hidden = float("-inf")
        rows = [[0, 0, 0, hidden, hidden], [0, 0, 0, 0, hidden], [0, 0, 0, hidden, 0]]
        assert mask.tolist() == rows + rows
        assert mask.dtype == torch.bfloat16

    @pytest.mark.parametrize("new", [1, 2, 69])
    def test_new_entries_have_the_last_rows_of_the_whole(self, new):
        tree = random_tree(random.Random(3), 70, vocabulary=99)
        whole = additive_mask(pending_of(tree, 4), 1, torch.float64, CPU)
        part = Pending(4, tree.ancestry, new)
        assert part.start == 4 + 70 - new
        assert additive_mask(part, 1, torch.float64, CPU).equal(whole[-new:])


def backend_of(name, shape):
    if name == "torch":
        return TorchAttention(shape)
    return KernelAttention(shape, gpu.chosen(CPU))


@pytest.mark.parametrize("name", ["torch", "reference"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
class TestBackends:
    DIM = 8
    window = None

    def problem(self, heads, kv_heads, prefix, nodes, name, monkeypatch):
        """Return a backend, a cache with a prefix, and projections and angles of new entries."""
        monkeypatch.setenv(gpu.VARIABLE, "reference")
        shape = HeadShape(heads, kv_heads, self.DIM, 0.3, (None, self.window))
        generator = torch.Generator().manual_seed(heads + nodes)

        def some(*sizes):
            return torch.randn(*sizes, dtype=torch.float64, generator=generator)

        cache = KVCache([CPU] * 2, kv_heads, prefix + nodes + 3, self.DIM, torch.float64)
        cache.entries[...] = some(*cache.entries.shape)
        angles = some(nodes, self.DIM // 2)
        sin = torch.cat([-angles.sin(), angles.sin()], dim=1)
        rope = torch.stack([angles.cos().repeat(1, 2), sin])
        return backend_of(name, shape), cache, some(nodes, heads + 2 * kv_heads, self.DIM), rope

    def expected(self, backend, cache, projections, rope, prefix, visible):
        shape = backend.shape
        heads = shape.heads
        kv_heads = shape.kv_heads
        q, k, v = projections.transpose(0, 1).split([heads, kv_heads, kv_heads])
        keys = torch.cat([cache.keys[1][:, :prefix], rotate(k, rope)], dim=1)
        values = torch.cat([cache.values[1][:, :prefix], v], dim=1)
        seen = plain(rotate(q, rope)[None], keys[None], values[None], visible, shape.scaling)
        return seen[0].flatten(1), keys, values

    def check(self, backend, cache, attend, projections, rope, prefix, visible):
        expected, keys, values = self.expected(backend, cache, projections, rope, prefix, visible)
        before = cache.entries.clone()
        seen = attend(1, projections, rope)
        torch.testing.assert_close(seen, expected, rtol=0, atol=1e-12)
        end = keys.shape[1]
        torch.testing.assert_close(cache.keys[1][:, :end], keys, rtol=0, atol=1e-12)
        torch.testing.assert_close(cache.values[1][:, :end], values, rtol=0, atol=0)
        assert cache.entries[0].equal(before[0])  # the other layer
        assert cache.entries[1][..., end:, :].equal(before[1][..., end:, :])

    def seen(self, prefix, tree):
        """Return which entries a tree's nodes see through the window, `[N, prefix + N]`."""
        visible = torch.cat(
            [torch.ones(len(tree), prefix, dtype=torch.bool), tree.visible()], dim=1
        )
        for row in visible if self.window else ():
            row[row.nonzero()[: -self.window]] = False  # of its path, all but the last
        return visible

    @pytest.mark.parametrize("count", [1, 7, 600])
    def test_a_prefill_is_causal(self, heads, kv_heads, name, count, monkeypatch):
        problem = self.problem(heads, kv_heads, 0, count, name, monkeypatch)
        backend, cache, projections, rope = problem
        visible = self.seen(0, Tree.chain(1, [1] * (count - 1)))
        attend = backend.prefill(cache, count)
        self.check(backend, cache, attend, projections, rope, 0, visible)

    @pytest.mark.parametrize("nodes", [1, 2, 70])
    @pytest.mark.parametrize("prefix", [1, 11])
    def test_a_tree(self, heads, kv_heads, name, prefix, nodes, monkeypatch):
        problem = self.problem(heads, kv_heads, prefix, nodes, name, monkeypatch)
        backend, cache, projections, rope = problem
        tree = random_tree(random.Random(nodes), nodes, vocabulary=99, reach=5)
        visible = self.seen(prefix, tree)
        attend = backend.tree(cache, pending_of(tree, prefix))
        self.check(backend, cache, attend, projections, rope, prefix, visible)

    @pytest.mark.parametrize("first", [1, 5, 66])
    def test_a_tree_in_two_parts(self, heads, kv_heads, name, first, monkeypatch):
        prefix = 11
        nodes = 70
        problem = self.problem(heads, kv_heads, prefix, nodes, name, monkeypatch)
        backend, cache, projections, rope = problem
        tree = random_tree(random.Random(first), nodes, vocabulary=99, reach=5)
        visible = self.seen(prefix, tree)

        def attend(layer, projections, rope):
            parts = []
            for start, end in ((0, first), (first, nodes)):
                part = Pending(prefix, tree.ancestry[:end], end - start)
                parts.append(
                    backend.tree(cache, part)(layer, projections[start:end], rope[:, start:end])
                )
            return torch.cat(parts)

        self.check(backend, cache, attend, projections, rope, prefix, visible)


class TestNarrowBackends(TestBackends):
    """The same where a query sees its last positions only: less than a tree is deep."""

    window = 4


class TestWideBackends(TestBackends):
    """The same with a window that ends in the prefix of some nodes and covers that of others."""

    window = 13


def test_what_lies_before_the_window_is_not_read():
    """A step through a window costs no more behind a longer prefix."""
    shape = HeadShape(2, 1, 8, 0.3, (6,))
    pending = pending_of(Tree([1, 2, 3], [-1, 0, 1]), 50)
    assert pending.first_slot(6) == 45
    assert additive_mask(pending, 1, torch.float64, CPU, 6, 45).shape == (3, 8)
    cache = KVCache([CPU], 1, 60, 8, torch.float64)
    cache.entries[..., :45, :] = torch.nan
    rope = torch.zeros(2, 3, 8, dtype=torch.float64)
    seen = TorchAttention(shape).tree(cache, pending)(0, torch.randn(3, 4, 8).double(), rope)
    assert seen.isfinite().all()


@pytest.mark.parametrize(("stock_attention", "tolerance"), [("sdpa", 1e-9), ("eager", 1e-5)])
@pytest.mark.parametrize("name", [*ARCHITECTURES, "not fused"])
@torch.inference_mode()
def test_a_tree_equals_the_stock_model_with_a_4d_mask(name, stock_attention, tolerance):
    """Eager attention computes its soft-max in float32, whatever the model's dtype."""
    options = {}
    rng = random.Random(name)
    if name == "not fused":
        name = "llama"
        options = {"hidden_act": "gelu"}
    model = random_model(name, **options)
    target = TransformersTarget(random_model(name, **options), None)
    assert target.forward_name == ("stock" if options else "fused, stock")
    model.set_attn_implementation(stock_attention)
    assert model.config._attn_implementation == stock_attention
    assert target.config._attn_implementation == stock.ATTENTION
    for prefix, nodes in ((1, 1), (1, 2), (9, 24), (17, 128)):
        prompt = [rng.randrange(VOCABULARY) for _ in range(prefix)]
        tree = random_tree(rng, nodes, VOCABULARY)
        with target.session(prefix + 8) as session:
            first = session.prefill(prompt)
            scores = session.score(tree)
        visible = torch.ones(prefix + nodes, prefix + nodes).tril().bool()
        visible[prefix:, prefix:] = tree.visible()
        positions = [*range(prefix), *(prefix + depth for depth in tree.depths)]
        masks = windowed_masks(model, visible, positions)
        added = (
            {kind: additive(mask) for kind, mask in masks.items()}
            if isinstance(masks, dict)
            else additive(masks)
        )
        out = model(
            input_ids=torch.tensor([prompt + list(tree.tokens)]),
            position_ids=torch.tensor([positions]),
            attention_mask=added,
            output_hidden_states=True,
        )
        logits = out.logits[0]
        features = out.hidden_states[-1][0]
        for ours, expected in (
            (first.logits[0], logits[prefix - 1]),
            (scores.logits, logits[prefix:]),
            (first.features, features[:prefix]),
            (scores.features, features[prefix:]),
        ):
            torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance)

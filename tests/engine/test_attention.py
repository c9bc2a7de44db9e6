"""The attention function alone against a plain soft-max over repeated keys, and in whole models against eager."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
from doubles import ARCHITECTURES, VOCABULARY, random_model, random_tree

from fspad_bench.core.tree import Tree
from fspad_bench.engine.attention import NAME, mask_of, tree_attention
from fspad_bench.engine.target import TransformersTarget

CPU = torch.device("cpu")


def plain(query, key, value, visible, scaling):
    """softmax(scaling Q K^T) V over the rows that `visible` `[N, L]` names; every head has its keys repeated."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = (query @ key.mT * scaling).masked_fill(~visible, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2)


def random_heads(heads, kv_heads, rows, length, dim=8):
    generator = torch.Generator().manual_seed(heads * 100 + rows)
    shapes = [(1, heads, rows, dim), (1, kv_heads, length, dim), (1, kv_heads, length, dim)]
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]


@pytest.mark.parametrize("scaling", [None, 0.125, 1.0])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1), (1, 1)])
class TestFunction:
    def held(self, query, key, value, visible, scaling, mask):
        out, weights = tree_attention(
            SimpleNamespace(), query, key, value, None, scaling=scaling, tree_mask=mask
        )
        assert weights is None
        expected = plain(
            query, key, value, visible, query.shape[-1] ** -0.5 if scaling is None else scaling
        )
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)

    def test_one_row_sees_everything(self, heads, kv_heads, scaling):
        self.held(
            *random_heads(heads, kv_heads, 1, 9), torch.ones(1, 9, dtype=torch.bool), scaling, None
        )

    def test_a_prefill_is_causal(self, heads, kv_heads, scaling):
        self.held(
            *random_heads(heads, kv_heads, 7, 7), torch.ones(7, 7).tril().bool(), scaling, None
        )

    @pytest.mark.parametrize("nodes", [2, 3, 20, 70])
    @pytest.mark.parametrize("prefix", [0, 1, 11])
    def test_a_node_sees_the_prefix_and_its_line(self, heads, kv_heads, scaling, prefix, nodes):
        tree = random_tree(random.Random(nodes), nodes, vocabulary=99)
        visible = torch.cat([torch.ones(nodes, prefix, dtype=torch.bool), tree.visible()], dim=1)
        mask = mask_of(tree, prefix, heads // kv_heads, dtype=torch.float64, device=CPU)
        self.held(*random_heads(heads, kv_heads, nodes, prefix + nodes), visible, scaling, mask)


def test_a_single_node_needs_no_mask():
    assert mask_of(Tree.root(1), 5, 2, dtype=torch.float32, device=CPU) is None


def test_a_mask_is_zero_where_a_node_sees_and_repeats_for_every_group():
    tree = Tree([1, 2, 3], [-1, 0, 0])
    mask = mask_of(tree, 2, 2, dtype=torch.bfloat16, device=CPU)
    hidden = float("-inf")
    rows = [[0, 0, 0, hidden, hidden], [0, 0, 0, 0, hidden], [0, 0, 0, hidden, 0]]
    assert mask.tolist() == rows + rows
    assert mask.dtype == torch.bfloat16


@pytest.mark.parametrize(("stock_attention", "tolerance"), [("sdpa", 1e-9), ("eager", 1e-5)])
@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.inference_mode()
def test_a_tree_equals_the_stock_model_with_a_4d_mask(name, stock_attention, tolerance):
    """Eager attention takes its soft-max in float32 whatever the model's dtype."""
    stock, target, rng = (
        random_model(name),
        TransformersTarget(random_model(name), None),
        random.Random(name),
    )
    stock.set_attn_implementation(stock_attention)
    assert stock.config._attn_implementation == stock_attention
    assert target.config._attn_implementation == NAME
    for prefix, nodes in ((1, 1), (1, 2), (9, 24), (17, 128)):
        prompt = [rng.randrange(VOCABULARY) for _ in range(prefix)]
        tree = random_tree(rng, nodes, VOCABULARY)
        first, scores = target.prefill(prompt, 8), target.score(tree)
        seen = torch.ones(prefix + nodes, prefix + nodes).tril().bool()
        seen[prefix:, prefix:] = tree.visible()
        out = stock(
            input_ids=torch.tensor([prompt + list(tree.tokens)]),
            position_ids=torch.tensor(
                [[*range(prefix), *(prefix + depth for depth in tree.depths)]]
            ),
            attention_mask=torch.zeros(seen.shape, dtype=torch.float64).masked_fill(
                ~seen, float("-inf")
            )[None, None],
            output_hidden_states=True,
        )
        torch.testing.assert_close(
            first.logits[0], out.logits[0, prefix - 1], rtol=0, atol=tolerance
        )
        torch.testing.assert_close(scores.logits, out.logits[0, prefix:], rtol=0, atol=tolerance)
        torch.testing.assert_close(
            first.features, out.hidden_states[-1][0, :prefix], rtol=0, atol=tolerance
        )
        torch.testing.assert_close(
            scores.features, out.hidden_states[-1][0, prefix:], rtol=0, atol=tolerance
        )

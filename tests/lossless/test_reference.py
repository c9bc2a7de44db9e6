"""The slow references: trees in one forward are paths one by one; NaN is no small error."""

import math
import random

import pytest
import torch

from fspad_bench.core.tree import Tree
from fspad_bench.lossless import engines
from fspad_bench.lossless.checks import worst_of
from fspad_bench.lossless.reference import (
    Reference,
    attend,
    bushy_tree,
    path_to,
    relative_error,
)

PREFIX = [5, 90, 17, 3, 3]


def test_trees_in_one_forward_are_plain_forwards_of_their_paths(tiny):
    """Of three trees side by side, every node's logits are those of its path alone."""
    dice = random.Random(1)
    trees = [bushy_tree(dice, nodes, 97) for nodes in (1, 9, 20)]
    reference = Reference(tiny)
    with torch.inference_mode():
        for tree, logits in zip(trees, reference.logits(PREFIX, trees), strict=True):
            for node in range(0, len(tree), 4):
                ids = [*PREFIX, *(tree.tokens[other] for other in path_to(tree, node))]
                alone = reference.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
                torch.testing.assert_close(logits[node], alone[-1], rtol=0, atol=1e-9)


def test_a_twin_shares_copy_and_logits(tiny):
    reference = Reference(tiny, keep=True)
    on_kernels = engines.tiny_on_kernels()
    assert reference.serves(on_kernels)
    twin = Reference(on_kernels, keep=True, twin=reference)
    tree = Tree.chain(5, [6])
    assert twin.model is reference.model
    assert twin.logits(PREFIX, [tree]) is reference.logits(PREFIX, [tree])


def test_other_weights_are_no_twins(tiny):
    other = engines.tiny_on_kernels()
    with torch.no_grad():
        other.model.base_model.norm.weight[0] += 1e-6
    assert not Reference(tiny).serves(other)
    assert not Reference(tiny).serves(engines.wide_target(torch.float32))


def test_attention_of_a_chain_is_torchs_causal_attention():
    generator = torch.Generator().manual_seed(2)
    query = torch.randn(4, 6, 8, generator=generator, dtype=torch.float64)
    keys, values = torch.randn(2, 3, 9, 8, generator=generator, dtype=torch.float64)
    ours = attend(query, keys, values, Tree.chain(0, [1, 2, 3]), 5, 0.3)
    mask = torch.ones(4, 9, dtype=torch.bool).tril(5)
    right = torch.nn.functional.scaled_dot_product_attention(
        query.transpose(0, 1),
        keys.repeat_interleave(2, 0),
        values.repeat_interleave(2, 0),
        attn_mask=mask,
        scale=0.3,
    )
    torch.testing.assert_close(ours, right.transpose(0, 1).flatten(1))


@pytest.mark.parametrize("nodes", [1, 2, 16, 17, 64, 128])
def test_a_bushy_tree_has_its_size_and_depth(nodes):
    tree = bushy_tree(random.Random(nodes), nodes, 97)
    assert (len(tree), max(tree.depths)) == (nodes, min(16, nodes - 1))


def test_an_error_that_is_not_a_number_is_infinite():
    assert max(0.0, math.nan) == 0.0  # what a largest difference cannot see
    assert worst_of([0.0, math.nan]) == worst_of([math.nan, 1.0]) == math.inf
    assert worst_of([]) == 0.0
    spoiled = torch.tensor([1.0, math.nan])
    assert relative_error(spoiled, torch.ones(2)) == math.inf
    assert relative_error(torch.ones(2), spoiled) == math.inf

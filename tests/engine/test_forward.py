"""The fused forward equals the stock one, for every architecture and plan, over the same memory."""

from __future__ import annotations

import random

import pytest
import torch
from doubles import ARCHITECTURES, VOCABULARY, random_model, random_tree

from fspad_bench.core.protocols import ALL, LayerPlan
from fspad_bench.engine.attention import Pending, TorchAttention
from fspad_bench.engine.cache import KVCache
from fspad_bench.engine.forward import FusedForward
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.models.tiny import tiny_model
from fspad_bench.util.errors import BenchError

CPU = torch.device("cpu")
BOUND = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.15}
PROMPT = [5, 9, 1, 30, 30, 2, 17]
LAYERS = 4
PLANS = {
    "all": ALL,
    "an attention": LayerPlan(skip_attention=frozenset([1])),
    "an MLP": LayerPlan(skip_mlp=frozenset([2])),
    "a layer": LayerPlan(frozenset([1]), frozenset([1])),
    "the first layer": LayerPlan(frozenset([0]), frozenset([0])),
    "the last layer": LayerPlan(frozenset([3]), frozenset([3])),
    "attentions in a row": LayerPlan(skip_attention=frozenset([1, 2])),
    "every other sublayer": LayerPlan(frozenset([0, 2]), frozenset([1, 3])),
    "all attentions": LayerPlan(skip_attention=frozenset(range(LAYERS))),
    "all MLPs": LayerPlan(skip_mlp=frozenset(range(LAYERS))),
    "everything": LayerPlan(frozenset(range(LAYERS)), frozenset(range(LAYERS))),
}


def stock(model, tokens):
    with torch.inference_mode():
        return model.base_model(
            input_ids=torch.tensor([tokens]), use_cache=False
        ).last_hidden_state[0]


def empty_cache(model, forward, slots=256):
    shape = forward.shape
    devices = [CPU] * model.config.num_hidden_layers
    return KVCache(devices, shape.kv_heads, slots, shape.dim, forward.embedding.dtype)


@torch.inference_mode()
def fused(model, prompt, tree=None, plan=ALL, capture=()):
    """Return features and captured states of the prompt or, with a tree, of its nodes after it."""
    forward = FusedForward(model)
    cache = empty_cache(model, forward)
    attention = TorchAttention(forward.shape)
    attend = attention.prefill(cache, len(prompt))
    rope = forward.rope.of(range(len(prompt)))
    result = forward(torch.tensor(prompt), rope, attend, plan, capture)
    if tree is None:
        return result
    attend = attention.tree(cache, Pending(len(prompt), tree.ancestry, len(tree)))
    rope = forward.rope.of([len(prompt) + depth for depth in tree.depths])
    return forward(torch.tensor(tree.tokens), rope, attend, plan, capture)


def without_sublayers(model, plan):
    """Let the stock model's sublayers that a plan skips add nothing."""

    def no_attention(hidden_states, **_):
        return torch.zeros_like(hidden_states), None

    for number, layer in enumerate(model.base_model.layers):
        if number in plan.skip_attention:
            layer.self_attn.forward = no_attention
        if number in plan.skip_mlp:
            layer.mlp.forward = torch.zeros_like
    return model


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_prefill_equals_the_stock_forward(name, dtype):
    expected = stock(random_model(name, dtype), PROMPT)
    features, _ = fused(random_model(name, dtype), PROMPT)
    torch.testing.assert_close(features, expected, rtol=0, atol=BOUND[dtype])


@pytest.mark.sampled(4)
@pytest.mark.parametrize("nodes", [1, 2, 9, 40])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_tree_equals_its_paths(name, nodes):
    tree = random_tree(random.Random(nodes), nodes, VOCABULARY, reach=5)
    model = random_model(name)
    features, _ = fused(random_model(name), PROMPT, tree)
    for node in range(nodes):
        path = [tree.tokens[i] for i in range(nodes) if tree.ancestry[node] >> i & 1]
        expected = stock(model, PROMPT + path)[-1]
        torch.testing.assert_close(features[node], expected, rtol=0, atol=1e-9)


def test_the_tiny_model_is_fused_too():
    features, _ = fused(tiny_model(), PROMPT)
    torch.testing.assert_close(features, stock(tiny_model(), PROMPT), rtol=0, atol=1e-9)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", ["llama-multi-head", "qwen3"])
def test_a_plan_equals_the_stock_model_without_its_skipped_sublayers(name, plan):
    skipping = PLANS[plan]
    model = without_sublayers(random_model(name, num_hidden_layers=LAYERS), skipping)
    features, _ = fused(random_model(name, num_hidden_layers=LAYERS), PROMPT, plan=skipping)
    torch.testing.assert_close(features, stock(model, PROMPT), rtol=0, atol=1e-9)


@pytest.mark.parametrize("plan", PLANS)
def test_a_tree_on_a_plan_equals_its_paths(plan):
    tree = random_tree(random.Random(plan), 9, VOCABULARY, reach=4)
    model = random_model("llama", num_hidden_layers=LAYERS)
    features, _ = fused(model, PROMPT, tree, PLANS[plan])
    for node in range(len(tree)):
        path = [tree.tokens[i] for i in range(len(tree)) if tree.ancestry[node] >> i & 1]
        expected, _ = fused(model, PROMPT + path, plan=PLANS[plan])
        torch.testing.assert_close(features[node], expected[-1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("capture", [(0,), (4,), (1, 3), (3, 1), (0, 1, 2, 3, 4)], ids=str)
def test_captured_states_are_those_of_transformers(capture):
    model = random_model("llama", num_hidden_layers=LAYERS)
    with torch.inference_mode():
        out = model.base_model(
            input_ids=torch.tensor([PROMPT]), use_cache=False, output_hidden_states=True
        )
    copy = random_model("llama", num_hidden_layers=LAYERS)
    features, captured = fused(copy, PROMPT, capture=capture)
    torch.testing.assert_close(features, out.last_hidden_state[0], rtol=0, atol=1e-9)
    assert len(captured) == len(capture)
    for state, index in zip(captured, capture, strict=True):
        torch.testing.assert_close(state, out.hidden_states[index][0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["llama-multi-head", "qwen2", "qwen3"])
def test_weights_are_held_once_and_the_stock_forward_is_unchanged(name):
    model = random_model(name)
    before = stock(model, PROMPT)
    count = sum(p.numel() for p in model.parameters())
    forward = FusedForward(model)
    assert torch.equal(stock(model, PROMPT), before)
    storages = {
        p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()
    }
    assert sum(storages.values()) == count * 8
    for layer, ours in zip(model.base_model.layers, forward.layers, strict=True):
        assert ours.qkv.weight.data_ptr() == layer.self_attn.q_proj.weight.data_ptr()


def test_a_plans_chain_is_built_once():
    forward = FusedForward(random_model("llama"))
    plan = LayerPlan(skip_mlp=frozenset([0]))
    assert forward.chain(plan) is forward.chain(LayerPlan(skip_mlp=frozenset([0])))
    assert forward.chain(plan) is not forward.chain(ALL)


@pytest.fixture
def rotary():
    """Return a rotary table, and the cosines and sines of transformers at positions."""
    model = random_model("llama", max_position_embeddings=4096)
    table = FusedForward(model).rope

    def expected(positions):
        return model.base_model.rotary_emb(model.lm_head.weight, torch.tensor([positions]))

    return table, expected


@pytest.mark.parametrize(
    "positions",
    [[0], [1020], [1024], [2100], [3, 4, 5], [5, 6, 6, 7], [5, 5, 7], [5, 7, 6], [6, 5], [7, 5, 9]],
    ids=str,
)
@torch.inference_mode()
def test_rotary_rows_are_those_of_the_positions_in_any_order(rotary, positions):
    table, expected = rotary
    cos, sin = expected(positions)
    rope = table.of(positions)
    torch.testing.assert_close(rope[0], cos[0], rtol=0, atol=0)
    torch.testing.assert_close(rope[1].abs(), sin[0].abs(), rtol=0, atol=0)
    half = sin.shape[-1] // 2
    assert torch.equal(rope[1][:, :half], -sin[0][:, :half])


@torch.inference_mode()
def test_the_rotary_table_grows_with_the_sequence(rotary):
    table, _ = rotary
    for end in (1020, 1024, 2100):
        assert table.below(end).shape[1] >= end
    grown = table.below(2100)
    assert table.below(7) is grown


def test_other_arithmetic_does_not_fit():
    model = random_model("llama")
    assert FusedForward.fits(model)
    model.config.hidden_act = "gelu"
    assert not FusedForward.fits(model)
    other = random_model("llama")
    other.base_model.layers[0].mlp.up_proj.__class__ = type("Packed", (torch.nn.Linear,), {})
    assert not FusedForward.fits(other)
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        wrapped = random_model("llama")  # by an adapter: its weight is the base's
        layer = wrapped.base_model.layers[1]
        part, product = (layer.get_submodule(n) for n in (name.split(".")[0], name))
        adapter = torch.nn.Module()
        adapter.base_layer = product
        adapter.weight = product.weight
        setattr(part, name.split(".")[1], adapter)
        assert not FusedForward.fits(wrapped)
    head = random_model("llama")
    head.lm_head.__class__ = type("Packed", (torch.nn.Linear,), {})
    with pytest.raises(BenchError, match="its LM head is a Packed, not one product"):
        TransformersTarget(head, None)
    mixed = random_model("llama")
    mixed.base_model.norm.to(torch.float32)
    assert not FusedForward.fits(mixed)

"""The lean forward is the stock one: every architecture, one row, a tree, a prefill, and the same memory."""

import random

import pytest
import torch
from doubles import ARCHITECTURES, VOCABULARY, random_model, random_tree

from fspad_bench.engine.attention import mask_of
from fspad_bench.engine.cache import TreeCache
from fspad_bench.engine.forward import LeanForward
from fspad_bench.engine.target import attend_cached
from fspad_bench.models.tiny import tiny_model

BOUND = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.15}
PROMPT = [5, 9, 1, 30, 30, 2, 17]


def stock(model, tokens):
    with torch.inference_mode():
        return model.base_model(
            input_ids=torch.tensor([tokens]), use_cache=False
        ).last_hidden_state[0]


def lean(model, prompt, tree=None):
    """Features of the prompt, then of a tree behind it."""
    forward, cache = LeanForward(model), TreeCache(model.config.num_hidden_layers, 256)
    with torch.inference_mode():
        first = forward(
            torch.tensor(prompt),
            forward.rope(range(len(prompt))),
            forward.rotating(attend_cached(cache, None)),
        )
        if tree is None:
            return first
        groups = model.config.num_attention_heads // model.config.num_key_value_heads
        dtype = model.get_input_embeddings().weight.dtype
        mask = mask_of(tree, len(prompt), groups, dtype=dtype, device=torch.device("cpu"))
        rope = forward.rope([len(prompt) + depth for depth in tree.depths])
        return forward(
            torch.tensor(tree.tokens), rope, forward.rotating(attend_cached(cache, mask))
        )


@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_prefill_equals_the_stock_forward(name, dtype):
    expected = stock(random_model(name, dtype), PROMPT)
    torch.testing.assert_close(
        lean(random_model(name, dtype), PROMPT), expected, rtol=0, atol=BOUND[dtype]
    )


@pytest.mark.parametrize("nodes", [1, 2, 9, 40])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_tree_equals_its_paths(name, nodes):
    tree = random_tree(random.Random(nodes), nodes, VOCABULARY, reach=5)
    model = random_model(name)
    found = lean(random_model(name), PROMPT, tree)
    for node in range(nodes):
        path = [tree.tokens[i] for i in range(nodes) if tree.ancestry[node] >> i & 1]
        torch.testing.assert_close(found[node], stock(model, PROMPT + path)[-1], rtol=0, atol=1e-9)


def test_tiny_too():
    torch.testing.assert_close(
        lean(tiny_model(), PROMPT), stock(tiny_model(), PROMPT), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("name", ["llama-multi-head", "qwen2", "qwen3"])
def test_nothing_is_held_twice_and_the_stock_forward_is_unharmed(name):
    model = random_model(name)
    before, held = stock(model, PROMPT), sum(p.numel() for p in model.parameters())
    forward = LeanForward(model)
    assert torch.equal(stock(model, PROMPT), before)
    storages = {
        p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()
    }
    assert sum(storages.values()) == held * 8
    for layer, ours in zip(model.base_model.layers, forward.layers, strict=True):
        assert ours.qkv.weight.data_ptr() == layer.self_attn.q_proj.weight.data_ptr()


def test_the_rotary_table_grows_where_a_sequence_outgrows_it():
    model = random_model("llama", max_position_embeddings=4096)
    forward, cache = LeanForward(model), TreeCache(2, 4)
    far = [1020, 1024, 2100]
    with torch.inference_mode():
        for position in far:
            cache.clear()
            table = forward.rope([position])
            cos, sin = model.base_model.rotary_emb(model.lm_head.weight, torch.tensor([[position]]))
            torch.testing.assert_close(table[0], cos[0], rtol=0, atol=0)
            torch.testing.assert_close(table[1].abs(), sin[0].abs(), rtol=0, atol=0)


def test_what_is_not_this_arithmetic_does_not_fit():
    model = random_model("llama")
    assert LeanForward.fits(model)
    model.config.hidden_act = "gelu"
    assert not LeanForward.fits(model)
    other = random_model("llama")
    other.base_model.layers[0].mlp.up_proj.__class__ = type("Packed", (torch.nn.Linear,), {})
    assert not LeanForward.fits(other)

"""Decoders over targets with sliding windows: texts and trees longer than the windows change
nothing.
"""

import pytest
import torch
from doubles import WINDOWED, random_model
from recording import vanilla_tokens

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.build import build_decoder
from fspad_bench.drafts.head import Head
from fspad_bench.drafts.network import architecture
from fspad_bench.engine import gpu
from fspad_bench.engine.stock import greedy_settings
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.util.errors import BenchError

LAYERS = {"num_hidden_layers": 4}
STOCK = {  # another activation: transformers' own forward over our cache
    "mistral-window, stock": {"hidden_act": "gelu"},
    "qwen2-window, stock": {"hidden_act": "gelu"},
    "gemma3, stock": {"hidden_activation": "gelu"},
}
PROMPT = [5, 6, 7, 8, 9] * 4
LIMIT = Limit(24)
GREEDY = Sampler()
SAMPLED = Sampler(1.0, seed=3)
OPTIONS = {
    "prompt_lookup": {"shortest": 1},
    "swift": {"skip": 0.3, "stop": 0.3, "interval": 1, "context": 8},
}
FREE = [
    ("prompt_lookup", GREEDY),
    ("prompt_lookup", SAMPLED),
    ("token_recycling", GREEDY),
    ("swift", GREEDY),
    ("swift", SAMPLED),
]
HEADS = [("eagle", SAMPLED), ("eagle3", GREEDY)]


def model_of(name):
    return random_model(name.partition(",")[0], **LAYERS, **STOCK.get(name, {}))


@pytest.fixture(scope="module", params=[*WINDOWED, *STOCK])
def target(request):
    target = TransformersTarget(model_of(request.param), None, request.param, request.param)
    assert (target.fused is None) == (request.param in STOCK)
    return target


def head_of(name, target, folder):
    torch.manual_seed(1)
    kind = architecture(name)
    network = kind.build(kind.shape_for(target.config), target)
    head = Head(network, torch.arange(53), target.name, target.identity, {"decoder": name})
    head.save(folder)
    return str(folder)


def check(target, name, options, sampler):
    decoder = build_decoder(name, target, {name: options})
    drafted = generate(target, decoder.drafter, sampler, PROMPT, LIMIT)
    assert drafted.tokens == vanilla_tokens(target, sampler, PROMPT, LIMIT)
    assert sum(drafted.drafted) > 0


def test_vanilla_is_generate(target):
    settings = greedy_settings(LIMIT.max_new_tokens, [])
    out = model_of(target.name).generate(torch.tensor([PROMPT]), generation_config=settings)
    assert vanilla_tokens(target, GREEDY, PROMPT, LIMIT) == out[0, len(PROMPT) :].tolist()


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("name", "sampler"), FREE, ids=str)
def test_training_free_decoders(target, name, sampler):
    options = OPTIONS.get(name, {})
    if name == "swift" and target.fused is None:
        with pytest.raises(BenchError, match="layers"):
            check(target, name, options, sampler)
        return
    check(target, name, options, sampler)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("name", "sampler"), HEADS, ids=str)
def test_trained_heads(target, name, sampler, tmp_path):
    check(target, name, {"head": head_of(name, target, tmp_path / name)}, sampler)


def test_a_draft_model_of_its_layers(target, tmp_path):
    folder = head_of("draft_model", target, tmp_path / "head")
    check(target, "draft_model", {"model": folder}, GREEDY)


@pytest.mark.parametrize("name", WINDOWED)
def test_whole_steps_on_a_device(name, monkeypatch, tmp_path):
    monkeypatch.setenv(gpu.VARIABLE, "reference")
    target = TransformersTarget(model_of(name), None, name, name)
    options = {"eagle": {"head": head_of("eagle", target, tmp_path / "eagle"), "tree": "fixed"}}
    decoder = build_decoder("eagle", target, options)
    for sampler in (GREEDY, SAMPLED):
        tokens = decoder.loop.generate(sampler, PROMPT, LIMIT).tokens
        assert tokens == vanilla_tokens(target, sampler, PROMPT, LIMIT)

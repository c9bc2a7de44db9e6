"""What a target reads off a configuration; families are exact on trees, or refused by name."""

from __future__ import annotations

import pytest
import torch
import transformers
from doubles import COMMON, random_model, random_target
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
)

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.prompt_lookup import PromptLookup
from fspad_bench.engine.architecture import ARCHITECTURES, check_architecture, norm_weight
from fspad_bench.engine.stock import greedy_settings
from fspad_bench.engine.target import ContextError, TransformersTarget
from fspad_bench.util.errors import BenchError

QWEN = {"use_sliding_window": True, "sliding_window": 24}


@pytest.mark.parametrize(
    ("name", "options", "windows"),
    [
        ("mistral", {"sliding_window": 24}, (24, 24)),
        ("mistral", {"sliding_window": None}, (None, None)),
        ("qwen2", QWEN | {"max_window_layers": 1}, (None, 24)),
        ("qwen2", QWEN | {"max_window_layers": 2}, (None, None)),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 24}, (None, None)),
        ("qwen3", QWEN | {"max_window_layers": 0}, (24, 24)),
        ("gemma3", {"sliding_window": 24}, (24, None)),
        ("llama", {}, (None, None)),
    ],
)
def test_the_windows_of_layers(name, options, windows):
    target = random_target(name, **options)
    assert target.heads.windows == windows
    assert target.max_length == 256


def test_a_window_that_no_layer_has_bounds_the_context():
    """transformers' cache would drop what the layers see."""
    target = random_target("llama", sliding_window=24)
    assert target.heads.windows == (None, None)
    target.session(24)
    with pytest.raises(ContextError, match="exceed the context of 24"):
        target.session(25)


def test_the_final_norm_of_a_family_includes_its_offset():
    for name, offset in (("llama", 0), ("gemma3", 1)):
        model = random_model(name)
        assert torch.equal(norm_weight(model), model.model.norm.weight + offset)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GPT2Config(), "architecture 'gpt2' is not supported"),
        (LlamaConfig(num_hidden_layers=0), "the model has no layers"),
        (Gemma3TextConfig(final_logit_softcapping=30.0), r"its logits are capped \(final_logit"),
        (Gemma3TextConfig(attn_logit_softcapping=50.0), "its attention scores are capped"),
        (Gemma3TextConfig(use_bidirectional_attention=True), "attend to later ones"),
        (Qwen2Config(use_sliding_window=True, sliding_window=0), "sliding_window is 0"),
        (
            LlamaConfig(num_hidden_layers=1, layer_types=["chunked_attention"]),
            "layers of type 'chunked_attention' are not supported",
        ),
    ],
    ids=str,
)
def test_what_a_tree_would_get_wrong_is_refused(config, message):
    with pytest.raises(BenchError, match=message):
        check_architecture(config)


EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
FAMILIES = {
    "Llama": {},
    "Mistral": {"sliding_window": 5},
    "Qwen2": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "Qwen3": {"head_dim": 16, "use_sliding_window": True, "sliding_window": 6},
    "Gemma3Text": {"head_dim": 16, "sliding_window": 4, "sliding_window_pattern": 2},
    "Gemma": {"head_dim": 16},
    "Gemma2": {"head_dim": 16, "sliding_window": 4},
    "Phi3": {"sliding_window": 5},
    "Cohere2": {"sliding_window": 4, "sliding_window_pattern": 2},
    "Olmo2": {},
    "Olmo3": {"sliding_window": 4},
    "SmolLM3": {"no_rope_layer_interval": 2},
    "Granite": {},
    "Mixtral": EXPERTS,
    "GptOss": EXPERTS | {"head_dim": 16, "sliding_window": 4},
    "Llama4Text": EXPERTS | {"head_dim": 16, "intermediate_size_mlp": 48},
    "GPTNeoX": {},
    "GPT2": {},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_trees_are_exact_or_it_is_refused_by_name(family):
    """Greedy answers with drafts equal `generate` past the window, or nothing is decoded at all."""
    kind = getattr(transformers, f"{family}Config")
    config = kind(**COMMON | FAMILIES[family])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").double().eval()
    if config.model_type not in ARCHITECTURES:
        with pytest.raises(
            BenchError, match=f"architecture '{config.model_type}' is not supported"
        ):
            TransformersTarget(model, None)
        return
    prompt = [5, 6, 7, 8] * 5
    settings = greedy_settings(30, [])
    expected = model.generate(torch.tensor([prompt]), generation_config=settings)[0, len(prompt) :]
    target = TransformersTarget(model, None)
    drafted = generate(target, PromptLookup(target), Sampler(), prompt, Limit(30))
    assert drafted.tokens == expected.tolist()
    assert sum(drafted.drafted) > 0

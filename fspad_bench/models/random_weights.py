"""Targets of a known shape with random weights: the cost of a real model without its files.

- `random:llama3-8b` has the shape of LLaMA-3-8B; `random:llama3-70b:8` has eight layers of the 70B.
- Their text means nothing, so only `fspad-bench profile` and `invariance` accept one.
"""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fspad_bench.engine.target import TransformersTarget
from fspad_bench.models.load import default_dtype, device_named
from fspad_bench.models.presets import RANDOM
from fspad_bench.util.errors import BenchError, near

WEIGHT_DEVIATION = 0.02
SHAPES = {  # d, MLP width, layers, heads, key-value heads, vocabulary, context
    "tiny": (64, 80, 2, 4, 2, 97, 8192),
    "smollm2-135m": (576, 1536, 30, 9, 3, 49152, 8192),
    "vicuna-7b": (4096, 11008, 32, 32, 32, 32000, 4096),
    "llama3-8b": (4096, 14336, 32, 32, 8, 128256, 8192),
    "llama3-70b": (8192, 28672, 80, 64, 8, 128256, 8192),
}
MOST_LAYERS = 1000


def shape(name: str) -> LlamaConfig:
    """Return the configuration that `random:SHAPE[:LAYERS]` names. Raises BenchError."""
    kind, _, layers = name.removeprefix(RANDOM).partition(":")
    if kind not in SHAPES:
        raise BenchError(f"unknown shape '{kind}'", near(kind, SHAPES))
    if layers and not (layers.isdecimal() and 0 < int(layers) <= MOST_LAYERS):
        raise BenchError(f"'{layers}' is not a number of layers", f"write it like {RANDOM}{kind}:4")
    d, width, depth, heads, kv_heads, vocabulary, context = SHAPES[kind]
    return LlamaConfig(
        hidden_size=d,
        intermediate_size=width,
        num_hidden_layers=int(layers or depth),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        max_position_embeddings=context,
        tie_word_embeddings=kind == "smollm2-135m",
    )


def random_target(
    name: str, *, device: str = "cpu", dtype: str | None = None
) -> TransformersTarget:
    """Build a target of this shape; its weights are equal for equal torch, device and precision."""
    config = shape(name)
    device = device_named(device)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(getattr(torch, dtype or default_dtype(device)))
    model = model.to_empty(device=device)
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    generator = torch.Generator(device).manual_seed(0)
    for weight in model.parameters():
        if weight.dim() == 1:
            torch.nn.init.ones_(weight)
        else:
            torch.nn.init.normal_(weight, std=WEIGHT_DEVIATION, generator=generator)
    return TransformersTarget(model, None, name, name)

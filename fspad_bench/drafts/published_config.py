"""The `config.json` of a published head: the sizes of one Llama layer, and how it rotates.

- What a draft network here does not do is refused by name: other activations, more layers, scaled
  or partial rotary embeddings, under both of their spellings (`rope_scaling`, and
  `rope_parameters` since transformers 5).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fspad_bench.drafts.shape import Shape
from fspad_bench.util.errors import BenchError
from fspad_bench.util.text import json_file

SILU = ("silu", "swish")  # one function under two names
ROPE = ("rope_parameters", "rope_scaling")
ROPE_THETA = 10000.0
LARGEST = 1 << 24
HINT = "it needs the sizes of a Llama layer"
SIZES = ("hidden_size", "intermediate_size", "num_attention_heads")


def read_config(path: Path) -> dict[str, Any]:
    """Read a config that states the sizes of a layer. Raises BenchError for any other file."""
    config = json_file(path, HINT)
    if not isinstance(config, dict):
        raise BenchError(f"{path} is no config of a draft head: not a JSON object", HINT)
    if "speculators_model_type" in config:
        raise BenchError(
            f"{path} is of a head in the layout of speculators",
            "heads in the layout of their authors, or of SpecForge, can be read",
        )
    missing = [name for name in SIZES if name not in config]
    if missing:
        raise BenchError(f"{path} is no config of a draft head: it lacks {missing[0]}", HINT)
    return config


def shape_of(path: Path, config: dict[str, Any], *, qkv_bias: bool) -> Shape:
    """Return the shape that a config states.

    Raises BenchError naming what no draft network here does, or a size that is none.
    """
    if config.get("hidden_act", "silu") not in SILU or config.get("num_hidden_layers", 1) != 1:
        raise BenchError(
            f"{path} is no config of an EAGLE or FSPAD head", "those are one layer with SiLU"
        )
    d = _size(path, config, "hidden_size")
    heads = _size(path, config, "num_attention_heads")
    shape = Shape(
        d=d,
        m=_size(path, config, "intermediate_size"),
        heads=heads,
        kv_heads=_size(path, config, "num_key_value_heads", heads),
        head_dim=_size(path, config, "head_dim", d // heads),
        rope_theta=_rope_theta(path, config),
        eps=_above_zero(path, config, "rms_norm_eps", 1e-6),
        qkv_bias=qkv_bias,
    )
    if heads % shape.kv_heads or shape.head_dim % 2:
        raise BenchError(
            f"{path}: {heads} heads of width {shape.head_dim} cannot share {shape.kv_heads} keys",
            "key-value heads divide the heads, and a head's width is even",
        )
    return shape


def _size(path: Path, config: dict[str, Any], name: str, default: int | None = None) -> int:
    value = default if config.get(name) is None else config[name]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= LARGEST:
        raise BenchError(f"{path}: {name} is {value!r:.60}", "give a whole number, at least 1")
    return value


def _above_zero(path: Path, config: dict[str, Any], name: str, default: float) -> float:
    value = default if config.get(name) is None else config[name]
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e30:
        raise BenchError(f"{path}: {name} is {value!r:.60}", "give a number above 0")
    return float(value)


def _rope_theta(path: Path, config: dict[str, Any]) -> float:
    """Return the base of the rotary embedding, which may stand in three places.

    Raises BenchError where it is scaled or partial, or where two places disagree.
    """
    parts = [config, *(_unscaled(path, config, name) for name in ROPE)]
    for part in parts:
        if part.get("partial_rotary_factor", 1.0) != 1.0:
            raise BenchError(
                f"{path}: partial_rotary_factor is {part['partial_rotary_factor']!r:.60}",
                "heads here rotate the whole width of a head",
            )
    stated = {
        _above_zero(path, part, "rope_theta", ROPE_THETA)
        for part in parts
        if part.get("rope_theta") is not None
    }
    if len(stated) > 1:
        raise BenchError(
            f"{path} states two values of rope_theta: {', '.join(map(str, sorted(stated)))}",
            "keep the one that the head was trained with",
        )
    return stated.pop() if stated else ROPE_THETA


def _unscaled(path: Path, config: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the rotary settings of this name. Raises BenchError where they scale."""
    rope = config.get(name) or {}
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise BenchError(f"{path}: {name} is {rope!r:.60}", "one layer has one rotary embedding")
    kinds = [str(rope[spelling]) for spelling in ("rope_type", "type") if rope.get(spelling)]
    scaling = [kind for kind in kinds if kind != "default"]
    if scaling or rope.get("factor", 1.0) != 1.0:
        kind = scaling[0] if scaling else f"factor {rope['factor']}"
        raise BenchError(
            f"{path}: {name} scales its rotary embedding ({kind})",
            "a draft network here rotates by rope_theta alone",
        )
    return rope

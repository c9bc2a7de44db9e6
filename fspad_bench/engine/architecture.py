"""The architectures whose trees are known to be exact, each described in one place.

- An `Architecture` says in what a family's layers differ from Llama's: what its norms add to their
  weights, where they stand, its rotary embeddings, and whose word its attention windows are. The
  fused forward (`forward`) runs any of them by its description.
- What no description can say, and a tree would therefore get silently wrong, is refused by name:
  capped scores or logits, chunked or bidirectional attention, frequencies that depend on a
  forward's length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from fspad_bench.engine.attention import HeadShape
from fspad_bench.util.errors import BenchError


@dataclass(frozen=True)
class Architecture:
    """A family's layers, as far as they differ from Llama's.

    - `norm_offset`: added to a norm's weights. A norm that adds some rounds once, at its end.
    - The norms of a layer by their names: before the MLP, and after attention and MLP, on what the
      residual stream is about to get (empty: none).
    - `ropes_by_type`: each type of layer has rotary embeddings of its own.
    - `uniform_window`: the configuration's window is that of every layer; else a layer names its
      own, or has none.
    """

    norm_offset: float = 0.0
    mlp_norm: str = "post_attention_layernorm"
    after_attention: str = ""
    after_mlp: str = ""
    ropes_by_type: bool = False
    uniform_window: bool = False


ARCHITECTURES = {
    "llama": Architecture(),
    "mistral": Architecture(uniform_window=True),
    "qwen2": Architecture(),
    "qwen3": Architecture(),
    "gemma3_text": Architecture(
        norm_offset=1.0,
        mlp_norm="pre_feedforward_layernorm",
        after_attention="post_attention_layernorm",
        after_mlp="post_feedforward_layernorm",
        ropes_by_type=True,
    ),
}

# rotary embeddings whose frequencies one far token of a tree changes for all the others
LENGTH_DEPENDENT = ("dynamic", "longrope")
LAYER_TYPES = ("full_attention", "sliding_attention")
UNSUPPORTED = {
    "attn_logit_softcapping": "its attention scores are capped",
    "final_logit_softcapping": "its logits are capped",
    "use_bidirectional_attention": "its tokens attend to later ones",
}


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """Return the description of a supported model's family."""
    return ARCHITECTURES[config.model_type]


def check_architecture(config: PreTrainedConfig) -> None:
    """Raise BenchError unless a tree forward of this architecture is known to be exact."""
    if config.model_type not in ARCHITECTURES:
        raise BenchError(
            f"architecture '{config.model_type}' is not supported",
            f"supported: {', '.join(ARCHITECTURES)}",
        )
    if config.num_hidden_layers < 1:
        raise BenchError("the model has no layers", "correct num_hidden_layers in config.json")
    for name, meaning in UNSUPPORTED.items():
        if getattr(config, name, None):
            raise BenchError(
                f"{meaning} ({name} in config.json), which is not supported",
                "choose another target",
            )
    _check_attention(config)
    for kind in _rope_types(config):
        if kind in LENGTH_DEPENDENT:
            raise BenchError(
                f"rotary embedding '{kind}' is not supported",
                "its frequencies depend on a forward's length",
            )


def _check_attention(config: PreTrainedConfig) -> None:
    other = set(getattr(config, "layer_types", None) or ()) - set(LAYER_TYPES)
    if other:
        raise BenchError(
            f"layers of type '{min(other)}' are not supported",
            f"supported types of layers: {', '.join(LAYER_TYPES)}",
        )
    window = getattr(config, "sliding_window", None)
    if window is not None and window < 1:
        raise BenchError(
            f"sliding_window is {window}: a token sees at least itself",
            "correct sliding_window in config.json",
        )


def _rope_types(config: PreTrainedConfig) -> Iterator[str | None]:
    """Yield the kinds of rotary embeddings, also where each type of layer has its own."""
    stated = getattr(config, "rope_parameters", None) or {}
    yield stated.get("rope_type")
    for own in stated.values():
        if isinstance(own, dict):
            yield own.get("rope_type")


def head_shape(model: PreTrainedModel) -> HeadShape:
    """Return the shape of a model's attention, with the window of each layer."""
    config = model.config
    first: Any = model.base_model.layers[0].self_attn
    return HeadShape(
        config.num_attention_heads,
        config.num_key_value_heads,
        first.head_dim,
        first.scaling,
        _windows(model),
    )


def _windows(model: PreTrainedModel) -> tuple[int | None, ...]:
    """Return of how many last positions the layers' queries see the entries, None: of all."""
    layers = model.base_model.layers
    if architecture_of(model.config).uniform_window:
        return (model.config.sliding_window,) * len(layers)
    return tuple(getattr(layer.self_attn, "sliding_window", None) for layer in layers)


def longest_exact(config: PreTrainedConfig, windows: tuple[int | None, ...]) -> int:
    """Return the longest sequence on which the model is what its configuration states.

    Its context; the window, where the configuration states one that its layers do not have:
    transformers' own cache then drops what the layers would see.
    """
    context = config.max_position_embeddings
    kinds = getattr(config, "layer_types", None) or LAYER_TYPES
    stated = getattr(config, "sliding_window", None) if LAYER_TYPES[1] in kinds else None
    return context if any(windows) or stated is None else min(context, stated)


def rope_types(config: PreTrainedConfig) -> tuple[str, ...]:
    """Return the type of rotary embedding that each layer has; empty: all have the same one."""
    return tuple(config.layer_types) if architecture_of(config).ropes_by_type else ()


def norm_weight(model: PreTrainedModel) -> Tensor:
    """Return what the final norm multiplies with, its family's offset included."""
    weight: Tensor = model.base_model.norm.weight.detach()
    return weight + architecture_of(model.config).norm_offset


def activation_of(config: PreTrainedConfig) -> str:
    """Return transformers' name of the activation of an MLP's gate."""
    named = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    return str(named or "silu")

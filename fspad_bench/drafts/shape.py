"""The sizes of a draft network, as they stand in a head's file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedConfig

LARGEST = 1e12  # of a rotary base
MOST_LEVELS = 16


@dataclass(frozen=True)
class Shape:
    """The sizes of a draft network; they stand in the head's file.

    - `qkv_bias`: queries, keys and values have biases, as in published heads for Qwen2.
    - `capture`: the target's hidden states that f is made of, as transformers'
      `output_hidden_states` counts them. Empty: the final one, as it is.
    - `vocabulary`: the rows of an LM head of the draft's own. 0: it uses the target's.
    - `levels`: how many tokens ahead the network can draft. 0: as many as it is asked for.
    - `layers`: how many of the target's decoder layers it is made of. 0: it has one of its own.
    """

    d: int
    m: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    eps: float
    qkv_bias: bool = False
    capture: tuple[int, ...] = ()
    vocabulary: int = 0
    levels: int = 0
    layers: int = 0

    def facts(self) -> dict[str, Any]:
        """Return the sizes as they are written: without the settings that few heads have, where
        they are not set.
        """
        return {name: value for name, value in asdict(self).items() if value not in (False, ())}

    @classmethod
    def read(cls, sizes: dict[str, Any]) -> Shape:
        """Return the shape that a file states. Raises ValueError for sizes that no network has."""
        shape = cls(**sizes | {"capture": tuple(sizes.get("capture", ()))})
        for name in ("d", "m", "heads", "kv_heads", "head_dim"):
            value = getattr(shape, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"its shape's {name} is {value!r:.60}, not a whole number above 0")
        for name in ("rope_theta", "eps"):
            value = getattr(shape, name)
            if type(value) not in (int, float) or not 0 < value < LARGEST:
                raise ValueError(f"its shape's {name} is {value!r:.60}, not a number above 0")
        if type(shape.qkv_bias) is not bool:
            raise ValueError(f"its shape's qkv_bias is {shape.qkv_bias!r:.60}, not true or false")
        if not all(type(state) is int for state in shape.capture):
            raise ValueError(f"its shape's capture is {shape.capture!r:.60}, not whole numbers")
        for name in ("vocabulary", "layers"):
            value = getattr(shape, name)
            if type(value) is not int or value < 0:
                raise ValueError(f"its shape's {name} is {value!r:.60}, not a count")
        if type(shape.levels) is not int or not 0 <= shape.levels <= MOST_LEVELS:
            raise ValueError(f"its shape's levels is {shape.levels!r:.60}, not 0 to {MOST_LEVELS}")
        return shape

    @classmethod
    def of_target(cls, config: PreTrainedConfig) -> Shape:
        """Return the shape of the target's own layers, as EAGLE takes it."""
        heads = config.num_attention_heads
        rope = getattr(config, "rope_parameters", None) or {}
        rope = rope.get("full_attention", rope)  # where each type of layer has its own
        return cls(
            d=config.hidden_size,
            m=config.intermediate_size,
            heads=heads,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            rope_theta=float(rope.get("rope_theta", 10000.0)),
            eps=config.rms_norm_eps,
        )


def low_mid_high(layers: int) -> tuple[int, int, int]:
    """Return the three hidden states that EAGLE-3 fuses, of a target with so many layers.

    They are what layers 2, L / 2 and L - 3 read, as in its authors' code. A target of less than
    seven layers, where these are not in order, gives an early state, the middle and the final one.
    """
    if layers < 7:
        return layers // 4, layers // 2, layers
    return 2, layers // 2, layers - 3

"""What EAGLE-3's published layout has beside EAGLE's: a draft vocabulary, and the hidden states
that the head reads.

- `d2t [S]`: draft token i is the target's token i + d2t[i]. `t2d [V]` marks the same tokens. A head
  without them drafts every token.
- `eagle_aux_hidden_state_layer_ids` in the config itself (vLLM) numbers the layers that a state
  enters, which is the number of the hidden state; within `eagle_config` (SGLang, SpecForge) it
  numbers the layers that a state leaves, one less. Without either the states are 2, L / 2, L - 3,
  as in the authors' code.
- A setting of the method that is not known here is refused by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fspad_bench.drafts.shape import low_mid_high
from fspad_bench.util.errors import BenchError

TO_TARGET = "d2t"
IN_DRAFT = "t2d"
STATES = "eagle_aux_hidden_state_layer_ids"
NESTED = "eagle_config"
FEWEST_LAYERS = 7  # below it 2, L / 2, L - 3 are not in order
KNOWN = {"rms_norm_eps", STATES, NESTED, "num_aux_hidden_states"}
WORDS = ("norm", "eagle", "aux", "speculator", "fc_")  # of settings that change the arithmetic
BELONGS = "does config.json belong to these weights?"
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_settings(path: Path, config: dict[str, Any], states: tuple[int, ...]) -> None:
    """Raise BenchError naming a setting of the method that a head here does not have."""
    for name, value in config.items():
        about_method = any(word in name for word in WORDS)
        if about_method and name not in KNOWN and value not in (None, False):
            raise BenchError(
                f"{path}: {name} is {value!r}",
                "heads of EAGLE-3 as first published can be read, without later additions",
            )
    for name, ours in (
        ("target_hidden_size", config["hidden_size"]),
        ("num_aux_hidden_states", len(states)),
    ):
        if config.get(name) not in (None, ours):
            raise BenchError(f"{path}: {name} is {config[name]!r}, not {ours}", BELONGS)


def read_states(path: Path, config: dict[str, Any], layers: int) -> tuple[int, ...]:
    """Return the hidden states that a config states for a target of so many layers.

    Raises BenchError where it states two sets of them, or none that can be used.
    """
    nested = config.get(NESTED) or {}
    if not isinstance(nested, dict):
        raise BenchError(f"{path}: {NESTED} is {nested!r}", "it holds settings by name")
    for name, value in nested.items():
        if name not in (STATES, "use_aux_hidden_state") or value is False:
            raise BenchError(f"{path}: {NESTED}.{name} is {value!r}", "no head here does that")
    entered = _numbers(path, config.get(STATES), 0)
    left = _numbers(path, nested.get(STATES), 1)
    if entered and left and entered != left:
        raise BenchError(
            f"{path} states two sets of hidden states: {entered} in {STATES}, {left} in {NESTED}",
            "keep the one that the head was trained with",
        )
    if not (entered or left) and layers < FEWEST_LAYERS:
        raise BenchError(
            f"{path} does not say which hidden states of {layers} layers the head reads",
            f"state them in {STATES}",
        )
    return entered or left or low_mid_high(layers)


def _numbers(path: Path, stated: object, more: int) -> tuple[int, ...]:
    if stated is None:
        return ()
    numbers = stated if isinstance(stated, list) else []
    if not numbers or not all(type(number) is int for number in numbers):
        raise BenchError(f"{path}: {STATES} is {stated!r}", "it is a list of layers' numbers")
    return tuple(number + more for number in numbers)


def take_vocabulary(
    folder: Path, config: dict[str, Any], weights: dict[str, Tensor], size: int
) -> Tensor:
    """Remove `d2t` and `t2d` from the weights; return the ids of the draft vocabulary `[S]`.

    Raises BenchError unless they are ascending ids of the target's `size` tokens, and agree with
    each other and with the config.
    """
    offsets = weights.pop(TO_TARGET, None)
    marks = weights.pop(IN_DRAFT, None)
    stated = config.get("draft_vocab_size")
    if offsets is None:
        if stated not in (None, size):
            raise BenchError(f"{folder} lacks {TO_TARGET}, for {stated!r} draft tokens", BELONGS)
        offsets = torch.zeros(size, dtype=torch.int64)
    if offsets.dim() != 1 or offsets.dtype not in WHOLE or not len(offsets):
        raise BenchError(
            f"{folder}: {TO_TARGET} holds {offsets.dtype} of shape {tuple(offsets.shape)}",
            "it is one whole number a draft token",
        )
    ids = torch.arange(len(offsets)) + offsets.long()
    if stated not in (None, len(ids)):
        raise BenchError(
            f"{folder}: {TO_TARGET} has {len(ids)} tokens, the config {stated!r}", BELONGS
        )
    if not (ids.diff() > 0).all() or int(ids[0]) < 0 or int(ids[-1]) >= size:
        raise BenchError(
            f"{folder}: {TO_TARGET} does not name ascending tokens of {size}",
            "a head only helps the target it was trained for",
        )
    if marks is not None:
        _check_marks(folder, marks, ids, size)
    return ids


def _check_marks(folder: Path, marks: Tensor, ids: Tensor, size: int) -> None:
    if marks.shape != (size,):
        raise BenchError(
            f"{folder}: {IN_DRAFT} is of shape {tuple(marks.shape)}; the target has {size} tokens",
            "a head only helps the target it was trained for",
        )
    if not torch.equal(marks.bool().nonzero().flatten(), ids):
        raise BenchError(f"{folder}: {TO_TARGET} and {IN_DRAFT} name different tokens", BELONGS)


def vocabulary_weights(ids: Tensor, size: int) -> dict[str, Tensor]:
    """Return `d2t` and `t2d` of a draft vocabulary `[S]` for a target of `size` tokens."""
    ids = ids.cpu().long()
    marks = torch.zeros(size, dtype=torch.bool)
    marks[ids] = True
    return {TO_TARGET: ids - torch.arange(len(ids)), IN_DRAFT: marks}


def settings(states: tuple[int, ...], count: int) -> dict[str, Any]:
    """Return the config's settings for a head that reads these states and drafts `count` tokens."""
    own: dict[str, Any] = {"draft_vocab_size": count, STATES: list(states)}
    if min(states) > 0:  # the embedding leaves no layer
        left = [state - 1 for state in states]
        own[NESTED] = {STATES: left, "use_aux_hidden_state": True}
    return own

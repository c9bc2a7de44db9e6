"""Golden acceptance lengths: the field's format for curves that engines replay.

    minimax-m3:
      thinking_on: {1: 1.79, 2: 2.39, 3: 2.78}

- By model and mode, tokens per step (the target's own token counts) by the number of drafted
  tokens, two decimals; `_metadata` is not a model. The format and its measuring are those of
  SemiAnalysis InferenceX, `golden_al_distribution` (2026).
- Engines replay a length by the schedule of the smallest variance: at 3.78 with 7 drafts two are
  always accepted, a third in 78% of the steps, no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fspad_bench.profiling.cost_models import ForwardModel, Overhead
from fspad_bench.util.errors import BenchError, near
from fspad_bench.util.text import text_file, yaml_value

METADATA = "_metadata"
HINT = "write MODEL: {MODE: {drafts: tokens per step}}"
MOST_DRAFTS = 127


@dataclass(frozen=True, eq=False)
class Curve:
    """Tokens per step by the number of drafted tokens, of one model in one mode."""

    model: str
    mode: str
    lengths: Mapping[int, float]


def read_golden(path: Path) -> list[Curve]:
    """Return the curves of a file. Raises BenchError for what are none."""
    try:
        content = yaml_value(text_file(path))
    except ValueError as error:
        raise BenchError(f"cannot read {path}: {error}", HINT) from error
    if not isinstance(content, dict):
        raise BenchError(f"{path} holds no golden acceptance lengths", HINT)
    curves = []
    for model, modes in content.items():
        if model == METADATA:
            continue
        if not isinstance(modes, dict):
            raise BenchError(f"{path}: {model} has no modes", HINT)
        for mode, lengths in modes.items():
            curves.append(
                Curve(str(model), str(mode), _lengths(lengths, f"{path}: {model} {mode}"))
            )
    if not curves:
        raise BenchError(f"{path} holds no golden acceptance lengths", HINT)
    return curves


def _lengths(content: object, where: str) -> dict[int, float]:
    if not isinstance(content, dict) or not content:
        raise BenchError(f"{where} is no curve", HINT)
    for drafts, length in content.items():
        if type(drafts) is not int or not 1 <= drafts <= MOST_DRAFTS:
            raise BenchError(f"{where}: {drafts!r:.40} is no number of drafted tokens", HINT)
        if type(length) not in (int, float) or not 1 <= length <= drafts + 1:
            raise BenchError(
                f"{where}: {length!r:.40} tokens per step with {drafts} drafted",
                f"it is from 1 to {drafts + 1}",
            )
    return dict(content)


def schedule(length: float, drafts: int) -> list[float]:
    """Return the chance that each of the drafted tokens is accepted, the first one first."""
    return [min(1.0, max(0.0, length - 1 - depth)) for depth in range(drafts)]


def golden_speedup(
    length: float, drafts: int, forwards: ForwardModel, overhead: Overhead, prefix: int
) -> float:
    """Return the speedup of steps of this length.

    `overhead.draft`: seconds of each drafted token; `overhead.rest` is vanilla's too.
    """
    tokens = 1 + sum(schedule(length, drafts))
    vanilla = forwards.seconds(1, prefix) + overhead.rest
    step = forwards.seconds(1 + drafts, prefix) + drafts * overhead.draft + overhead.rest
    return tokens * vanilla / step


def selected(curves: list[Curve], model: str | None) -> list[Curve]:
    """Return the curves of a model, of all where none is named. Raises BenchError."""
    names = {curve.model for curve in curves}
    if model is not None and model not in names:
        raise BenchError(f"no curve of '{model}'", near(model, names))
    return [curve for curve in curves if model in (None, curve.model)]

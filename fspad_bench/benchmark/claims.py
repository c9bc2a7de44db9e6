"""What a foreign engine says of its own speed, apart from every figure that was measured."""

from __future__ import annotations

from collections.abc import Sequence

from fspad_bench.benchmark.record import Sample
from fspad_bench.benchmark.times import decoded

Pairs = Sequence[tuple[Sample, Sample]]  # vanilla's and the engine's


def tokens_per_step(samples: Sequence[Sample]) -> float | None:
    """Return the tokens per step that an engine claims; None where it claims none."""
    forwards = sum(sample.claims.get("forwards", 0) for sample in samples)
    committed = sum(sum(sample.claims.get("committed", ())) for sample in samples)
    return committed / forwards if forwards and committed else None


def decode_speedup(pairs: Pairs) -> float | None:
    """Return vanilla's measured decode seconds per token over those that an engine claims."""
    claimed = sum(engine.claims.get("decode_seconds", 0.0) for _, engine in pairs)
    vanilla = sum(reference.decode_seconds for reference, _ in pairs)
    vanilla_tokens = sum(decoded(reference) for reference, _ in pairs)
    tokens = sum(decoded(engine) + (engine.overshoot or 0) for _, engine in pairs)
    if not (claimed > 0 and vanilla_tokens and tokens):
        return None
    return (vanilla / vanilla_tokens) / (claimed / tokens)

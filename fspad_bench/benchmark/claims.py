"""What a foreign engine says of its own speed, apart from every figure that was measured."""

from __future__ import annotations

from collections.abc import Sequence

from fspad_bench.benchmark.record import Sample
from fspad_bench.benchmark.times import decoded

Pairs = Sequence[tuple[Sample, Sample]]  # vanilla's and the engine's


def tokens_per_step(samples: Sequence[Sample]) -> float | None:
    """Return the tokens per step that an engine claims; None where it claims none.

    An engine that counts drafts, and not what each step committed, claims all that it decoded.
    """
    forwards = sum(sample.claims.get("forwards", 0) for sample in samples)
    committed = sum(_committed(sample) for sample in samples)
    return committed / forwards if forwards and committed else None


def _committed(sample: Sample) -> int:
    if "committed" not in sample.claims and "accepted" in sample.claims:
        return decoded(sample)
    return sum(sample.claims.get("committed", ()))


def acceptance(samples: Sequence[Sample]) -> float | None:
    """Return the share of draft tokens that an engine claims to have accepted."""
    drafted = sum(sample.claims.get("drafted", 0) for sample in samples)
    accepted = sum(sample.claims.get("accepted", 0) for sample in samples)
    return accepted / drafted if drafted else None


def time_to_first_token(samples: Sequence[Sample]) -> float | None:
    """Return the mean seconds to an engine's first token, None unless all samples have them."""
    times = [sample.claims.get("prefill_seconds", 0.0) for sample in samples]
    return sum(times) / len(times) if times and all(times) else None


def decode_speedup(pairs: Pairs) -> float | None:
    """Return vanilla's measured decode seconds per token over those that an engine claims.

    Of the prompts that it claims seconds of: an answer that came at once has none.
    """
    pairs = [pair for pair in pairs if pair[1].claims.get("decode_seconds")]
    claimed = sum(engine.claims["decode_seconds"] for _, engine in pairs)
    vanilla = sum(reference.decode_seconds for reference, _ in pairs)
    vanilla_tokens = sum(decoded(reference) for reference, _ in pairs)
    tokens = sum(decoded(engine) + (engine.overshoot or 0) for _, engine in pairs)
    if not (claimed > 0 and vanilla_tokens and tokens):
        return None
    return (vanilla / vanilla_tokens) / (claimed / tokens)
